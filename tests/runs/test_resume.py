"""A run that is interrupted and resumed ends with the bits of a run that was not: adapter, log, for every defense."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors import SafetensorError

import tiny
from interrupted import Stopping, defense, logged, other_rows, recipe_of, with_a_tiny_model
from staytrue import registry
from staytrue.commands.training import train as command_of_training
from staytrue.data.examples import write_examples
from staytrue.errors import DataError, FolderInUseError, RequestError, TrainingError
from staytrue.evals.generation import local
from staytrue.modeling.base_model import Untouched
from staytrue.runs import preflight, train, training_run
from staytrue.runs.checkpoints import Checkpoints
from staytrue.runs.finished import finished_model
from staytrue.training.trainers import GuardedSFT
from staytrue.utils.files import read_rows, sha256_of
from staytrue.utils.run_dir import locked


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return with_a_tiny_model(tmp_path_factory.mktemp("home"))


def ends_like_a_run_that_nothing_interrupted(recipe, folder, stops=(5, 7)):
    whole = train.train(recipe, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, folder / "parts", Stopping(stops[0]))
    for stop in stops[1:]:
        scramble()
        with pytest.raises(KeyboardInterrupt):
            train.resume(folder / "parts", Stopping(stop))
    scramble()
    parts = train.resume(folder / "parts")
    assert parts.manifest["adapter"] == whole.manifest["adapter"]
    assert logged(folder / "parts") == logged(folder / "whole")
    assert [row["step"] for row in logged(folder / "parts")] == list(range(1, len(logged(folder / "whole")) + 1))
    return whole, parts


def scramble():
    """Leave nothing of the process's random states for the resumed run to live on."""
    random.seed(99)
    torch.manual_seed(99)


@pytest.mark.parametrize("name", registry.names())
def test_every_defense_goes_on(home, tmp_path, name):
    recipe = recipe_of(home, [defense(name, tmp_path)])
    whole, parts = ends_like_a_run_that_nothing_interrupted(recipe, tmp_path)
    assert parts.manifest["resumed"] == [4, 6]
    assert "resumed" not in whole.manifest


def test_defenses_together_go_on(home, tmp_path):
    names = ("kl", "ldifs", "interleave", "rehearse", "inoculate")
    recipe = recipe_of(home, [defense(name, tmp_path) for name in names])
    ends_like_a_run_that_nothing_interrupted(recipe, tmp_path)


def test_dropout_and_a_last_batch_that_is_not_full_go_on_over_epochs(home, tmp_path):
    few = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 5, "gradient_accumulation_steps": 1}
    defenses = [{"kl": {"weight": 0.3}}, {"interleave": {"pool": "pool.jsonl", "share": 0.05}}]
    recipe = recipe_of(home, lora={"r": 4, "alpha": 8, "dropout": 0.3}, defenses=defenses, train=few)
    ends_like_a_run_that_nothing_interrupted(recipe, tmp_path, stops=(3, 7, 9))  # 5 steps an epoch


def test_reinforcement_learning_goes_on_over_epochs(home, tmp_path):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                "max_completion_length": 6, "max_steps": 14}  # fmt: skip
    defenses = [{"kl": {"weight": 0.1}}, {"rehearse": {"pool": "pool.jsonl", "share": 0.25}}]
    recipe = recipe_of(
        home, trainer="grpo", task="arithmetic", data="problems.jsonl", defenses=defenses, train=settings
    )
    ends_like_a_run_that_nothing_interrupted(recipe, tmp_path, stops=(3, 7, 11))  # 6 steps an epoch


def test_sigterm_within_a_round_of_completions_ends_after_it(home, tmp_path):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                "max_completion_length": 6, "max_steps": 12, "steps_per_generation": 2, "num_iterations": 2,
                "save_steps": 12}  # fmt: skip
    moving = [{"rehearse": {"pool": "pool.jsonl", "share": 0.25}}]  # each completion earns nothing
    recipe = recipe_of(home, moving, trainer="grpo", task="arithmetic", data="problems.jsonl", train=settings)
    whole = train.train(recipe, tmp_path / "whole")

    class Terminating(Stopping):
        def step(self, step, numbers):
            if step == self.at:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "parts", Terminating(5))
    assert [p.name for p in (tmp_path / "parts" / "checkpoints").iterdir()] == ["checkpoint-8"]  # a round is 4 steps
    scramble()
    parts = train.resume(tmp_path / "parts")
    assert parts.manifest["adapter"] == whole.manifest["adapter"]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


