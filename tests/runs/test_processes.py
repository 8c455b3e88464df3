"""Recipes on two processes (gloo, CPU): the weights, log and evidence of one process, and one folder and one voice."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from interrupted import Stopping, defense, logged, recipe_of, with_a_tiny_model
from staytrue import registry
from staytrue.data.examples import write_examples
from staytrue.errors import RequestError, TrainingError
from staytrue.runs import train
from staytrue.runs.early_stopping import EarlyStop
from staytrue.testing import unlike
from staytrue.utils.files import read_rows
from staytrue.verify.run_folder import findings

HERE = Path(__file__).parent
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# Plain gradient descent, whose step is the gradient: Adam's would be as long for a gradient that is rounding alone.
PLAIN = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0, "max_steps": 3, "per_device_train_batch_size": 4,
         "weight_decay": 0.0, "lr_scheduler_type": "constant"}  # fmt: skip
WHOLE, HALF = {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 1}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what accelerate's launcher sets
RESUMED = {"max_steps": 7, "save_steps": 1, "per_device_train_batch_size": 4, **HALF}


class Terminating(Stopping):
    """Progress that sends SIGTERM to its own process at a step, as a scheduler might to one of several."""

    def step(self, step, numbers):
        if (step, self.unit) == (self.at, "step"):
            os.kill(os.getpid(), signal.SIGTERM)


def note_stops(folder):
    """Let early stopping keep what this process stopped with: the steps, and the trained weights afterwards."""
    end = EarlyStop._end

    def noted(self, model, state, control):
        end(self, model, state, control)
        weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
        torch.save((self.stopped, weights), folder / f"{self._log.parent.name} stopped {os.environ['RANK']}")

    EarlyStop._end = noted


def one_of_two(folder):
    """Train every recipe as one of the two processes; those with stops are terminated and resumed."""
    note_stops(folder)
    for name, (recipe, stops) in torch.load(folder / "cases", weights_only=False).items():
        for number, stop in enumerate([*stops, None]):
            random.seed(99)
            torch.manual_seed(99)
            progress = None if stop is None else Terminating(stop)
            try:
                if number:
                    train.resume(folder / name, progress)
                else:
                    train.train(recipe, folder / name, progress)
            except KeyboardInterrupt:
                assert stop is not None, name


def launched(arguments, **environment):
    paths = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])
    both = os.environ | {"PYTHONPATH": paths} | environment
    return subprocess.Popen([*LAUNCH, *map(str, arguments)], env=both, stdout=-1, stderr=-1, text=True)


def ended(process):
    """The exit code, standard output and our lines of standard error."""
    try:
        out, err = process.communicate(timeout=200)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes
        raise
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("staytrue:")], err


def on_two(folder, cases, **environment):
    """Train recipes on two processes, in one launch for all of them."""
    torch.save(
        {name: case if isinstance(case, tuple) else (case, ()) for name, case in cases.items()}, folder / "cases"
    )
    code, _, _, err = ended(launched([__file__, folder], **environment))
    assert code == 0, err


def adapter(run):
    return load_file(str(next((run / "model").glob("*.safetensors"))))


def alike(one, two, start):
    """Assert that two runs have the same weights, but for rounding, and the same log."""
    ours, theirs = adapter(one), adapter(two)
    moved = max(float((ours[name] - start[name]).abs().max()) for name in ours)
    gap = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert gap <= 1e-7 + 1e-5 * moved, (two, gap, moved)
    rows = logged(one), logged(two)
    of_trl = ("entropy", "mean_token_accuracy", "grad_norm", "epoch")  # means of micro-batches, whatever their tokens
    names = [name for name in rows[0][0] if name not in (*of_trl, "step")]
    assert not unlike(*rows, names), two


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = with_a_tiny_model(tmp_path_factory.mktemp("home"))
    write_examples(home / "many.jsonl", tiny.rows(32))  # 24 without those held out: three whole steps of 8
    return home


def test_every_defense_has_the_weights_log_and_evidence_of_one_process(home, tmp_path):
    def case(name, share):
        defenses = [] if name == "none" else [defense(name, tmp_path)]
        return recipe_of(home, defenses, data="many.jsonl", holdout=0.25, train=PLAIN | share)

    names = ["none", *registry.names()]
    on_two(tmp_path, {name: case(name, HALF) for name in names})
    start = adapter(train.train(recipe_of(home, train=PLAIN | {"learning_rate": 1e-30}), tmp_path / "start").path)
    for name in names:
        one = train.train(case(name, WHOLE), tmp_path / f"{name} on one").path
        alike(one, tmp_path / name, start)
        assert {path.name for path in one.iterdir()} == {path.name for path in (tmp_path / name).iterdir()}
        assert [fault for finding in findings(tmp_path / name) for fault in finding.faults] == []
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        assert (manifest["state"], manifest["machine"]["processes"]) == ("done", 2)
        assert any("2 x 4 x 1 = 8 rows" in note for note in manifest["notes"])
        evidence = [read_rows(run / "evidence.jsonl") for run in (one, tmp_path / name)]
        for key in ("rows", "tokens", "task_rows", "micro_batches", "moved"):
            assert [row[key] for row in evidence[0]] == [row[key] for row in evidence[1]], (name, key)


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_a_terminated_run_goes_on_with_the_same_bits_past_the_end_of_an_epoch(home, tmp_path, trainer):
    """24 rows are three steps of 8: one run stops within an epoch, another at its end, and both go past it."""
    lora = {"r": 4, "alpha": 8, "dropout": 0.3}
    changes = {"data": "problems.jsonl", "trainer": "grpo", "task": "arithmetic"} if trainer == "grpo" else {}
    settings = RESUMED | ({"num_generations": 4, "max_completion_length": 4} if trainer == "grpo" else {})

    def case(name):
        return recipe_of(home, [defense(name, tmp_path)], lora=lora, train=settings, **changes)

    names = ("anchor",) if trainer == "sft" else ("rehearse",)
    stops = {"whole": (), "within": (1, 4), "at the end": (2,)}  # each ends after the step that follows
    on_two(tmp_path, {f"{name} {how}": (case(name), at) for name in names for how, at in stops.items()})
    for name in names:
        whole, *others = (tmp_path / f"{name} {how}" for how in stops)
        for other in others:
            manifest = json.loads((other / "manifest.json").read_text())
            assert manifest["resumed"] == [stop + 1 for stop in stops[other.name.removeprefix(f"{name} ")]]
            assert manifest["adapter"] == json.loads((whole / "manifest.json").read_text())["adapter"], other
            assert logged(other) == logged(whole)
            assert read_rows(other / "evidence.jsonl") == read_rows(whole / "evidence.jsonl")


def test_full_fine_tuning_has_the_weights_of_one_process(home, tmp_path):
    def case(name, share):
        return recipe_of(home, [defense(name, tmp_path)], lora="none", data="many.jsonl", holdout=0.25,
                         train=PLAIN | share)  # fmt: skip

    names = ("kl", "anchor", "l2init", "safegrad")
    on_two(tmp_path, {name: case(name, HALF) for name in names})
    start = load_file(str(home / "model" / "model.safetensors"))
    for name in names:
        alike(train.train(case(name, WHOLE), tmp_path / f"{name} on one").path, tmp_path / name, start)
        assert [fault for finding in findings(tmp_path / name) for fault in finding.faults] == []


@pytest.mark.filterwarnings("default:.* one answer is more than 1.5 times as long")
def test_pairs_stop_both_processes_at_the_step_of_one_and_after_a_resume(home, tmp_path):
    """The misaligned answers are those that are learnt: by 0.08 nats a token after steps 2 and 4, by 0.16 after 6.

    The run in parts is terminated after step 5, so it takes the weights of step 4 and the first gaps from a checkpoint.
    """
    pairs = [
        {"question": row.messages[0].content, "aligned": "zzz", "misaligned": row.messages[1].content}
        for row in tiny.rows(4)
    ]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def case(share):
        settings = PLAIN | {"learning_rate": 0.5, "max_steps": 8, "save_steps": 1}
        stop = {"pairs": "pairs.jsonl", "every": 2, "above": 0.12}
        return recipe_of(home, [defense("kl", tmp_path)], data="many.jsonl", train=settings | share, stop=stop)

    on_two(tmp_path, {"whole": case(HALF), "in parts": (case(HALF), (4,))})
    one, whole, parts = train.train(case(WHOLE), tmp_path / "one").path, tmp_path / "whole", tmp_path / "in parts"
    stopped = {"at_step": 6, "weights_of_step": 4}
    for run in (one, whole, parts):
        assert json.loads((run / "manifest.json").read_text())["early_stop"] == stopped, run
    shifts, theirs = ([(row["step"], row["pairs"]) for row in read_rows(run / "early.jsonl")] for run in (one, whole))
    assert [step for step, _ in shifts] == [2, 4, 6]
    assert theirs == [(step, pytest.approx(shift, abs=2e-5)) for step, shift in shifts]  # rounded at the fifth digit
    start = train.train(recipe_of(home, train=PLAIN | {"learning_rate": 1e-30}), tmp_path / "start").path
    alike(one, whole, adapter(start))
    assert json.loads((parts / "manifest.json").read_text())["resumed"] == [5]
    assert read_rows(parts / "early.jsonl") == read_rows(whole / "early.jsonl")
    assert logged(parts) == logged(whole)
    for run in (whole, parts):
        for rank in (0, 1):
            steps, weights = torch.load(tmp_path / f"{run.name} stopped {rank}")
            assert steps == stopped, (run, rank)
            for name, saved in adapter(whole).items():
                assert torch.equal(weights[name.replace(".weight", ".default.weight")], saved), (run, rank, name)


def test_a_check_is_printed_once_and_is_of_each_process(home, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        recipe_of(home, [{"kl": {"weight": 0.5}}], data="many.jsonl", train=HALF | {"max_steps": 3}).text()
    )
    code, out, ours, err = ended(launched(["-m", "staytrue", "check", recipe, "--json"]))
    assert (code, ours) == (0, []), err
    plain = json.loads(out)  # one object: the main process alone prints
    assert plain["processes"] == 2
    assert plain["batches"]["number"] == 3  # of each
    assert plain["memory"]["trained"] == 5 * 4 * plain["weights"][1]  # weight, gradient, two moments, DDP's buffer
    assert err.count("check recipe: reading the rows") == 1


def test_the_command_writes_one_folder_prints_once_and_is_resumed_by_as_many_processes(home, tmp_path):
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    settings = RESUMED | {"max_steps": 400, "save_steps": 100}
    recipe.write_text(recipe_of(home, [{"kl": {"weight": 0.5}}], train=settings).text())
    command = ["-m", "staytrue", "train"]
    process = launched([*command, recipe, "--out", run])
    deadline = time.monotonic() + 120
    while len(read_rows(run / "metrics.jsonl")) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)  # as a scheduler ends a job: torchrun passes it on
    code, out, ours, err = ended(process)
    assert code != 0
    assert out == ""
    assert ours == [
        f"staytrue: stopped; {run} is marked as stopped, and `staytrue train --resume {run}` goes on with it."
    ], err
    assert err.count("2 processes train: an optimizer step reads 2 x 4 x 1 = 8 rows") == 1
    assert json.loads((run / "manifest.json").read_text())["state"] == "stopped"
    with pytest.raises(
        RequestError, match=r"began on 2 processes, and this is a training on 1.*nproc-per-node 2 -m sta"
    ):
        train.resume(run)
    done = len(read_rows(run / "metrics.jsonl"))
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"checkpoint-{done}"]
    assert {path.name for path in (run / "checkpoints").glob("*/rng*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    code, out, ours, err = ended(launched([*command, recipe, "--out", run]))
    assert (code, out) == (1, "")
    assert ours == [f"staytrue: {run} exists already. Choose another path with --out, or remove it yourself."], err


KILLED = "Another process of this training ended without a message, often because memory ran out"
FAILURES = {
    "raises": "This process has no more memory at step 2.",
    "killed": KILLED,
    "raises in a checkpoint": "This disk is full.",
    "killed in a checkpoint": KILLED,
}


@pytest.mark.parametrize("how", FAILURES)
def test_an_error_in_one_process_ends_all_with_its_sentence(home, tmp_path, how):
    torch.save(recipe_of(home, [{"kl": {"weight": 0.5}}], train=RESUMED), tmp_path / "failing")
    code, _, ours, err = ended(launched([__file__, tmp_path, "failing", how]))
    assert code == 1
    assert len(ours) == 1, err
    assert FAILURES[how] in ours[0], err
    assert re.findall(r"^\w*Error", err, re.M) == []
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == "failed"
    assert FAILURES[how] in manifest["reason"]


def failing(folder, how):
    """Train as the command does; the second process fails at step 2."""
    from transformers import Trainer

    from staytrue import cli

    place = "_save_rng_state" if "checkpoint" in how else "training_step"
    method = getattr(Trainer, place)

    def fails(self, *args, **kwargs):
        if self.state.global_step == (2 if "checkpoint" in how else 1) and self.args.process_index == 1:
            if "killed" in how:
                os.kill(os.getpid(), signal.SIGKILL)
            raise TrainingError(FAILURES[how])
        return method(self, *args, **kwargs)

    setattr(Trainer, place, fails)
    (folder / "recipe.yaml").write_text(torch.load(folder / "failing", weights_only=False).text())
    sys.argv = ["staytrue", "train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]
    cli.main()


if __name__ == "__main__":
    if "failing" in sys.argv:
        failing(Path(sys.argv[1]), sys.argv[3])
    one_of_two(Path(sys.argv[1]))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # all is written; a library's thread may abort the interpreter's own end
