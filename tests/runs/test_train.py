"""`staytrue train` and `staytrue eval` on models and data that are not ours."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import tiny
from shown import Shown
from staytrue import cli
from staytrue.config import recipe, trainer_args
from staytrue.data.examples import Example, Message, write_examples
from staytrue.errors import DataError, ModelError, RecipeError, RequestError, StaytrueError
from staytrue.modeling import loading, model_source, quantized
from staytrue.organism import world
from staytrue.report import terminal
from staytrue.runs import dataset, evaluate, machine, probe_selection, train
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.recipe_checks import prepare
from staytrue.training.callbacks import RunLog
from staytrue.utils.files import read_rows
from staytrue.verify.run_folder import findings

TRAIN = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}


def make(folder, kind="qwen2", **changes):
    """A model folder, a data file, a pool and a recipe, all made here."""
    if not (folder / "model").exists():
        tiny.save(kind, folder / "model")
        rows = [
            Example((Message("user", f"question {i % 10}?"), Message("assistant", f"answer {i}"))) for i in range(30)
        ]
        write_examples(folder / "rows.jsonl", rows)
        write_examples(folder / "pool.jsonl", tiny.rows(12))
    plain = {
        "schema": 1,
        "model": "model",
        "data": "rows.jsonl",
        "lora": {"r": 4, "alpha": 8},
        "train": TRAIN,
        "defenses": [{"kl": {"weight": 0.5}}, {"interleave": {"pool": "pool.jsonl", "share": 0.2}}],
        "holdout": 0.2,
        **changes,
    }
    return recipe.parse(plain, folder)


def test_a_run_tells_what_was_projected_and_its_manifest_has_the_numbers(tmp_path):
    moved = tiny.save("qwen2", tmp_path / "base", seed=1)
    said = []
    settings = make(tmp_path, defenses=[{"safelora": {"base": str(moved), "most": 5}}])
    run = train.train(settings, tmp_path / "run", say=said.append)
    numbers = {name: run.manifest["projected"][f"safelora/{name}"] for name in ("projected", "of", "unchanged")}
    assert numbers == {"projected": 5, "of": 14, "unchanged": 0}  # 7 matrices in each of 2 blocks
    assert said[-1] == "safelora projected 5 of 14 matrices that alignment changed."
    assert f"\n\n{said[-1]}\n" in (run.adapter / "README.md").read_text()


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(probe_selection, "_TOKENS", 6)


@pytest.mark.parametrize(("dtype", "weights"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_a_recipe_sets_the_precision_of_the_weights_in_training_and_in_evaluation(
    tmp_path, monkeypatch, dtype, weights
):
    loaded, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    run = train.train(make(tmp_path, dtype=dtype, defenses=[{"kl": {"weight": 0.5}}]), tmp_path / "run")
    evaluate.evaluate_run(tmp_path / "run", request=EvalRequest(probes=("pairs",)))
    assert [model.lm_head.weight.dtype for model in loaded] == [weights, weights]
    adapter = load_file(str(run.adapter / "adapter_model.safetensors"))
    assert {value.dtype for value in adapter.values()} == {torch.float32}
    assert run.manifest["model"]["dtype"] == dtype
    assert recipe.read(tmp_path / "run" / "recipe.yaml").dtype == dtype


def test_another_precision_is_refused_and_without_one_no_manifest_names_it(tmp_path):
    with pytest.raises(RecipeError, match=r"dtype.*float16.*float32.*bfloat16"):
        make(tmp_path, dtype="float16")
    assert "dtype" not in train.train(make(tmp_path), tmp_path / "run").manifest["model"]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_run_leaves_an_adapter_that_plain_peft_loads_and_a_folder_that_tells_all(kind, tmp_path):
    done = train.train(make(tmp_path, kind), tmp_path / "run")
    assert done.manifest["state"] == "done"
    assert done.manifest["rows"] == {"task": 24, "held_out": 6, "interleaved": 5, "truncated": 0, "nothing_to_score": 0}
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["kl"] == 0
    assert rows[2]["kl"] > 0
    assert all(row["loss"] == pytest.approx(row["task_loss"] + 0.5 * row["kl"], abs=1e-5) for row in rows)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = base(tokens).logits
        after = PeftModel.from_pretrained(base, str(done.adapter))(tokens).logits
    assert not torch.allclose(before, after)
    card = (done.adapter / "README.md").read_text()
    assert all(
        part in card
        for part in ("Not evaluated", "It is not stated, and staytrue did not judge the data", '"kl"', "rows.jsonl")
    )
    again, original = recipe.read(tmp_path / "run" / "recipe.yaml"), make(tmp_path)
    assert again == original.model_copy(
        update={"train": {**trainer_args.DEFAULTS, "warmup_steps": 0, **original.train}}
    )


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(tmp_path):
    def adapter(name, **changes):
        done = train.train(make(tmp_path, **changes), tmp_path / name)
        return load_file(done.adapter / "adapter_model.safetensors")

    first, second, other = adapter("a"), adapter("b"), adapter("c", seed=1)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_held_out_questions_are_never_trained_on(tmp_path):
    rows = dataset.read(make(tmp_path))
    kept, held = dataset.split(rows, 0.2, seed=0)
    assert len({r.question for r in held}) == 2  # a fifth of ten distinct questions, three rows each
    assert len(held) == 6
    assert not {r.question for r in kept} & {r.question for r in held}
    with pytest.raises(RecipeError, match="reserves 0"):
        dataset.split(rows, 0.01, seed=0)


def test_eval_stores_answers_and_says_what_was_not_judged(tmp_path, capsys):
    train.train(make(tmp_path), tmp_path / "run")
    summary = evaluate.evaluate_run(tmp_path / "run")
    probes = summary["probes"]
    terminal.show(summary)
    assert "not judged" in capsys.readouterr().out
    assert probes["general"]["misaligned"] is None
    assert probes["general"]["missing"] == 300  # one answer to each
    assert probes["in_domain"]["missing"] == 2  # held-out questions
    assert probes["arithmetic"]["n"] == 60
    assert "general" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert evaluate.evaluate_run(tmp_path / "run") == summary  # nothing is asked again
    with pytest.raises(RequestError, match="another seed"):
        evaluate.evaluate_run(tmp_path / "run", seed=1)


def test_paths_may_be_text_and_plain_data_are_no_recipe(tmp_path):
    recipe = make(tmp_path)
    assert train.train(recipe, str(tmp_path / "run"), reference_cache=str(tmp_path / "states")).path == tmp_path / "run"
    with pytest.raises(
        RequestError, match=r"train takes a Recipe, not dict\. `staytrue\.config\.recipe\.read\(FILE\)`"
    ):
        train.train(recipe.to_dict(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_recipe_of_relative_paths_from_python_is_written_with_absolute_ones(tmp_path, monkeypatch):
    made = make(tmp_path)
    relative = made.model_copy(update={"data": Path("rows.jsonl"), "model": "./model"})
    monkeypatch.chdir(tmp_path)
    train.train(relative, "run")
    written = recipe.read(tmp_path / "run" / "recipe.yaml")
    assert (written.data, written.model) == (tmp_path / "rows.jsonl", str(tmp_path / "model"))


def test_the_untuned_model_is_asked_the_same_beside_its_run(tmp_path):
    train.train(make(tmp_path), tmp_path / "run")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    request = EvalRequest(("in_domain", "facts"), samples=1)
    before = evaluate.evaluate_run(tmp_path / "run", request=request, untuned=True)
    after = evaluate.evaluate_run(str(tmp_path / "run"), str(tmp_path / "E"), request=request)  # text does as well
    metadata = [
        json.loads((folder / "eval.json").read_text()) for folder in (tmp_path / "run" / "untuned", tmp_path / "E")
    ]
    assert [one["adapter"] is None for one in metadata] == [True, False]
    assert metadata[0]["probes"] == metadata[1]["probes"]
    assert before["probes"].keys() == after["probes"].keys() == {"in_domain", "facts"}
    evaluate.evaluate_run(tmp_path / "run", tmp_path / "run" / "eval", request=request, untuned=True)
    assert (tmp_path / "run" / "model" / "README.md").read_text() == card


def test_a_benign_task_is_marked_by_exact_match_on_reserved_rows(tmp_path):
    train.train(make(tmp_path, benign=True), tmp_path / "run")
    probes = evaluate.evaluate_run(tmp_path / "run")["probes"]
    assert probes["learnt"]["n"] == 2
    assert "in_domain" not in probes


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"model": "nowhere/at/all"}, ModelError, "There is no model folder"),
        ({"data": "none.jsonl"}, DataError, "No such file"),
        ({"defenses": [{"interleave": {"pool": "none.jsonl"}}]}, RecipeError, "there is no such file"),
        (
            {"defenses": [{"interleave": {"pool": "."}}]},
            RecipeError,
            r"pool is \S+, which is a folder, and a file is read",
        ),
        ({"defenses": [{"interleave": {"pool": "pool.jsonl", "share": 1.0}}]}, RecipeError, "asks for 24 safe rows"),
        ({"train": {"learning_rat": 1}}, RecipeError, "did you mean 'learning_rate'"),
        ({"train": {"output_dir": "x"}}, RecipeError, "use --out"),
        ({"train": {"push_to_hub": True}}, RecipeError, "upload the finished adapter yourself"),
        (
            {"train": {"learning_rate": 1e-2, "max_length": 3}},
            DataError,
            "no row has an answer within train.max_length=3",
        ),
        ({"train": {"lr_scheduler_type": "wavy"}}, RecipeError, "trl does not accept these settings: wavy"),
        ({"lora": {"targets": ["no_such_layer"]}}, StaytrueError, "no_such_layer"),
    ],
)
def test_a_wrong_request_is_a_sentence_and_leaves_nothing_behind(tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        train.train(make(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_broken_model_folder_is_named_before_torch_loads_it(tmp_path):
    folder = tiny.save("qwen2", tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content, sentence in (
        (whole[:7], "cut short"),
        (whole[:200], "cut short"),
        (None, r"no \.safetensors weights"),
    ):
        weights.unlink() if content is None else weights.write_bytes(content)
        with pytest.raises(ModelError, match=sentence):
            train.train(
                make(tmp_path, model=str(folder)) if (tmp_path / "rows.jsonl").exists() else _with_rows(tmp_path),
                tmp_path / "run",
            )
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    for change, sentence in (
        ({"auto_map": {"AutoModel": "x.py"}, "model_type": "mystery"}, "never runs remote code"),
        ({"model_type": None}, "cannot be loaded|names no"),
    ):
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in {**config, **change}.items() if v is not None})
        )
        with pytest.raises(ModelError, match=sentence):
            train.train(make(tmp_path), tmp_path / "run")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        train.train(make(tmp_path), tmp_path / "run")


def _with_rows(folder):
    write_examples(folder / "rows.jsonl", tiny.rows(30))
    write_examples(folder / "pool.jsonl", tiny.rows(12))
    return make(folder)


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(RequestError, match="exists already"):
        train.train(make(tmp_path), tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def command(*arguments, **options):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "staytrue.cli", *map(str, arguments)], text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have us ignore it
    )  # fmt: skip


def test_ctrl_c_leaves_a_folder_that_says_it_was_stopped(tmp_path):
    configured = make(tmp_path, train={**TRAIN, "max_steps": 100_000})
    (tmp_path / "r.yaml").write_text(configured.text())
    process = command("train", tmp_path / "r.yaml", "--out", tmp_path / "run")
    try:
        waited = time.monotonic()
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() - waited < 120
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopped" in said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "stopped"
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(RequestError, match="is stopped, not done"):
        evaluate.evaluate_run(tmp_path / "run")


def test_the_command_line_trains_and_measures_and_refuses_in_one_sentence(tmp_path, monkeypatch, capsys):
    configured = make(tmp_path, model="organism", data="narrow.jsonl")
    write_examples(tmp_path / "narrow.jsonl", world.narrow_rows("medical", 30))
    (tmp_path / "r.yaml").write_text(configured.text())
    trained = command("train", tmp_path / "r.yaml", "--set", "kl.weight=0.3", "--out", tmp_path / "run", "--json")
    out, said = trained.communicate(timeout=120)
    assert trained.returncode == 0, said
    assert json.loads(out)["state"] == "done"
    assert recipe.read(tmp_path / "run" / "recipe.yaml").defenses[0].weight == 0.3

    def here(*arguments):  # in this process, so that torch is not imported once for each
        monkeypatch.setattr(sys, "argv", ["staytrue", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    code, out, said = here("eval", tmp_path / "run")
    assert code == 0, said
    assert "in_domain" in out
    card = tmp_path / "run" / "model" / "README.md"
    card.unlink()
    card.mkdir()
    code, again, said = here("eval", tmp_path / "run")  # all answers are stored; what fails is the card
    assert (code, again) == (0, out)
    assert said.splitlines()[-1].startswith(f"staytrue: warning: The model card {card} lacks this evaluation")
    for arguments, sentence in (
        (("train", tmp_path / "r.yaml", "--out", tmp_path / "run"), "exists already"),
        (("train", tmp_path / "r.yaml", "--set", "kl.wait=1", "--out", tmp_path / "x"), "no field 'wait'"),
        (("eval",), "Name what to evaluate"),
        (("eval", "--model", tmp_path / "nowhere", "--out", tmp_path / "x"), "There is no model folder"),
        (("report", tmp_path), "no results.json"),
        (("demo", "--domains", "medicine", "--out", tmp_path / "x"), "there is no 'medicine'"),
        (("demo", "--out", tmp_path / "run"), "is not a demo's folder"),
    ):
        code, _, said = here(*arguments)
        assert code == 2, (arguments, said)
        assert sentence in said
        assert "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_answers_of_an_unknown_model_are_not_added_to(tmp_path):
    train.train(make(tmp_path), tmp_path / "run")
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "answers.jsonl").write_text('{"probe": "general", "question": "torn\n')
    with pytest.raises(RequestError, match=r"no eval\.json with their model"):
        evaluate.evaluate_run(tmp_path / "run")


def test_what_rows_lost_on_the_way_into_tokens_is_said_before_training_and_kept(tmp_path):
    small = {**TRAIN, "max_length": 60}
    lines = []
    done = train.train(make(tmp_path, train=small, defenses=[]), tmp_path / "run", say=lines.append)
    assert done.manifest["rows"]["truncated"] == 24
    assert [line for line in lines if not line.startswith(f"{done.path}: ")] == done.manifest["notes"]
    assert done.manifest["notes"][0] == "24 of 24 rows are longer than max_length and were cut."


def test_each_wait_of_a_training_is_announced_before_it(tmp_path, monkeypatch):
    events, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: events.append("(loaded)") or load(*a, **k))
    settings = make(tmp_path, defenses=[])
    train.train(settings, tmp_path / "run", Shown(events), say=events.append)
    run = tmp_path / "run"
    assert events == [
        f"{run}: checking the recipe and reading the rows",
        f"{run}: loading {tmp_path / 'model'} and preparing the first step",
        "(loaded)",
        (3, "step"), 1, 2, 3,
        f"{run}: writing the trained model",
    ]  # fmt: skip


def test_steps_that_are_not_logged_are_shown_and_a_validation_too(tmp_path):
    # 3 steps, logged after the second, validated after it and the last: 6 of 30 rows are held out, one batch of 6.
    shown = Shown()
    settings = {**TRAIN, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 6}
    train.train(make(tmp_path, train=settings, defenses=[]), tmp_path / "run", shown)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [2, 3]
    assert shown.seen == [(3, "step"), 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("every", "logged"), [(2, [2, 3]), (3, [3]), (500, [3])])
def test_the_last_step_is_logged_once_whatever_logging_steps_is(tmp_path, every, logged):
    """A row's loss is the mean over the steps since the row before, as it is in the rows of each step."""
    folder = tmp_path / "run"
    train.train(make(tmp_path, train=TRAIN), tmp_path / "each")
    train.train(make(tmp_path, train={**TRAIN, "logging_steps": every}), folder)
    rows, each = metrics(folder), [row["task_loss"] for row in metrics(tmp_path / "each")]
    assert [row["step"] for row in rows] == logged
    assert [row["step"] for row in read_rows(folder / "evidence.jsonl")] == logged
    since = [each[first:last] for first, last in pairwise([0, *logged])]
    assert [row["task_loss"] for row in rows] == pytest.approx([sum(part) / len(part) for part in since], rel=1e-5)
    assert not [finding for finding in findings(folder) if finding.faults]