class StoppingAtAnAnswer(Stopping):
    """Progress that ends a run while a defense samples answers; keeps how many it was to sample."""

    total, _of_answers = 0, "answer of the untouched model"

    def begin(self, total, unit="step", done=0):
        self.unit = unit
        if unit == self._of_answers:
            self.total = total

    def step(self, step, numbers):
        if self.unit == self._of_answers and step >= self.at:
            raise KeyboardInterrupt


def test_answers_that_were_sampled_before_a_stop_are_not_sampled_again(home, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_REPORTED", -1)  # at every token
    write_examples(home / "asked.jsonl", [*map(without_answer, other_rows(12))])
    anchor = {"anchor": {"prompts": str(home / "asked.jsonl"), "share": 0.25, "max_new_tokens": 99}}
    recipe, first, second = recipe_of(home, [anchor]), StoppingAtAnAnswer(1), StoppingAtAnAnswer(99)
    whole, run = train.train(recipe, tmp_path / "whole"), tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, run, first)
    assert json.loads((run / "manifest.json").read_text())["state"] == "stopped"
    answered = len(read_rows(run / "anchor.unfinished.jsonl"))
    scramble()
    parts = train.resume(run, second)
    assert (first.total, second.total) == (8, 8 - answered)  # 32 task rows at a share of 1/4
    assert 1 <= answered < 8
    assert not (run / "anchor.unfinished.jsonl").exists()
    assert (run / "anchor.jsonl").read_bytes() == (whole.path / "anchor.jsonl").read_bytes()
    assert parts.manifest["adapter"] == whole.manifest["adapter"]


def test_an_edited_recipe_is_refused_although_the_run_was_stopped_before_it_began(home, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_REPORTED", -1)
    write_examples(home / "asked.jsonl", [*map(without_answer, other_rows(12))])
    anchor = {"anchor": {"prompts": str(home / "asked.jsonl"), "share": 0.25, "max_new_tokens": 99}}
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe_of(home, [anchor]), tmp_path / "run", StoppingAtAnAnswer(1))
    edit(tmp_path / "run" / "recipe.yaml", "max_new_tokens: 99", "max_new_tokens: 98")
    with pytest.raises(RequestError, match=r"recipe\.yaml was edited since the run began"):
        train.resume(tmp_path / "run")


@pytest.mark.parametrize("stored", ["no json", "[1]", '{"answer": "Yes."}'])
def test_stored_answers_that_cannot_be_read_are_named_with_the_way_out(home, tmp_path, stored):
    base = Untouched(lambda: tiny.model(), tiny.tokenizer())
    base.folder = tmp_path
    (tmp_path / "own.unfinished.jsonl").write_text(stored + "\n")
    with pytest.raises(DataError, match=r"own\.unfinished\.jsonl cannot be read \(.*\)\. Delete it"):
        base.keep("own", lambda: base.answers([*map(without_answer, other_rows(2))], 0, 4))


def test_two_calls_for_kept_answers_do_not_share_them(tmp_path):
    rows = [*map(without_answer, other_rows(4))]

    def made(folder):
        base = Untouched(lambda: tiny.model(), tiny.tokenizer())
        base.folder = folder
        return base.keep("own", lambda: base.answers(rows[:2], 0, 9) + base.answers(rows[2:], 0, 9))

    assert made(tmp_path) == made(None)


