"""A study's runs, on several processes: each cell is trained, measured and written down, or found where it was.

A finished run is not made again, so a stopped study goes on. `results.json` is written whole after each.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from staytrue.config import recipe as recipes
from staytrue.evals.questions.files import SUFFIXES
from staytrue.registry import labelled
from staytrue.studies import prerequisites
from staytrue.studies.config import Cell, Study, cells, row
from staytrue.training.reference.cache_checks import why_no_cache
from staytrue.utils import workers
from staytrue.utils.files import sha256_of, write_atomic, write_json
from staytrue.utils.run_dir import SCHEMA
from staytrue.utils.workers import Job

_FIRST = 2  # the first runs go before what others need is made, so that there is something to see early


def run(
    study: Study, out: Path, processes: int | None = None, reference_cache: Path | None = None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run or find every cell, and give each with its row of `results.json`, as it ends.

    Args:
        study: what to run.
        out: the study's folder.
        processes: how many runs at a time, each with one thread; as many as the machine is good for by default.
        reference_cache: a folder for the reference's states of rows, for those runs that can use it.
    """
    every = {cell.folder: cell for cell in cells(study)}
    stored = {folder: _stored(out / folder, cell) for folder, cell in every.items()}
    rows = {folder: row(every[folder], *found) for folder, found in stored.items() if found is not None}
    _written(study, out, rows)  # what a study's folder is known by
    for folder in list(rows):
        yield every[folder], rows[folder]
    todo = [cell for folder, cell in every.items() if folder not in rows]
    if not todo:
        return
    by_name = {cell.folder: cell for cell in todo}
    for job, made in workers.run(_jobs(todo, out, reference_cache), processes or workers.usable()):
        if job.name in by_name:
            rows[job.name] = row(by_name[job.name], *made)
            yield by_name[job.name], _written(study, out, rows)[job.name]


def make(cell: Cell, out: Path, reference_cache: Path | None = None) -> tuple[dict[str, Any], float]:
    """Train and measure one cell; what it found, and in how many seconds."""
    from staytrue.runs.eval_request import EvalRequest, for_recipe
    from staytrue.runs.evaluate import evaluate_model, evaluate_run
    from staytrue.runs.train import train

    begun, request = time.monotonic(), EvalRequest(cell.study.probes)
    recipe = recipes.parse(cell.recipe(), (out / "data" / cell.domain).absolute(), cell.label)
    path = out / cell.folder
    shutil.rmtree(path, ignore_errors=True)  # what an interrupted run left
    write_atomic(out / f"{cell.folder}.yaml", yaml.safe_dump(cell.recipe(), sort_keys=False))
    if cell.variant.name == "untuned":
        summary = evaluate_model(for_recipe(recipe, request), path / "eval", seed=recipe.seed)
    else:
        usable = why_no_cache(labelled(recipe.defenses), sampled=recipe.trainer == "grpo") is None
        train(recipe, path, reference_cache=reference_cache if usable else None)
        summary = evaluate_run(path, seed=cell.seed, request=request)
    seconds = round(time.monotonic() - begun, 1)
    told = {"schema": SCHEMA, "recipe": cell.recipe(), "probes": _asked(cell.study), "seconds": seconds}
    write_json(path / "cell.json", told)
    return summary, seconds


def of_cache(study: Study, out: Path) -> str:
    """What a cache of reference states did for a study's runs, as their manifests say."""
    files = [out / cell.folder / "manifest.json" for cell in cells(study)]
    told = [json.loads(file.read_text(encoding="utf-8")).get("reference") for file in files if file.exists()]
    used = [reference for reference in told if reference is not None]
    rows = [sum(reference[key] for reference in used) for key in ("rows_read", "rows_made")]
    line = f"{len(used)} of {len(files)} runs used it; {rows[0]} rows read, {rows[1]} made"
    stopped = next((reference["stopped_keeping"] for reference in used if "stopped_keeping" in reference), None)
    return line if stopped is None else f"{line}; not all could be kept ({stopped})"


def _jobs(todo: list[Cell], out: Path, reference_cache: Path | None) -> list[Job]:
    """A job for every cell, after those that make what it needs."""
    made: dict[str, Job] = {}
    runs = []
    for cell in todo:
        prerequisites.write_rows(cell.domain, out / "data")
        first = prerequisites.jobs(recipes.parse(cell.recipe()), cell.domain, out / "data")
        made |= {job.name: job for job in first}
        runs.append(Job(cell.folder, make, (cell, out, reference_cache), frozenset(job.name for job in first)))
    return [*runs[:_FIRST], *made.values(), *runs[_FIRST:]]


def _written(study: Study, out: Path, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write `results.json`, in the order of the study's tables."""
    ordered = [rows[cell.folder] for cell in cells(study) if cell.folder in rows]
    write_json(out / "results.json", {"schema": SCHEMA, "title": study.title, "rows": ordered})
    return rows


def _stored(folder: Path, cell: Cell) -> tuple[dict[str, Any], float] | None:
    """What a finished run of this very recipe found; one of another recipe, or asked otherwise, is made again."""
    try:
        summary: dict[str, Any] = json.loads((folder / "eval" / "summary.json").read_text(encoding="utf-8"))
        told = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        now = json.loads(json.dumps([cell.recipe(), _asked(cell.study)]))
        same: bool = [told["recipe"], told.get("probes", [])] == now
        return (summary, told["seconds"]) if same else None
    except (OSError, ValueError, KeyError):
        return None


def _asked(study: Study) -> list[str]:
    """What every run is asked; a question file with its hash, so that an edited one is asked again."""
    files = [Path(name) for name in study.probes]
    return [f"{file} {sha256_of(file)}" if file.suffix in SUFFIXES else str(file) for file in files]