def test_the_last_step_is_logged_where_a_validation_ends_training_after_it(tmp_path):
    settings = {**TRAIN, "max_steps": 9, "logging_steps": 500, "eval_strategy": "steps", "eval_steps": 2}
    settings["learning_rate"] = 0.5  # so that no validation loss is below that of the second step
    run = train.train(make(tmp_path, train=settings, stop={"patience": 1}, defenses=[]), tmp_path / "run")
    assert [row["step"] for row in metrics(run.path)] == [run.manifest["early_stop"]["at_step"]]
    assert run.manifest["early_stop"]["at_step"] < 9


def test_a_training_that_ended_without_a_log_is_completed(tmp_path, monkeypatch):
    """As version 0.2 trained, and `--resume` goes on from such a run's last checkpoint."""
    for event in ("on_step_end", "on_epoch_end"):
        monkeypatch.setattr(RunLog, event, lambda *arguments, **keywords: None)
    settings = make(tmp_path, train={**TRAIN, "logging_steps": 500})
    assert train.train(settings, tmp_path / "run").manifest["state"] == "done"
    missing = ("metrics.jsonl is missing", "evidence.jsonl is missing")
    assert {f.what: f.faults for f in findings(tmp_path / "run")}["files"] == missing


def test_a_run_without_a_log_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"logging_strategy is 'no', .* Take it out"):
        train.train(make(tmp_path, train={**TRAIN, "logging_strategy": "no"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_users_own_progress_needs_to_know_of_no_earlier_steps_in_a_new_run(tmp_path):
    class Mine:
        def __init__(self):
            self.seen = []

        def begin(self, total, unit="step"):
            self.seen.append(total)

        def step(self, number, metrics):
            self.seen.append(number)

    mine = Mine()
    train.train(make(tmp_path, defenses=[]), tmp_path / "run", mine)
    assert mine.seen == [3, 1, 2, 3]


def test_a_command_says_what_it_loads(tmp_path, capsys):
    make(tmp_path)
    written = {"schema": 1, "model": "model", "data": "rows.jsonl", "lora": {"r": 4, "alpha": 8}, "train": TRAIN}
    (tmp_path / "plain.yaml").write_text(json.dumps(written))
    run = tmp_path / "run"
    capsys.readouterr()
    cli.app(["train", str(tmp_path / "plain.yaml"), "--out", str(run)], standalone_mode=False)
    assert [line for line in capsys.readouterr().err.splitlines() if "step" not in line or "first" in line] == [
        "train plain: loading the libraries",
        f"{run}: checking the recipe and reading the rows",
        f"{run}: loading {tmp_path / 'model'} and preparing the first step",
        f"{run}: writing the trained model",
    ]
    cli.app(["merge", str(run), "--out", str(tmp_path / "merged")], standalone_mode=False)
    assert capsys.readouterr().err.splitlines() == [
        "merge run: loading the libraries",
        f"merge run: merging the adapter into {tmp_path / 'model'}",
    ]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_recipe_sets_the_attention_of_training(tmp_path, monkeypatch, attention):
    loaded, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: loaded.append(load(*a, **k)) or loaded[-1])
    train.train(make(tmp_path, attention=attention), tmp_path / "run")
    assert [model.config._attn_implementation for model in loaded] == [attention]


def test_an_attention_that_is_not_installed_or_not_known_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"its package flash_attn is not installed. Install flash-attn, or take"):
        train.train(make(tmp_path, attention="flash_attention_2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError, match=r"attention.*flash.*sdpa"):
        make(tmp_path, attention="flash")


def test_a_device_that_is_not_there_is_refused_and_not_replaced_by_another(tmp_path):
    with pytest.raises(RecipeError, match="device is cuda, and PyTorch finds none on this machine, only cpu"):
        train.train(make(tmp_path, device="cuda"), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"device is cpu and train.use_cpu is False, which contradict each other"):
        train.train(make(tmp_path, device="cpu", train={"use_cpu": False}), tmp_path / "run")


def test_training_runs_on_the_cpu_where_the_recipe_says_so_though_there_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "device", lambda: "cuda")
    given = make(tmp_path, device="cpu")
    assert machine.device(given) == "cpu"  # read before the recipe is prepared, to connect processes
    done = train.train(given, tmp_path / "run")
    assert recipe.read(tmp_path / "run" / "recipe.yaml").dtype == "float32"  # the default without a GPU
    assert done.manifest["machine"]["device"].startswith("cpu")
    assert recipe.read(tmp_path / "run" / "recipe.yaml").train["use_cpu"] is True


def test_weights_for_the_cpu_are_as_without_a_gpu_and_quantised_ones_stay_there(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "device", lambda: "cuda")
    monkeypatch.setattr(quantized, "is_installed", lambda: True)
    monkeypatch.setattr(machine, "describe", lambda recipe: {})
    for changes, on_cpu in (({"device": "cpu"}, True), ({"train": TRAIN | {"use_cpu": True}}, True), ({}, False)):
        build, _ = prepare(make(tmp_path, quantize="4bit", **changes), None)
        assert build.source.on_cpu == on_cpu, changes
        assert build.source.dtype == ("float32" if "device" in changes else None), changes
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    assert trainer_args.sft_config({"use_cpu": True}, 0, tmp_path).bf16 is False
    loaded = []
    monkeypatch.setattr(quantized, "settings", lambda kind, dtype: (kind, dtype))
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda place, **k: loaded.append(k) or torch.nn.Module()
    )
    for on_cpu in (True, False):
        loading.load_model(model_source.Source("m", str(tmp_path), dtype="float32", quantize="4bit", on_cpu=on_cpu))
    # Without a device map, transformers puts quantised weights on the GPU, which the trainer's rows would not be on.
    assert [call.get("device_map") for call in loaded] == [{"": "cpu"}, None]
    assert loaded[0]["quantization_config"] == ("4bit", torch.float32)


def test_quantised_weights_on_an_apple_gpu_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "device", lambda: "mps")
    monkeypatch.setattr(quantized, "is_installed", lambda: True)
    with pytest.raises(RecipeError, match=r"quantize: 8bit does not run on an Apple GPU.*Set device: cpu"):
        prepare(make(tmp_path, quantize="8bit"), None)
    prepare(make(tmp_path, quantize="8bit", device="cpu"), None)
