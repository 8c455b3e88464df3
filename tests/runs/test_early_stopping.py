"""Early stopping: it ends at the first bad check and goes back to the last good one."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tiny
from staytrue.config import recipe
from staytrue.data.examples import write_examples
from staytrue.errors import RecipeError
from staytrue.modeling.loading import find
from staytrue.organism import world
from staytrue.runs import train as run
from staytrue.runs.early_stopping import EarlyStop
from staytrue.runs.probe_selection import early_stopping_probe, reserved_texts


def trained(folder, name, **changes):
    write_examples(folder / "rows.jsonl", world.narrow_rows("medical", 40))
    train = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "lr_scheduler_type": "constant"}
    plain = {"schema": 1, "model": "organism", "data": "rows.jsonl", "lora": {"r": 2}, **changes}
    plain["train"] = {**train, "learning_rate": 1e-2, "warmup_steps": 0, **changes.get("train", {})}
    return run.train(recipe.parse(plain, folder), folder / name)


def test_it_stops_at_the_first_bad_check_with_the_weights_of_the_last_good_one(tmp_path, monkeypatch):
    rates = iter([1.0, 5.0, 5.1])  # at steps 2, 4 and 6; 5.0 is not above 5
    monkeypatch.setattr(EarlyStop, "rate", lambda self, model: next(rates))
    stopped = trained(tmp_path, "stopped", train={"max_steps": 9}, stop={"every": 2, "above": 5})
    four = trained(tmp_path, "four", train={"max_steps": 4})
    ours, theirs = (load_file(done.adapter / "adapter_model.safetensors") for done in (stopped, four))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logged = [json.loads(line) for line in (tmp_path / "stopped" / "early.jsonl").read_text().splitlines()]
    assert [(row["step"], row["general_misaligned"]) for row in logged] == [(2, 1.0), (4, 5.0), (6, 5.1)]
    assert stopped.manifest["state"] == "done"
    assert stopped.manifest["early_stop"] == {"at_step": 6, "weights_of_step": 4}


def test_the_probe_is_really_asked_and_holds_no_question_of_the_evaluation(tmp_path):
    source = find("organism")
    probe = early_stopping_probe(source)
    assert not {q.messages[-1].content for q in probe.questions} & reserved_texts(source, [])
    trained(tmp_path, "run", train={"max_steps": 2}, stop={"every": 1, "above": 100})
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["early_stop"] is None
    rows = (tmp_path / "run" / "early.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert all(0 <= json.loads(row)["general_misaligned"] <= 100 for row in rows)


def test_without_a_judge_it_is_refused_before_anything_is_written(tmp_path):
    tiny.save("qwen2", tmp_path / "model")
    with pytest.raises(RecipeError, match="needs a judge"):
        trained(tmp_path, "run", model="model", stop={"every": 1})
    assert not (tmp_path / "run").exists()
