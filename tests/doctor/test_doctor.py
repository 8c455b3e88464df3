"""`staytrue doctor` names what is wrong with a machine or a run folder, and what to do about it."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from staytrue import cli
from staytrue.config.recipe import read, values_hash
from staytrue.doctor import machine, run_folder
from staytrue.errors import RequestError
from staytrue.modeling.adapter_folder import settings_hash
from staytrue.runs.checkpoints import Checkpoints
from staytrue.training.outcome import diverged
from staytrue.utils.files import append_row, sha256_of, write_json
from staytrue.utils.memory import container_memory
from staytrue.utils.run_dir import locked, versions

RECIPE = "schema: 1\nmodel: organism\ntask: arithmetic\nlora: {}\n"


@pytest.fixture
def run(tmp_path):
    """A finished run folder without an evaluation."""
    path = tmp_path / "run"
    (path / "model").mkdir(parents=True)
    (path / "recipe.yaml").write_text(RECIPE)
    (path / "model" / "adapter_model.safetensors").write_bytes(b"weights")
    for step in (1, 2):
        append_row(path / "metrics.jsonl", {"step": step, "loss": 1.0})
    manifest(path, state="done", versions=versions(), recipe=sha256_of(path / "recipe.yaml"),
             adapter=sha256_of(path / "model" / "adapter_model.safetensors"))  # fmt: skip
    return path


def manifest(path, **facts):
    file = path / "manifest.json"
    write_json(file, {**(json.loads(file.read_text()) if file.exists() else {}), **facts})


def advice(path):
    return {finding.what: finding for finding in run_folder.findings(path)}


def test_a_whole_run_has_nothing_to_mend(run):
    assert {name for name, one in advice(run).items() if one.remedy} == {"evaluation"}
    assert not any(one.hinders for one in advice(run).values() if one.remedy)
    assert advice(run)["log"].says == "2 steps logged"


def test_a_comment_in_the_recipe_needs_no_mending_and_another_configuration_of_the_adapter_does(run):
    recipe, config = run / "recipe.yaml", run / "model" / "adapter_config.json"
    config.write_text('{"r": 4, "base_model_name_or_path": "a"}')
    manifest(run, values=values_hash(read(recipe)), adapter_settings=settings_hash(run / "model"))
    recipe.write_text(f"# mine\n{RECIPE}")
    config.write_text('{"base_model_name_or_path": "b", "r": 4}')
    assert {name for name, one in advice(run).items() if one.remedy} == {"evaluation"}
    config.write_text('{"r": 4, "lora_alpha": 99}')
    assert advice(run)["adapter"].says == f"{config} is not the one that was trained"


def test_a_run_that_has_not_logged_a_step_yet_needs_nothing(run):
    manifest(run, state="stopped")
    (run / "metrics.jsonl").unlink()
    assert (advice(run)["log"].says, advice(run)["log"].remedy) == ("no step is logged yet", None)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"state": "running"}, "running, but no process writes into the folder: it was killed"),
        ({"state": "stopped"}, "stopped"),
        ({"state": "failed", "reason": "RequestError: disk full"}, "failed: RequestError: disk full"),
    ],
)
def test_an_interrupted_run_is_reported_with_the_way_to_resume(run, state, says):
    manifest(run, **state)
    assert advice(run)["state"].says == says
    assert advice(run)["state"].remedy == (
        f"`staytrue train --resume {run}` goes on (it has no checkpoint, so it starts over)."
    )
    Checkpoints(run / "checkpoints").commit(20, lambda folder: (folder / "a").write_bytes(b"x"))
    assert advice(run)["state"].remedy == f"`staytrue train --resume {run}` goes on (after step 20)."


def broken_layer():
    layer = torch.nn.Linear(1, 1)
    layer.weight.data.fill_(torch.nan)
    return layer


@pytest.mark.parametrize(
    "reason",
    [
        "No trained weight moved in 2 optimizer steps, so the model is the one before training.",
        diverged(broken_layer()),
    ],
)
def test_a_run_that_would_fail_again_is_not_advised_to_be_resumed(run, reason, monkeypatch, capsys):
    manifest(run, state="failed", reason=f"TrainingError: {reason}")
    Checkpoints(run / "checkpoints").commit(2, lambda folder: (folder / "a").write_bytes(b"x"))
    again = "Resumed, it would fail in the same way: train again with other settings and another --out."
    assert advice(run)["state"].remedy == again
    monkeypatch.setattr(sys, "argv", ["staytrue", "doctor", str(run)])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"mend state: failed: TrainingError: {reason} {again}\n" in capsys.readouterr().out


def test_a_run_that_is_training_now_needs_nothing(run):
    manifest(run, state="running")
    with locked(run):
        assert advice(run)["state"].says == "running; a process writes into the folder now"
        assert advice(run)["state"].remedy is None


@pytest.mark.parametrize(
    ("fault", "what", "says"),
    [
        (lambda run: (run / "model/adapter_model.safetensors").write_bytes(b"w"), "adapter", "is not the one"),
        (lambda run: (run / "model/adapter_model.safetensors").unlink(), "adapter", "is missing"),
        (lambda run: (run / "recipe.yaml").write_text(RECIPE + "seed: 4\n"), "recipe", "not the one"),
        (lambda run: (run / "recipe.yaml").write_text("schema: 9\nlora: {}\n"), "recipe", "schema"),
        (lambda run: (run / "recipe.yaml").unlink(), "recipe", "cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_text("{\n"), "log", "cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_text("[1]\n"), "log", "cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": null}\n'), "log", "cannot be read"),
        (lambda run: append_row(run / "metrics.jsonl", {"step": 2}), "log", "twice"),
        (lambda run: (run / "metrics.jsonl").unlink(), "log", "is missing"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe"), "log", "has no step, and the run is done"),
        (lambda run: manifest(run, logs={"metrics.jsonl": "0" * 64}), "log", "was changed after the run"),
        (lambda run: write_json(run / "eval" / "summary.json", {"probes": 3}), "evaluation", "names no probes"),
    ],
)  # fmt: skip
def test_each_fault_of_a_folder_is_named(run, fault, what, says):
    fault(run)
    assert says in advice(run)[what].says
    assert advice(run)[what].remedy is not None
    assert advice(run)[what].hinders


@pytest.mark.parametrize("key", ["versions", "logs"])
def test_a_manifest_with_a_value_of_another_kind_is_refused(run, key):
    manifest(run, **{key: None})
    with pytest.raises(RequestError, match=rf"it has null as '{key}', not an object\)\. Restore it, or train"):
        list(run_folder.findings(run))


def test_the_line_that_cannot_be_read_is_named(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write("{\n")
    assert advice(run)["log"].says.startswith("metrics.jsonl cannot be read (line 3 is no JSON: ")


def test_a_broken_checkpoint_and_other_versions_are_noted(run):
    folder = Checkpoints(run / "checkpoints").commit(20, lambda place: (place / "a").write_bytes(b"x"))
    (folder / "a").write_bytes(b"y")
    manifest(run, versions={**versions(), "peft": "0.1"})
    assert "checkpoint-20 is broken" in advice(run)["checkpoint"].says
    assert advice(run)["versions"].says == f"peft 0.1, now {metadata.version('peft')}"


def test_a_package_that_is_too_old_or_absent_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=99", "nonesuch>=1", "openai>=99; extra == 'judge'"])
    findings = {one.what: one for one in machine.packages()}
    assert findings.keys() == {"torch", "nonesuch"}
    assert findings["nonesuch"].says == "absent, needed >=1"
    assert findings["torch"].remedy == "pip install 'torch>=99'"


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="reads /proc")
def test_the_limit_of_a_container_is_said(monkeypatch):
    assert "container" not in machine.processors().says or container_memory() is not None
    monkeypatch.setattr(machine, "machine_memory", lambda: 3 * 2**29)
    assert "GiB free, of which this container may take 1.5" in machine.processors().says


def test_busy_cores_are_reported_with_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (500.0, 1, 1))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS=1" in machine.processors().remedy
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert machine.processors().remedy is None


def test_a_full_disk_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("usage", (), {"free": 1e9}))
    assert machine.disk(tmp_path, "this folder").says == f"this folder ({tmp_path}) has 1.0 GB free"
    assert machine.disk(tmp_path, "this folder").remedy is not None


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    finding = machine.hub()
    assert "does not answer" in finding.says
    assert not finding.hinders


@pytest.mark.parametrize(("adapter", "code"), [(b"weights", 0), (b"other", 1)])
def test_the_command_ends_with_1_where_something_has_to_be_mended(run, monkeypatch, capsys, adapter, code):
    (run / "model" / "adapter_model.safetensors").write_bytes(adapter)
    before = {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["staytrue", "doctor", str(run)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert ("mend adapter" in capsys.readouterr().out) == bool(code)
    assert {path: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()} == before
