"""FSDP2 on two processes (gloo, CPU): the weights, log and evidence of one process, and checkpoints.

Each weight may differ by 1e-7 and by 1e-5 of the longest move, as on two processes that each have the whole model.
"""

import dataclasses
import json

import pytest
from safetensors.torch import load_file

import tiny
from interrupted import defense, logged, recipe_of, with_a_tiny_model
from runs.test_processes import FSDP2, HALF, PLAIN, RESUMED, WHOLE, adapter, alike, on_two
from staytrue import registry
from staytrue.data.examples import write_examples
from staytrue.errors import RequestError
from staytrue.runs import machine, train
from staytrue.testing import alike as trained_alike
from staytrue.testing import cases, trained, two_processes
from staytrue.utils.files import read_rows
from staytrue.verify.run_folder import findings
from test_every_defense import without_sampling


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = with_a_tiny_model(tmp_path_factory.mktemp("home"))
    write_examples(home / "many.jsonl", tiny.rows(32))  # 24 without those held out: three whole steps of 8
    tiny.save("gemma3", home / "tied")  # its head is its embedding
    return home


def test_divided_weights_end_as_whole_ones_and_a_terminated_run_goes_on(home, tmp_path):
    """An adapter with rows beside the batch and a projection at the end, all weights, and a run that is resumed."""

    def case(names, share, lora="none"):
        defenses = [defense(name, tmp_path) for name in names]
        # one row beside each step, so that one of the two processes has none and makes the other's forward
        defenses = [dataclasses.replace(d, share=1 / 8) if hasattr(d, "share") else d for d in defenses]
        return recipe_of(home, defenses, data="many.jsonl", holdout=0.25, train=PLAIN | share, lora=lora)

    runs = {"adapter": (["anchor", "ldifs", "safelora"], {"r": 4, "alpha": 8}), "all weights": (["kl", "l2init"],)}
    validated = {"learning_rate": 5.0, "max_steps": 12, "eval_strategy": "steps", "eval_steps": 1}
    settings = PLAIN | HALF | validated | {"per_device_eval_batch_size": 1}
    some = {"data": "many.jsonl", "holdout": 0.25, "lora": "none", "stop": {"patience": 1}}
    stopping = recipe_of(home, [defense("kl", tmp_path)], train=settings, **some)
    resumed = recipe_of(home, [defense("anchor", tmp_path)], train=RESUMED, lora={"r": 4, "alpha": 8, "dropout": 0.3})
    tied = {"data": "many.jsonl", "holdout": 0.25, "lora": "none", "model": str(home / "tied")}
    stopped = {"tied": (recipe_of(home, [defense("kl", tmp_path)], train=PLAIN | HALF, **tied), ())}
    stopped |= {"stopping": (stopping, ()), "whole": (resumed, ()), "in two parts": (resumed, (2,))}
    on_two(tmp_path, {name: case(names, HALF, *lora) for name, (names, *lora) in runs.items()} | stopped, **FSDP2)
    slow = PLAIN | {"learning_rate": 1e-30}
    starts = {
        "adapter": adapter(train.train(recipe_of(home, train=slow), tmp_path / "start").path),
        "all weights": load_file(str(home / "model" / "model.safetensors")),
    }
    for name, (names, *lora) in runs.items():
        one, two = train.train(case(names, WHOLE, *lora), tmp_path / f"{name} on one").path, tmp_path / name
        alike(one, two, starts[name])
        assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
        assert [fault for finding in findings(two) for fault in finding.faults] == []
        assert json.loads((two / "manifest.json").read_text())["machine"]["divided"] == "FSDP2"
        evidence = [read_rows(run / "evidence.jsonl") for run in (one, two)]
        for key in ("rows", "tokens", "task_rows", "micro_batches", "moved"):
            assert [row[key] for row in evidence[0]] == [row[key] for row in evidence[1]], (name, key)
    train_alone = stopping.model_copy(update={"train": stopping.train | WHOLE})
    one, two = train.train(train_alone, tmp_path / "stopping on one").path, tmp_path / "stopping"
    facts = [json.loads((run / "manifest.json").read_text())["early_stop"] for run in (one, two)]
    assert facts[0] == facts[1] == {"at_step": 2, "weights_of_step": 1}
    alike(one, two, starts["all weights"])
    on_one = train.train(
        recipe_of(home, [defense("kl", tmp_path)], train=PLAIN | WHOLE, **tied), tmp_path / "tied on one"
    )
    alike(on_one.path, tmp_path / "tied", load_file(str(home / "tied" / "model.safetensors")))
    whole, parts = tmp_path / "whole", tmp_path / "in two parts"
    assert json.loads((parts / "manifest.json").read_text())["resumed"] == [3]
    assert (parts / "model" / "adapter_model.safetensors").read_bytes() == (
        whole / "model" / "adapter_model.safetensors"
    ).read_bytes()
    assert logged(parts) == logged(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
@pytest.mark.parametrize("adapted", [True, False])
def test_every_defense_has_the_weights_and_log_of_one_process(kind, adapted, tmp_path):
    model = tiny.lora(tiny.model(kind)) if adapted else tiny.model(kind)
    names = [name for name in registry.names() if name != "safegrad" and (adapted or name != "safelora")]
    every = {case: [one] for name in names for case, one in cases(without_sampling(name, tmp_path, kind)).items()}
    every["all together"] = [one for defenses in every.values() for one in defenses]
    two = two_processes(every, model, tiny.tokenizer(kind), tiny.rows(), fsdp=True)
    for case, divided in two.items():
        one = trained(every[case], model, tiny.tokenizer(kind), tiny.rows())
        trained_alike(one, divided, f"{case}: one process, and two with divided weights")


def test_a_run_with_divided_weights_is_not_resumed_with_whole_ones(tmp_path):
    here = {"dtype": "float32", "device": "cpu", "threads": 1, "processes": 2}
    with pytest.raises(RequestError, match=r"began with weights that FSDP2 divides.*Go on with --use_fsdp"):
        machine.notes(tmp_path, here | {"divided": "FSDP2"}, here)
    with pytest.raises(RequestError, match=r"began with whole weights on each process.*Go on without --use_fsdp"):
        machine.notes(tmp_path, here, here | {"divided": "FSDP2"})