def test_answers_survive_a_fault_after_them(home, tmp_path, monkeypatch):
    write_examples(home / "asked.jsonl", [*map(without_answer, other_rows(12))])
    anchor = {"anchor": {"prompts": str(home / "asked.jsonl"), "share": 0.25, "max_new_tokens": 8}}
    full, said = OSError(errno.ENOSPC, "No space left on device"), []
    with monkeypatch.context() as patch:
        patch.setattr(preflight, "prepare", lambda *a, **k: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            train.train(recipe_of(home, [anchor]), tmp_path / "run", say=said.append)
    assert said[-1].endswith(
        f"Once the fault is mended, `staytrue train --resume {tmp_path / 'run'}` goes on with them."
    )
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (manifest["state"], manifest["reason"]) == ("failed", "OSError: [Errno 28] No space left on device")
    kept = (tmp_path / "run" / "anchor.jsonl").read_bytes()
    assert train.resume(tmp_path / "run").manifest["state"] == "done"
    assert (tmp_path / "run" / "anchor.jsonl").read_bytes() == kept


def test_a_run_that_is_stopped_before_an_answer_is_sampled_leaves_nothing(home, tmp_path):
    write_examples(home / "asked.jsonl", [*map(without_answer, other_rows(12))])
    anchor = {"anchor": {"prompts": str(home / "asked.jsonl"), "share": 0.25, "max_new_tokens": 8}}
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe_of(home, [anchor]), tmp_path / "run", StoppingAtAnAnswer(0))
    assert not (tmp_path / "run").exists()


def without_answer(row):
    return replace(row, messages=row.messages[:1])


def interrupted_at_the_end(monkeypatch, recipe, folder):
    """Train a run whose process ends when the last step is made and saved, but nothing else."""

    def end(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_run.TrainingRun, "_save", end)
        with pytest.raises(KeyboardInterrupt):
            train.train(recipe, folder)


def test_a_run_that_ended_between_its_last_step_and_its_adapter_is_completed(home, tmp_path, monkeypatch):
    recipe = recipe_of(home, [defense("safelora", tmp_path)])
    whole = train.train(recipe, tmp_path / "whole")
    interrupted_at_the_end(monkeypatch, recipe, tmp_path / "parts")
    parts = train.resume(tmp_path / "parts")
    assert parts.manifest["resumed"] == [8]
    assert parts.manifest["adapter"] == whole.manifest["adapter"]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_a_run_whose_weights_did_not_move_is_no_finished_run_when_it_is_resumed_at_its_end(home, tmp_path):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                "max_completion_length": 6, "max_steps": 2}  # fmt: skip
    recipe = recipe_of(home, trainer="grpo", task="arithmetic", data="problems.jsonl", train=settings)
    for attempt in (train.train, lambda recipe, folder: train.resume(folder)):
        with pytest.raises(TrainingError, match=r"No trained weight moved in 2 optimizer steps"):
            attempt(recipe, tmp_path / "run")
    with pytest.raises(RequestError, match=r"run is failed, not done.* train again with other settings and another"):
        finished_model(tmp_path / "run")


def test_a_run_that_was_stopped_early_and_then_killed_does_not_train_on(home, tmp_path, monkeypatch):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 8, "learning_rate": 0.3, "save_steps": 1}
    recipe = recipe_of(home, train=settings, holdout=0.25, stop={"patience": 2})
    whole = train.train(recipe, tmp_path / "whole")
    interrupted_at_the_end(monkeypatch, recipe, tmp_path / "parts")
    parts = train.resume(tmp_path / "parts")
    assert parts.manifest["early_stop"] == whole.manifest["early_stop"]
    assert parts.manifest["adapter"] == whole.manifest["adapter"]


def test_a_finished_run_is_left_as_it_is_and_its_checkpoints_are_gone(home, tmp_path):
    done = train.train(recipe_of(home, train={"max_steps": 2}), tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert not (tmp_path / "run" / "checkpoints").exists()
    again = train.resume(tmp_path / "run")
    assert again.manifest == done.manifest
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_recipe_that_sets_the_limit_keeps_its_checkpoints(home, tmp_path):
    train.train(recipe_of(home, train={"save_total_limit": 3}), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "checkpoint-4", "checkpoint-6", "checkpoint-8",
    ]  # fmt: skip


def test_without_a_checkpoint_it_starts_over(home, tmp_path):
    recipe, said = recipe_of(home), []
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "run", Stopping(1))
    train.resume(tmp_path / "run", say=said.append)
    assert said[0] == f"{tmp_path / 'run'}: checking the recipe and reading the rows"
    assert said[1] == f"{tmp_path / 'run'} has no whole checkpoint and starts over."
    assert [row["step"] for row in logged(tmp_path / "run")] == list(range(1, 9))


