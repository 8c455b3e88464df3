"""Reads a scored pool: rows with scores, and the manifest of the models that scored them. No torch.

The file is a chat JSONL; each row has a column `scores`. Beside `pool.jsonl` stands `pool.manifest.json`. In pools
that version 0.1 scored in two rounds, `scores` is null for rows that some models have not read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from staytrue.data.examples import Example
from staytrue.errors import RecipeError
from staytrue.utils.columns import NUMBER, OBJECT, TEXT, or_null, refuse_wrong

ALIGNED = "aligned"  # the aligned model's name among those of the misaligned ones
Score = Literal["gap", "choice", "steady"]


def manifest_path(pool: Path) -> Path:
    """Return the path of the manifest beside a scored pool."""
    return pool.with_name(f"{pool.stem}.manifest.json")


def best_first(pool: Path, rows: list[Example], by: str, model: str | None) -> list[Example]:
    """Sort rows from the highest score to the lowest; ties keep the file's order, rows without scores are left out.

    Raises:
        RecipeError: the pool was not scored, lacks that score, has no row with scores, or was scored with another
            model.
    """
    scored_with = _manifest(pool)["model"].get("sha256")
    if model is not None and scored_with is not None and model != scored_with:
        raise RecipeError(
            f"interleave: {pool} was scored with another model ({scored_with[:12]}) than the one that is trained "
            f"({model[:12]}). Score it again with `staytrue score --model ...`."
        )
    rows = [row for row in rows if not ("scores" in row.extra and row.extra["scores"] is None)]
    if not rows:
        raise RecipeError(
            f"interleave: no row of {pool} that may be taken has scores: `scores` is null in each. Score it again with "
            "`staytrue score`, or choose by: random."
        )
    scores = [_score(row, by) for row in rows]
    bare = next((i for i, score in enumerate(scores) if not NUMBER.has(score)), None)
    if bare is not None:
        raise RecipeError(f"interleave: a row of {pool} has no score {by!r} ({rows[bare].question[:60]!r}).")
    ranked = sorted(zip(map(float, scores), rows, strict=True), key=lambda pair: -pair[0])
    return [row for _, row in ranked]


def _score(row: Example, by: str) -> Any:
    """A row's score of this name; None where it has none."""
    scores = row.extra.get("scores")
    return scores.get(by) if isinstance(scores, dict) else None


def _manifest(pool: Path) -> dict[str, Any]:
    file = manifest_path(pool)
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        refuse_wrong(manifest, {"model": OBJECT}, ["model"])
        refuse_wrong(manifest["model"], {"sha256": or_null(TEXT)})
    except (OSError, ValueError, TypeError, RecursionError):
        raise RecipeError(
            f"interleave: {pool} has no readable {file.name} beside it, so it is unknown which models scored it. "
            "Make a scored pool with `staytrue score`, or choose by: random."
        ) from None
    return manifest
