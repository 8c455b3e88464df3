"""`report_to`: TensorBoard, wandb and trackio receive the numbers of metrics.jsonl, and each weighted penalty."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from interrupted import Stopping, logged, recipe_of, with_a_tiny_model
from small_trainers import grpo, sft
from staytrue import KL
from staytrue.errors import RecipeError, TrainingError
from staytrue.runs import trackers, train
from staytrue.training.trackers import named
from staytrue.utils.files import read_rows
from staytrue.utils.run_dir import RunDir
from staytrue.verify.run_folder import findings


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return with_a_tiny_model(tmp_path_factory.mktemp("home"))


def scalars(folder):
    """Each number of TensorBoard's event files: its values by step."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def with_kl_and_anchor(home, **changes):
    more = {"report_to": "tensorboard", "eval_strategy": "steps", "eval_steps": 2, **changes}
    defenses = [
        {"kl": {"weight": 0.5}},
        {"anchor": {"prompts": "pool.jsonl", "answers": "given", "weight": 2, "share": 0.25}},
    ]
    return recipe_of(home, defenses, holdout=0.2, train=more)


def test_tensorboard_in_the_run_folder_has_the_logged_numbers_and_every_part_of_the_loss(home, tmp_path):
    run = train.train(with_kl_and_anchor(home), tmp_path / "run")
    tracked, rows = scalars(run.path / "tensorboard"), read_rows(run.path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 9))
    for row in rows:
        at = {name: values[row["step"]] for name, values in tracked.items() if row["step"] in values}
        assert at["train/penalty/kl"] == pytest.approx(row["kl"], rel=1e-6)
        assert at["train/task_loss"] == pytest.approx(row["task_loss"], rel=1e-6)
        assert at["train/weighted_penalty/kl"] == pytest.approx(0.5 * row["kl"], rel=1e-6)
        weighted = at["train/weighted_penalty/kl"] + at["train/weighted_penalty/anchor"]
        assert at["train/loss"] == pytest.approx(at["train/task_loss"] + weighted, rel=1e-5)
    assert any(tracked["train/weighted_penalty/anchor"].values())
    assert tracked["eval/loss"] == {
        row["step"]: pytest.approx(row["loss"]) for row in read_rows(run.path / "validation.jsonl")
    }
    assert {"train/kl", "train/anchor"}.isdisjoint(tracked)
    texts = EventAccumulator(str(run.path / "tensorboard")).Reload()
    shown = {
        name: texts.Tensors(f"{name}/text_summary")[0].tensor_proto.string_val[0].decode()
        for name in ("recipe", "rows")
    }
    assert shown["recipe"] == f"```\n{(run.path / 'recipe.yaml').read_text()}```"
    assert "task: 19\n" in shown["rows"]  # of 24 distinct questions a fifth is reserved
    assert not [finding for finding in findings(run.path) if finding.faults]


def test_a_row_beside_the_batch_counts_in_the_loss_as_often_as_it_is_due(home, tmp_path):
    settings = {"logging_steps": 4, "eval_steps": 4, "per_device_train_batch_size": 1, "save_steps": 4}
    run = train.train(with_kl_and_anchor(home, **settings), tmp_path / "run")
    tracked = scalars(run.path / "tensorboard")
    for step in (4, 8):  # two rows a step and a share of 1/4: one of its rows every other step, which counts twice
        penalty, weighted = tracked["train/penalty/anchor"][step], tracked["train/weighted_penalty/anchor"][step]
        assert weighted == pytest.approx(2 * penalty, rel=1e-5)
        parts = tracked["train/task_loss"][step] + tracked["train/weighted_penalty/kl"][step] + weighted
        assert tracked["train/loss"][step] == pytest.approx(parts, rel=1e-5)


def test_a_step_without_a_row_beside_the_batch_is_null_in_the_log_and_absent_at_the_tracker(home, tmp_path):
    settings = {"per_device_train_batch_size": 1, "eval_steps": 4, "save_steps": 4}  # two rows a step, as above
    run = train.train(with_kl_and_anchor(home, **settings), tmp_path / "run")
    rows, tracked = read_rows(run.path / "metrics.jsonl"), scalars(run.path / "tensorboard")
    measured = [row["step"] for row in rows if row["anchor"] is not None]
    assert measured in ([1, 3, 5, 7], [2, 4, 6, 8])
    assert sorted(tracked["train/penalty/anchor"]) == measured
    assert sorted(tracked["train/penalty/kl"]) == list(range(1, 9))
    assert not [finding for finding in findings(run.path) if finding.faults]