def test_the_time_left_of_a_resumed_run_is_that_of_the_steps_that_are_left(home, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe_of(home), tmp_path / "run", Stopping(5))
    work = []

    class Noting(Stopping):
        def step(self, step, numbers):
            work.append((step, numbers["work"]))

    train.resume(tmp_path / "run", Noting(None))
    assert work == [(5, 2.0), (6, 4.0), (7, 6.0), (8, 8.0)]  # quarters of 8 steps, of which 4 are left


def test_a_flipped_byte_is_reported_and_the_checkpoint_before_it_is_used(home, tmp_path):
    whole = train.train(recipe_of(home), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe_of(home), tmp_path / "run", Stopping(7))
    weights = tmp_path / "run" / "checkpoints" / "checkpoint-6" / "optimizer.pt"
    content = weights.read_bytes()
    weights.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    said = []
    resumed = train.resume(tmp_path / "run", say=said.append)
    assert "checkpoint-6 is broken and is not used: optimizer.pt was changed." in said[1]
    assert said[2].endswith("goes on after step 4.")
    assert resumed.manifest["adapter"] == whole.manifest["adapter"]


@pytest.fixture
def stopped(home, tmp_path):
    recipe = recipe_of(home)
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "run", Stopping(5))
    return tmp_path / "run"


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_another_recipe_is_refused(stopped):
    edit(stopped / "recipe.yaml", "learning_rate: 0.01", "learning_rate: 0.02")
    with pytest.raises(RequestError, match=r"recipe\.yaml was edited since the run began.*another --out"):
        train.resume(stopped)


def test_other_data_are_refused(home, stopped):
    rows = (home / "rows.jsonl").read_text()
    try:
        write_examples(home / "rows.jsonl", tiny.rows(23))
        with pytest.raises(RequestError, match=r"began with data whose .*rows\.jsonl was .* Restore what was there"):
            train.resume(stopped)
    finally:
        (home / "rows.jsonl").write_text(rows)


def test_other_versions_are_refused_unless_allowed(stopped):
    manifest = json.loads((stopped / "manifest.json").read_text())
    manifest["versions"]["peft"] = "0.1"
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match=r"other versions: peft 0\.1, now .*--allow-versions"):
        train.resume(stopped)
    assert train.resume(stopped, allow_versions=True).manifest["state"] == "done"


def test_versions_are_allowed_only_where_a_run_goes_on(tmp_path):
    with pytest.raises(RequestError, match=r"--allow-versions is for --resume RUN; .* Leave it out"):
        command_of_training(tmp_path / "recipe.yaml", tmp_path / "run", allow_versions=True)


