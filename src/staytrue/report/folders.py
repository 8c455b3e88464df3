"""Folders named on the command line: unique labels, and the recipe, role and seed of each run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from staytrue.errors import RecipeError, RequestError
from staytrue.evals.results.answer_store import evaluation_folder
from staytrue.report.rows import DEFENDED, UNDEFENDED, UNKNOWN, UNTUNED
from staytrue.utils.yaml12 import from_yaml


def labels(folders: Sequence[Path]) -> list[str]:
    """Label each folder by the shortest end of its path that is unique, as in `kl`, or `a/kl` beside `b/kl`.

    Raises:
        RequestError: a folder is named twice, or a run is named beside its own evaluation.
    """
    seen: set[Path] = set()
    for folder in folders:
        place = evaluation_folder(folder.resolve())
        if place in seen:
            raise RequestError(f"{folder} is named twice, or as a run and as its evaluation; name each folder once.")
        seen.add(place)
    parts = [folder.resolve().parts for folder in folders]
    return [_shortest(path, [*parts[:i], *parts[i + 1 :]]) for i, path in enumerate(parts)]


def recipe_of(folder: Path) -> dict[str, Any]:
    """Read the recipe of a run, from the run's folder or its `eval`; {} if none can be read."""
    folder = folder.resolve()
    file = (folder.parent if folder.name == "eval" else folder) / "recipe.yaml"
    try:
        recipe = from_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError, RecipeError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def seed_of(folder: Path, metadata: Mapping[str, Any]) -> int:
    """Return the seed of a run; for an evaluation alone, the one in its `eval.json`; else 0."""
    seed = recipe_of(folder).get("seed", metadata.get("seed"))
    return seed if isinstance(seed, int) else 0


def facts_of(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is, for its row: its `role`, its `seed`, and `trained_on`, which equals that of a control.

    Args:
        folder: of the run, or of an evaluation.
        metadata: of its `eval.json`. Without a recipe beside it, a model in this process that has neither an adapter
            nor weights of its own is untuned.
    """
    recipe = recipe_of(folder)
    if recipe:
        others = {key: value for key, value in recipe.items() if key not in ("defenses", "seed")}
        role, trained_on = DEFENDED if recipe.get("defenses") else UNDEFENDED, json.dumps(others, sort_keys=True)
    else:
        local = isinstance(metadata.get("model"), dict) and len(metadata["model"]) > 1  # an endpoint has a name alone
        whole = local and metadata.get("adapter") is None and "weights" not in metadata
        role, trained_on = UNTUNED if whole else UNKNOWN, None
    return {"role": role, "trained_on": trained_on, "seed": seed_of(folder, metadata)}


def _shortest(path: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    length = next((k for k in range(1, len(path)) if all(other[-k:] != path[-k:] for other in others)), len(path))
    return Path(*path[-length:]).as_posix()
