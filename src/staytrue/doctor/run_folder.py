"""Looks at a run folder: is it whole, how did it end, can it go on? It changes nothing. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from staytrue.config.recipe import read
from staytrue.doctor.finding import Finding
from staytrue.errors import FolderInUseError, RequestError
from staytrue.evals.results.stored_summary import read_summary
from staytrue.runs.checkpoints import Checkpoints, step_of
from staytrue.runs.finished import fails_again, way_to_finish
from staytrue.utils.console import quoted
from staytrue.utils.files import read_rows, sha256_of
from staytrue.utils.run_dir import RunDir, locked, versions
from staytrue.utils.validation import in_one_line
from staytrue.verify.files import adapter_settings_are_same, recipe_is_same


def findings(path: Path) -> Iterator[Finding]:
    """Every finding about a run folder.

    Raises:
        RequestError: it is no run folder.
    """
    manifest = RunDir.open(path).manifest
    yield _recipe(path, manifest)
    yield _log(path, manifest)
    broken: list[str] = []
    newest = Checkpoints(path / "checkpoints", run=manifest.get("id")).newest(broken.append)
    for sentence in broken:
        yield Finding("checkpoint", sentence, "Delete it; `--resume` takes an older one.", hinders=False)
    yield _state(path, manifest, None if newest is None else step_of(newest))
    if manifest["state"] == "done":
        yield _trained(path, manifest)
        yield _evaluation(path)
    yield _versions(manifest)


def _recipe(path: Path, manifest: dict[str, Any]) -> Finding:
    file = path / "recipe.yaml"
    try:
        read(file)
    except RequestError as error:
        return Finding("recipe", str(error), "Restore recipe.yaml, or train again with another --out.")
    if "recipe" in manifest and not recipe_is_same(path, manifest):
        return Finding("recipe", "recipe.yaml is not the one that was trained", "Undo the edit.")
    return Finding("recipe", "recipe.yaml is the one that was trained")


def _log(path: Path, manifest: dict[str, Any]) -> Finding:
    try:
        rows = read_rows(path / "metrics.jsonl")
        steps = [int(row["step"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        return Finding("log", f"metrics.jsonl cannot be read ({in_one_line(error)})", "Restore it, or train again.")
    if steps != sorted(set(steps)):
        return Finding("log", "metrics.jsonl has steps twice or out of order", "Restore it, or train again.")
    if manifest["state"] == "done" and (fault := _fault_of_log(path / "metrics.jsonl", manifest, len(rows))):
        return Finding("log", f"metrics.jsonl {fault}", "Restore it, or train again.")
    return Finding("log", f"{len(rows)} steps logged" if rows else "no step is logged yet")


def _fault_of_log(file: Path, manifest: dict[str, Any], steps: int) -> str | None:
    """What is wrong with a finished run's log, by its hash; older manifests have none."""
    if not file.is_file():
        return "is missing"
    expected = manifest.get("logs", {}).get(file.name)
    if expected is None:
        return None if steps else "has no step, and the run is done"
    return None if sha256_of(file) == expected else "was changed after the run"


def _state(path: Path, manifest: dict[str, Any], step: int | None) -> Finding:
    """The state of the run, and the way to finish it."""
    state, where = (
        manifest["state"],
        "it has no checkpoint, so it starts over" if step is None else f"after step {step}",
    )
    if state == "done":
        return Finding("state", "done")
    try:
        with locked(path):
            pass
    except FolderInUseError:
        return Finding("state", f"{state}; a process writes into the folder now")
    reason = f": {manifest['reason']}" if "reason" in manifest else ""
    if state == "running":
        reason = ", but no process writes into the folder: it was killed"
    if fails_again(manifest):
        return Finding("state", f"{state}{reason}", way_to_finish(path, manifest))
    return Finding("state", f"{state}{reason}", f"`staytrue train --resume {quoted(path)}` goes on ({where}).")


def _trained(path: Path, manifest: dict[str, Any]) -> Finding:
    """Whether `model/` holds what was trained: an adapter, or a whole model."""
    file = path / "model" / "adapter_model.safetensors"
    if "weights" in manifest:
        if not (path / "model").is_dir():
            return Finding("model", f"{path / 'model'} is missing", "Train again with another --out.")
        if sha256_of(path / "model") != manifest["weights"]:
            return Finding("model", f"{path / 'model'} is not the one that was trained", "Restore it, or train again.")
        return Finding("model", "model/ holds the whole model that was trained")
    if not file.is_file():
        return Finding("adapter", f"{file} is missing", "Train again with another --out.")
    if sha256_of(file) != manifest.get("adapter"):
        return Finding("adapter", f"{file} is not the one that was trained", "Restore it, or train again.")
    if not adapter_settings_are_same(path, manifest):
        config = path / "model" / "adapter_config.json"
        return Finding("adapter", f"{config} is not the one that was trained", "Restore it, or train again.")
    return Finding("adapter", "model/ holds the adapter that was trained")


def _evaluation(path: Path) -> Finding:
    with suppress(FileNotFoundError):
        try:
            read_summary(path / "eval")
        except RequestError as error:
            fault = in_one_line(error.__cause__ or error)
            remedy = f"`staytrue eval {quoted(path)}` writes it again; stored answers are kept."
            return Finding("evaluation", f"eval/summary.json cannot be read ({fault})", remedy)
        return Finding("evaluation", "eval/ holds answers and a summary")
    return Finding("evaluation", "none yet", f"`staytrue eval {quoted(path)}` makes one.", hinders=False)


def _versions(manifest: dict[str, Any]) -> Finding:
    began, now = manifest.get("versions", {}), versions()
    other = [f"{name} {began.get(name)}, now {version}" for name, version in now.items() if began.get(name) != version]
    if not other:
        return Finding("versions", "those that the run began with")
    return Finding(
        "versions", "; ".join(other), "Results may differ; `--resume` needs --allow-versions.", hinders=False
    )