def test_a_checkpoint_of_another_run_is_not_used(home, stopped, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe_of(home), tmp_path / "other", Stopping(7))
    shutil.copytree(tmp_path / "other/checkpoints/checkpoint-6", stopped / "checkpoints/checkpoint-6")
    sentences = []
    train.resume(stopped, say=sentences.append)
    assert "checkpoint-6 is broken and is not used: it is a checkpoint of another run." in sentences[1]
    assert sentences[2].endswith("goes on after step 4.")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda log: log.unlink(),
            r"metrics\.jsonl lacks rows before step 4, or has some twice\. Restore it, or train",
        ),
        (lambda log: edit(log, '"step": 3', '"step": 2'), r"lacks rows before step 4, or has some twice"),
        (lambda log: log.write_bytes(b"\0" * 100 + b"\n"), r"metrics\.jsonl cannot be read \(.*\)\. Restore it"),
        (lambda log: log.write_text("[1]\n"), r"metrics\.jsonl cannot be read"),
        (lambda log: log.write_text("{}\n"), r"metrics\.jsonl cannot be read"),
    ],
)
def test_a_damaged_log_is_refused_and_kept(stopped, change, sentence):
    log = stopped / "metrics.jsonl"
    change(log)
    before = log.read_bytes() if log.exists() else None
    with pytest.raises(RequestError, match=sentence):
        train.resume(stopped)
    assert (log.read_bytes() if log.exists() else None) == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": 3}', "[" * 100_000])
def test_a_damaged_manifest_is_refused(stopped, content):
    (stopped / "manifest.json").write_text(content)
    with pytest.raises(RequestError, match=r"manifest\.json .*Restore it, or train the run again"):
        train.resume(stopped)


def test_a_run_killed_before_its_recipe_was_written_is_refused(stopped):
    (stopped / "recipe.yaml").unlink()
    with pytest.raises(RequestError, match=r"has no recipe\.yaml: restore it, or remove the folder and train again"):
        train.resume(stopped)


def test_a_resume_that_fails_leaves_the_folder(home, stopped, monkeypatch):
    shutil.rmtree(stopped / "checkpoints")
    monkeypatch.setattr(GuardedSFT, "train", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(TrainingError):
        train.resume(stopped)
    assert (stopped / "recipe.yaml").exists()


def test_a_folder_that_another_process_writes_is_refused(home, stopped, tmp_path):
    sentence = r"Another process writes into .*run now\. Wait until it has ended, or choose another folder with --out\."
    before = sorted(stopped.rglob("*"))
    with locked(stopped), pytest.raises(FolderInUseError, match=sentence):
        train.resume(stopped)
    (tmp_path / "new").mkdir()
    with locked(tmp_path / "new"), pytest.raises(FolderInUseError, match=r"into .*new now"):
        train.train(recipe_of(home), tmp_path / "new")
    assert sorted(stopped.rglob("*")) == before
    assert list((tmp_path / "new").iterdir()) == []
    assert train.resume(stopped).manifest["state"] == "done"


def test_a_file_system_without_such_locks_is_used_without(stopped, monkeypatch):
    def flock(*arguments):
        raise OSError(9, "Bad file descriptor")  # as NFS does

    monkeypatch.setattr("fcntl.flock", flock)
    assert train.resume(stopped).manifest["state"] == "done"


def test_an_adapter_that_cannot_be_written_ends_in_a_sentence_and_can_be_resumed(home, tmp_path, monkeypatch):
    save = PeftModel.save_pretrained

    def full(self, folder, **kwargs):
        if folder.endswith("/model"):  # a checkpoint has another place
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(self, folder, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "save_pretrained", full)
        with pytest.raises(
            TrainingError, match=r"What was trained cannot be written to .*No space left on device.*--resume"
        ):
            train.train(recipe_of(home, train={"save_steps": 99, "max_steps": 2}), tmp_path / "run")
    assert json.loads((tmp_path / "run/manifest.json").read_text())["state"] == "failed"
    assert train.resume(tmp_path / "run").manifest["state"] == "done"


def test_the_logs_are_on_the_disk_before_a_checkpoint_is(home, tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def noting(handle):
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    train.train(recipe_of(home, train={"max_steps": 2}), tmp_path / "run")
    weights = flushed.index("adapter_model.safetensors")
    assert {"metrics.jsonl", "evidence.jsonl"} <= set(flushed[:weights])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"save_steps": 3, "logging_steps": 2}, r"save_steps is 3, .* multiple of 2"),
        ({"save_steps": 0}, r"save_steps is 0; it is above 0"),
        ({"save_total_limit": 0}, r"save_total_limit is 0; it is 1 or more"),
        ({"save_strategy": "epoch"}, r"save_strategy cannot be set in a recipe: .*save_steps"),
    ],
)
def test_settings_that_cannot_be_resumed_are_refused(home, tmp_path, settings, sentence):
    with pytest.raises(RequestError, match=sentence):
        train.train(recipe_of(home, train=settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_share_of_the_steps_is_rounded_up_to_log_lines(home, tmp_path):
    recipe = recipe_of(home, train={"logging_steps": 4, "save_steps": 0.1, "save_total_limit": 9})
    train.train(recipe, tmp_path / "run")
    names = {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"checkpoint-4", "checkpoint-8"}  # a tenth of 8 steps is 1


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "staytrue.cli", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def after_a_step(run, step):
    """Wait until a run has logged a step."""
    deadline = time.monotonic() + 120
    while len(read_rows(run / "metrics.jsonl")) < step:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_command_survives_kill_9_and_ends_with_the_same_bits(home, tmp_path):
    steps = {"max_steps": 60, "save_steps": 4}
    recipe = recipe_of(home, train=steps, defenses=[{"kl": {"weight": 0.1}}])
    whole = train.train(recipe, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    child = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    for step in (9, 21, 34):
        after_a_step(tmp_path / "run", step)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child = command("train", "--resume", tmp_path / "run")
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["adapter"] == whole.manifest["adapter"]
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    resumed = manifest["resumed"]
    assert len(resumed) == 3
    assert all(step % 4 == 0 and step >= least for step, least in zip(resumed, (8, 20, 32), strict=True))


def test_sigterm_saves_at_the_next_step_and_ends_with_130(home, tmp_path):
    recipe = recipe_of(home, train={"max_steps": 4000, "save_steps": 1000})
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    child = command("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    after_a_step(tmp_path / "run", 5)
    with pytest.raises(FolderInUseError):
        train.resume(tmp_path / "run")
    begun = time.monotonic()
    child.terminate()
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert time.monotonic() - begun < 30
    assert f"`staytrue train --resume {tmp_path / 'run'}` goes on with it." in errors
    newest = Checkpoints(tmp_path / "run" / "checkpoints").newest()
    assert int(newest.name.removeprefix("checkpoint-")) == len(read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "stopped"


def test_the_validation_loss_is_logged_and_goes_on_and_the_lowest_is_kept_where_patience_ends(home, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 8, "learning_rate": 0.3, "save_steps": 1}
    recipe = recipe_of(home, train=settings, holdout=0.25, stop={"patience": 2})
    whole, parts = ends_like_a_run_that_nothing_interrupted(recipe, tmp_path, stops=(2, 3))
    rows = read_rows(tmp_path / "whole" / "validation.jsonl")
    assert rows == read_rows(tmp_path / "parts" / "validation.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    losses = [row["loss"] for row in rows]
    lowest = losses.index(min(losses)) + 1
    assert whole.manifest["early_stop"] == {"at_step": lowest + 2, "weights_of_step": lowest}
    assert parts.manifest["early_stop"] == whole.manifest["early_stop"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {"eval_strategy": "steps"}}, r"no rows are reserved to validate on\. Set holdout"),
        ({"train": {"eval_steps": 2}, "holdout": 0.2}, r"eval_steps has no effect, .*eval_strategy is no\."),
        ({"train": {"eval_steps": 2, "eval_strategy": "epoch"}, "holdout": 0.2}, r"eval_strategy is epoch\. Set eval_"),
        ({"stop": {"patience": 2}}, r"patience watches the validation loss, and none is computed"),
        ({"stop": {"patience": 2, "every": 3}}, r"keep one"),
        ({"trainer": "grpo", "task": "arithmetic", "data": None, "stop": {"patience": 2}},
         r"with trainer grpo there is none\. Watch the answers of the organism, `stop: {every: 10, above: 5}`, or"),
        ({"trainer": "grpo", "task": "arithmetic", "train": {"eval_steps": 2}}, "staytrue eval"),
    ],
)  # fmt: skip
def test_a_validation_that_cannot_be_is_refused(home, tmp_path, changes, sentence):
    with pytest.raises(RequestError, match=sentence):
        train.train(recipe_of(home, **changes), tmp_path / "run")


@pytest.mark.parametrize("stop", [None, {"patience": 1}])
def test_a_validation_loss_that_is_not_finite_is_a_failed_run(home, tmp_path, stop):
    """Without patience the run ends at its own check of the weights, and the loss is logged as null."""
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "learning_rate": 1e30}
    recipe = recipe_of(home, train=settings, holdout=0.25, **({"stop": stop} if stop else {}))
    with pytest.raises(TrainingError, match=r"validation loss is nan after step 1|trained weights are not finite"):
        train.train(recipe, tmp_path / "run")
    assert json.loads((tmp_path / "run/manifest.json").read_text())["state"] == "failed"
    assert [row["loss"] for row in read_rows(tmp_path / "run" / "validation.jsonl")][:1] == [None]


def test_the_command_says_that_it_stopped_early(home, tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 8, "learning_rate": 0.3}
    recipe = recipe_of(home, train=settings, holdout=0.25, stop={"patience": 2})
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    words = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", "staytrue.cli", *words], capture_output=True, text=True, check=True)
    assert re.search(r"Training stopped early, after step \d; the weights are those of step \d\.\nTrained", done.stdout)


def changed_machine(run, **facts):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["machine"] |= facts
    (run / "manifest.json").write_text(json.dumps(manifest))


def test_the_machine_is_recorded(stopped):
    recorded = json.loads((stopped / "manifest.json").read_text())["machine"]
    capability = torch.backends.cpu.get_cpu_capability()
    assert recorded == {"device": f"cpu ({capability})", "dtype": "float32", "threads": torch.get_num_threads()}


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"threads": 64}, r"\(threads 64, now \d+\): its result may differ by rounding .* Set OMP_NUM_THREADS to the"),
        ({"device": "cuda (H100)"}, r"\(device cuda \(H100\), now cpu \(\w+\)\): its result .* uninterrupted run\.$"),
    ],
)
def test_another_device_or_number_of_threads_is_a_sentence(stopped, facts, sentence):
    changed_machine(stopped, **facts)
    said = []
    assert train.resume(stopped, say=said.append).manifest["state"] == "done"
    assert len([line for line in said if re.search(sentence, line)]) == 1, said


