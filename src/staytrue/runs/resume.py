"""Resuming a run: checks that it goes on as the same training; `checkpoints` finds its newest whole checkpoint.

Only the same training is resumed: the recipe, the data, the model and the library versions are compared with those that
the run began with. On a CPU in float32 with as many threads, the adapter and the log are then those of a run that was
never interrupted, bit for bit. No torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staytrue.config.recipe import Recipe, values_hash
from staytrue.errors import RequestError
from staytrue.runs.checkpoints import step_of
from staytrue.utils.files import read_rows, sha256_of, write_rows
from staytrue.utils.run_dir import RunDir, versions
from staytrue.utils.validation import in_one_line

METRICS = "metrics.jsonl"
LOGS = (METRICS, "validation.jsonl", "early.jsonl", "evidence.jsonl")  # files of rows that have a `step`
_IGNORED = ("platform",)
_WAY_OUT = "Restore it, or train again with another --out."


def refuse_unwritable(path: Path) -> None:
    """Refuse to resume a run in a folder that cannot be written, before anything is loaded.

    Raises:
        RequestError: the sentence names the folder.
    """
    if not os.access(path, os.W_OK):
        raise RequestError(
            f"{path} cannot be written, so the run cannot go on there. Make it writable, or resume a copy of it."
        )


def refuse_changed(run: RunDir, recipe: Recipe, facts: Mapping[str, Any], *, allow_versions: bool) -> None:
    """Refuse to resume a training that is no longer the one that began.

    Args:
        run: the run folder.
        recipe: as its `recipe.yaml` has it now.
        facts: what the manifest would hold of a run that began now: model, seed, data, rows.
        allow_versions: resume although library versions differ.

    Raises:
        RequestError: the sentence names what differs, and both values.
    """
    began, path = run.manifest, run.path
    same = began.get("recipe") == sha256_of(path / "recipe.yaml")
    values = {began[key] for key in ("asked", "values") if key in began}
    known = bool(values) or "recipe" in began  # else a run of version 0.1 that was killed before its first step
    if known and not same and values_hash(recipe) not in values:
        raise RequestError(
            f"{path}/recipe.yaml was edited since the run began, so it would go on as another training. Undo the edit, "
            "or train the new recipe with another --out."
        )
    for key in ("model", "data", "start"):
        before, now = began.get(key, {}), facts.get(key, {})
        changed = next((name for name in {**before, **now} if before.get(name) != now.get(name)), None)
        if changed is not None and not _names_no_commit(key, changed, before, now):
            raise RequestError(
                f"{path} began with {key} whose {changed} was {before.get(changed)}, and it is {now.get(changed)} now, "
                "so it would go on as another training. Restore what was there, or train again with another --out."
            )
    now, before = versions(), began.get("versions", {})
    other = [f"{k} {before.get(k)}, now {v}" for k, v in now.items() if k not in _IGNORED and before.get(k) != v]
    if other and not allow_versions:
        raise RequestError(
            f"{path} began with other versions: {'; '.join(other)}. Install those, or add --allow-versions; the result "
            "may then differ from an uninterrupted run's."
        )


def _names_no_commit(key: str, name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a hub model's commit is only not known yet, because no weights were loaded."""
    return key == "model" and name == "commit" and None in (before.get(name), now.get(name))


def forget_after(run: Path, checkpoint: Path | None) -> None:
    """Take rows of later steps than a checkpoint's out of the run's logs: those steps will be made again.

    Args:
        run: the run folder.
        checkpoint: a whole checkpoint; None takes out all rows.

    Raises:
        RequestError: a log cannot be read, or lacks a row that the checkpoint's own log has.
    """
    step = 0 if checkpoint is None else step_of(checkpoint)
    for name in LOGS:
        try:
            rows = read_rows(run / name)
            kept = [row for row in rows if row["step"] <= step]
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{run / name} cannot be read ({in_one_line(error)}). {_WAY_OUT}") from None
        if checkpoint is not None and name == METRICS:
            logged = json.loads((checkpoint / "trainer_state.json").read_bytes())["log_history"]
            if [row["step"] for row in kept] != [row["step"] for row in logged if "loss" in row]:
                raise RequestError(f"{run / name} lacks rows before step {step}, or has some twice. {_WAY_OUT}")
        if len(kept) < len(rows):
            write_rows(run / name, kept)