def test_a_resumed_run_goes_on_in_the_same_files_and_has_each_step_once(home, tmp_path):
    recipe = with_kl_and_anchor(home)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "run", Stopping(5))
    assert 5 in scalars(tmp_path / "run" / "tensorboard")["train/penalty/kl"]
    train.resume(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/penalty/kl")] == list(range(1, 9))
    assert [event.value for event in events.Scalars("train/penalty/kl")] == pytest.approx(
        [row["kl"] for row in logged(tmp_path / "run")], rel=1e-6
    )


def test_a_run_that_names_no_tracker_writes_for_none(home, tmp_path):
    run = train.train(recipe_of(home, train={"max_steps": 2}), tmp_path / "run")
    assert not [path for path in run.path.rglob("*") if "tensorboard" in path.name or "tfevents" in path.name]


def test_the_folder_of_a_run_that_fails_in_its_first_step_is_removed_with_its_events(home, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *a, **k: 1 / 0)
    with pytest.raises(TrainingError, match="first step"):
        train.train(recipe_of(home, train={"report_to": "tensorboard"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_script_that_reports_to_tensorboard_has_the_defenses_numbers_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = sft(tmp_path, [KL(0.25), KL(0.5)], report_to="tensorboard")
    trainer.train()
    tracked = scalars(tmp_path / "events")
    for label, weight in (("kl", 0.25), ("kl.2", 0.5)):
        assert set(tracked[f"train/penalty/{label}"]) == {1, 2}
        penalty, weighted = tracked[f"train/penalty/{label}"][2], tracked[f"train/weighted_penalty/{label}"][2]
        assert penalty > 0
        assert weighted == pytest.approx(weight * penalty, rel=1e-6)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["kl"] for row in logs] == pytest.approx(list(tracked["train/penalty/kl"].values()))


def test_reinforcement_learning_reports_them_beside_the_reward(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    grpo(tmp_path, [KL(0.25)], report_to="tensorboard").train()
    tracked = scalars(tmp_path / "events")
    assert set(tracked["train/penalty/kl"]) == set(tracked["train/reward"]) == {1, 2}
    assert tracked["train/weighted_penalty/kl"][2] == pytest.approx(0.25 * tracked["train/penalty/kl"][2], rel=1e-6)


def test_a_further_number_of_a_defense_keeps_its_name_behind_the_penalty():
    logs = {"loss": 1.0, "kl.2": 0.5, "kl.2/entropy": 3.0, "learning_rate": 0.1}
    tracked = {"loss": 1.0, "penalty/kl.2": 0.5, "penalty/kl.2/entropy": 3.0, "learning_rate": 0.1}
    assert named(logs, ["kl", "kl.2"], {"kl.2": 0.25}) == {**tracked, "weighted_penalty/kl.2": 0.25}
    assert named({"eval_loss": 2.0}, ["kl"], {"kl": 0.25}) == {"eval_loss": 2.0}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("all", r"every tracker that is installed here\. Name the trackers"),
        ("tensorbord", r"'tensorbord' is no tracker; did you mean 'tensorboard'\?"),
        (["tensorboard", "paper"], r"'paper' is no tracker; write none, tensorboard, wandb or trackio"),
        ("wandb", r"wandb is not installed\. Install it with `pip install wandb`"),
        (["trackio"], r"trackio is not installed\. Install it with `pip install trackio`"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_a_sentence_before_training(home, tmp_path, monkeypatch, value, sentence):
    monkeypatch.setattr("staytrue.config.trackers.find_spec", lambda name: name == "tensorboard" or None)
    with pytest.raises(RecipeError, match=sentence):
        train.train(recipe_of(home, train={"report_to": value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wandb_without_a_login_is_a_sentence_and_leaves_nothing_behind(tmp_path, monkeypatch):
    def init(**settings):
        raise ValueError("api_key not configured (no-tty)")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None, init=init))
    run = RunDir.create(tmp_path / "run", {})
    with pytest.raises(RecipeError, match=r"api_key not configured .*`wandb login`.*WANDB_MODE=offline"):
        trackers._wandb("run-1", run, {})
    began = SimpleNamespace(run="of the caller", init=init)
    monkeypatch.setitem(sys.modules, "wandb", began)
    assert trackers._wandb("run-1", run, {}) is None


def test_wandb_offline_keeps_each_run_in_its_own_folder(home, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        run = train.train(with_kl_and_anchor(home, report_to="wandb"), tmp_path / name)
        assert wandb.run is None
        tracked, rows = of_wandb(run.path), read_rows(run.path / "metrics.jsonl")
        kl = {at["train/global_step"]: at for at in tracked if "train/penalty/kl" in at}
        assert list(kl) == list(range(1, 9))
        for row in rows:
            assert kl[row["step"]]["train/penalty/kl"] == pytest.approx(row["kl"], rel=1e-6)
            assert kl[row["step"]]["train/weighted_penalty/kl"] == pytest.approx(0.5 * row["kl"], rel=1e-6)
        assert [at["eval/loss"] for at in tracked if "eval/loss" in at] == [
            pytest.approx(row["loss"]) for row in read_rows(run.path / "validation.jsonl")
        ]
        assert not [finding for finding in findings(run.path) if finding.faults]
    assert not (tmp_path / "wandb").exists()


def of_wandb(run):
    """What a run sent to wandb, from its offline file: a mapping for each log line."""
    from wandb.proto import wandb_internal_pb2

    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    lines = []
    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            lines.append({".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items})
    return lines


def records(content, block=32768):
    """The records of a file in the form of LevelDB's log, after seven bytes of wandb's own."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:  # too few bytes of the block are left for a header
            place += block - place % block
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


TRACKIO = """
import json, sys
from pathlib import Path
from interrupted import recipe_of
from staytrue.runs import train
from trackio.sqlite_storage import SQLiteStorage

out = Path(sys.argv[2])
recipe = recipe_of(Path(sys.argv[1]), [{"kl": {"weight": 0.5}}], train={"report_to": "trackio"})
train.train(recipe, out)
runs = SQLiteStorage.get_runs("huggingface")
print("RUNS", json.dumps([[name, SQLiteStorage.get_logs("huggingface", name)] for name in runs], default=str))
"""


def test_trackio_has_the_numbers_under_the_name_of_the_run_folder(home, tmp_path):
    pytest.importorskip("trackio")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", TRACKIO, str(home), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    ((name, tracked),) = json.loads(done.stdout.split("RUNS ")[1])
    assert name.startswith("run-")
    numbers = [at for at in tracked if "train/penalty/kl" in at]
    assert [at["train/penalty/kl"] for at in numbers] == pytest.approx([row["kl"] for row in logged(tmp_path / "run")])
    for at in numbers:
        assert at["train/weighted_penalty/kl"] == pytest.approx(0.5 * at["train/penalty/kl"], rel=1e-6)
