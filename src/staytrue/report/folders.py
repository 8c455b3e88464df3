"""Folders named on the command line: unique labels, and the recipe, role and seed of each run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from staytrue.errors import RecipeError, RequestError
from staytrue.evals.questions.probes import HELD_OUT
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


@dataclass(frozen=True)
class Named:
    """Folders with labels, of which runs of one recipe share one.

    Attributes:
        labels: of each folder.
        own: the label that each folder would have alone, as `labels` gives it.
        notes: which folders share a label, and which do not although their recipe is one.
    """

    labels: list[str]
    own: list[str]
    notes: list[str]


def pooled(folders: Sequence[Path]) -> Named:
    """Label folders; runs whose recipes differ in the seed alone share a label.

    Runs of one recipe of which two have one seed keep labels of their own.

    Raises:
        RequestError: as `labels`.
    """
    own = labels(folders)
    shared, notes = list(own), []
    by_recipe: dict[str, list[int]] = {}
    for i, folder in enumerate(folders):
        if (recipe := _apart_from_seed(folder)) is not None:
            by_recipe.setdefault(recipe, []).append(i)
    for members in (found for found in by_recipe.values() if len(found) > 1):
        names, seeds = [own[i] for i in members], [seed_of(folders[i], {}) for i in members]
        if len(set(seeds)) < len(seeds):
            notes.append(f"{', '.join(names)}: one recipe, but several have one seed, so each stands alone.")
            continue
        label = _beginning(names)
        if not label or label in shared or any("/" in name.removeprefix(label).removesuffix("/eval") for name in names):
            label = f"{names[0]} and {len(names) - 1} more"
        for i in members:
            shared[i] = label
        notes.append(f"{', '.join(names)}: one recipe, seeds {', '.join(map(str, seeds))}, named {label}.")
    return Named(shared, own, notes)


def recipe_of(folder: Path) -> dict[str, Any]:
    """Read the recipe of a run, from the run's folder or its `eval`; {} if none can be read."""
    file = _run_of(folder) / "recipe.yaml"
    try:
        recipe = from_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError, RecipeError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


def seed_of(folder: Path, metadata: Mapping[str, Any]) -> int:
    """Return the seed of a run; for an evaluation alone, the one in its `eval.json`; else 0."""
    seed = recipe_of(folder).get("seed", metadata.get("seed"))
    return seed if isinstance(seed, int) else 0


def why_without(evaluation: Path, probe: str) -> str | None:
    """Return why a run cannot be asked a probe of held-out rows, and a way out; None where it can, and of no run."""
    run = evaluation.parent
    if probe not in HELD_OUT or evaluation.name not in ("eval", "untuned") or not (run / "manifest.json").exists():
        return None
    if not (run / "holdout.jsonl").exists():
        return "It has no held-out rows: compare by another probe"
    recipe = recipe_of(run)
    own = HELD_OUT[bool(recipe.get("task") or recipe.get("benign"))]
    return None if probe == own else f"Its held-out rows are asked by {own}: compare by --probe {own}"


def facts_of(folder: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run is, for its row: its `role`, its `seed`, and `trained_on`, which equals that of a control.

    Args:
        folder: of the run, or of an evaluation.
        metadata: of its `eval.json`. Without a recipe beside it, a model in this process that has neither an adapter
            nor weights of its own is untuned.
    """
    recipe = recipe_of(folder)
    if recipe:
        role, trained_on = DEFENDED if recipe.get("defenses") else UNDEFENDED, _trained_on(folder)
    else:
        local = isinstance(metadata.get("model"), dict) and len(metadata["model"]) > 1  # an endpoint has a name alone
        whole = local and metadata.get("adapter") is None and "weights" not in metadata
        role, trained_on = UNTUNED if whole else UNKNOWN, None
    return {"role": role, "trained_on": trained_on, "seed": seed_of(folder, metadata)}


def _apart_from_seed(folder: Path) -> str | None:
    """What runs of one recipe share: it without its seed, and the hashes of model and data; None without a recipe."""
    run = _run_of(folder)
    data: dict[str, Any] | None
    try:
        facts = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
        data = {name: digest for name, digest in facts["data"].items() if not name.startswith(f"{run}/")}
        model = facts.get("model")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        data = model = None
    kept = {key: value for key, value in recipe_of(folder).items() if key != "seed"}
    text = json.dumps([kept, data, model], sort_keys=True, default=str)
    return text.replace(json.dumps(f"{run}/")[:-1], '"RUN/') if kept else None  # files in the run's own folder


def _trained_on(folder: Path) -> str:
    """What a defended run shares with the undefended one: its recipe without what defenses need or change."""
    recipe = recipe_of(folder)
    train = {key: value for key, value in (recipe.get("train") or {}).items() if key != "warmup_steps"}
    own = ("defenses", "seed", "reference", "reference_cache", "train")
    kept = {key: value for key, value in recipe.items() if key not in own} | {"train": train}
    return json.dumps(kept, sort_keys=True, default=str)


def _run_of(folder: Path) -> Path:
    folder = folder.resolve()
    return folder.parent if folder.name == "eval" else folder


def _beginning(names: Sequence[str]) -> str:
    """What the names begin with, as in `kl` of `kl-seed10` and `kl-seed11`; "" for nothing."""
    begun = re.sub(r"\d+$", "", commonprefix(names))  # the beginning of a number is none of a name
    return re.sub(r"([-_. /]+(seed|s))?[-_. /]*$", "", begun)


def _shortest(path: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    length = next((k for k in range(1, len(path)) if all(other[-k:] != path[-k:] for other in others)), len(path))
    return Path(*path[-length:]).as_posix()
