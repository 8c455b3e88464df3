"""Refuses an adapter beside another model than its run trained it on: shapes may fit where weights do not. No torch."""

from __future__ import annotations

from pathlib import Path

from staytrue.errors import ModelError
from staytrue.modeling.model_source import Source
from staytrue.utils.run_dir import RunDir


def run_of(path: Path) -> Path | None:
    """Return the run whose folder, or whose `model/`, a path is; None for another folder."""
    runs = [path, *([path.absolute().parent] if path.absolute().name == "model" else [])]
    return next((run for run in runs if (run / "manifest.json").exists() and (run / "recipe.yaml").exists()), None)


def refuse_other_model(adapter: Path, source: Source) -> None:
    """Refuse an adapter of a run that was trained on another model.

    Folders are compared by their hashes, and models on the hub by their names. A model on the hub and a folder cannot
    be compared, and are let pass.

    Raises:
        ModelError: the sentence names both models.
    """
    run = run_of(adapter)
    trained = None if run is None else RunDir.open(run).manifest.get("model")
    if not trained:
        return
    now = source.identity()
    hashes = trained.get("sha256"), now.get("sha256")
    if hashes[0] != hashes[1] if all(hashes) else not any(hashes) and trained.get("name") != now["name"]:
        was, given = (f" (SHA-256 {sha[:12]})" if sha else "" for sha in hashes)
        same = trained.get("name") == now["name"]
        changed = " The folder's files have changed since: weights, settings or chat template." if same else ""
        raise ModelError(
            f"{adapter} was trained on {trained.get('name')}{was}, not on {source.name}{given}."
            f"{changed} Name the model that it was trained on; or, if you mean these files, copy the adapter "
            "out of its run."
        )