def test_weights_in_another_precision_are_refused(stopped):
    changed_machine(stopped, dtype="bfloat16", device="cuda (H100)")
    sentence = r"began with weights in bfloat16 on cuda \(H100\), and here, on cpu .* in float32.*`dtype` in the recipe"
    with pytest.raises(RequestError, match=sentence):
        train.resume(stopped)


def test_a_run_without_a_record_of_its_machine_goes_on_without_a_sentence(stopped):
    manifest = json.loads((stopped / "manifest.json").read_text())
    del manifest["machine"]
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    said = []
    train.resume(stopped, say=said.append)
    assert [line for line in said if "machine" in line] == []


def test_comments_and_another_order_of_keys_are_no_other_recipe(home, stopped, tmp_path):
    whole = train.train(recipe_of(home), tmp_path / "whole")
    plain = yaml.safe_load((stopped / "recipe.yaml").read_text())
    plain["train"] = dict(reversed(plain["train"].items()))
    text = yaml.safe_dump(dict(reversed(plain.items())), sort_keys=False)
    (stopped / "recipe.yaml").write_text(f"# a note\n{text}")
    parts = train.resume(stopped)
    assert parts.manifest["adapter"] == whole.manifest["adapter"]
    assert parts.manifest["recipe"] == sha256_of(stopped / "recipe.yaml")


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_a_run_that_was_moved_or_copied_goes_on(home, stopped, tmp_path, how):
    whole = train.train(recipe_of(home), tmp_path / "whole")
    how(stopped, tmp_path / "elsewhere" / "run")
    assert train.resume(tmp_path / "elsewhere" / "run").manifest["adapter"] == whole.manifest["adapter"]


def test_rows_that_were_appended_to_the_data_are_refused(home, stopped):
    rows = (home / "rows.jsonl").read_text()
    try:
        (home / "rows.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
        with pytest.raises(RequestError, match=r"began with data whose .*rows\.jsonl was .* Restore what was there"):
            train.resume(stopped)
    finally:
        (home / "rows.jsonl").write_text(rows)


def test_another_model_in_its_folder_is_refused(home, stopped):
    weights = home / "model" / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(
            RequestError, match=r"began with model whose sha256 was .* Restore what was there, or train"
        ):
            train.resume(stopped)
    finally:
        weights.write_bytes(content)


def test_a_folder_that_cannot_be_written_is_refused(stopped, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == stopped and mode == os.W_OK))
    with pytest.raises(RequestError, match=r"run cannot be written.*Make it writable, or resume a copy of it\."):
        train.resume(stopped)


def test_temporary_files_of_a_killed_process_are_gone_after_the_resume(home, tmp_path):
    recipe = recipe_of(home, [], train={"max_steps": 4})
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "run", Stopping(3))
    left = [tmp_path / "run" / ".3b826422c8414320ac5c19d30d7cdddb", tmp_path / "run" / "model" / f".{32 * 'a'}"]
    own = tmp_path / "run" / ".note"
    for file in [*left, own]:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{")
    train.resume(tmp_path / "run")
    assert [file.exists() for file in [*left, own]] == [False, False, True]
