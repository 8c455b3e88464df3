"""The study runner: trains and evaluates each cell of a study, several at a time, each in its own process.

A cell that is already finished is read from its folder, so the same command resumes a stopped study. `results.json` is
replaced after every cell.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from staytrue.config import recipe as recipes
from staytrue.config.recipe import Recipe
from staytrue.errors import FolderInUseError, RequestError
from staytrue.evals.questions.user_files import SUFFIXES
from staytrue.evals.results.measures import PAIRS
from staytrue.evals.results.stored_summary import read_summary
from staytrue.registry import labelled
from staytrue.studies import prerequisites
from staytrue.studies.config import Cell, Study, cells, row
from staytrue.training.reference.cache_checks import why_no_cache
from staytrue.utils import workers
from staytrue.utils.files import sha256_of, write_atomic, write_json
from staytrue.utils.run_dir import SCHEMA
from staytrue.utils.workers import Job
from staytrue.utils.yaml12 import to_yaml

_FIRST = 2  # runs that start before the prerequisites of others, so that results appear early


def run(
    study: Study, out: Path, processes: int | None = None, reference_cache: Path | None = None
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Run every cell that is not finished; yield each cell with its row of `results.json`.

    Args:
        study: the study.
        out: the study's folder.
        processes: the number of runs at a time, each with one thread; None chooses by the number of cores.
        reference_cache: a folder for cached states of the reference model, for runs that can use it.

    Yields:
        First the finished cells, then the others in the order in which they end.
    """
    every = {cell.folder: cell for cell in cells(study)}
    stored = {folder: _stored(out / folder, cell) for folder, cell in every.items()}
    rows = {folder: row(every[folder], *one) for folder, one in stored.items() if one is not None}
    _write_results(study, out, rows)  # results.json identifies a study's folder
    for folder in list(rows):
        yield every[folder], rows[folder]
    todo = [cell for folder, cell in every.items() if folder not in rows]
    if not todo:
        return
    by_name = {cell.folder: cell for cell in todo}
    for job, measured in workers.run(_jobs(todo, out, reference_cache), processes or workers.usable()):
        if job.name in by_name:
            rows[job.name] = row(by_name[job.name], *measured)
            yield by_name[job.name], _write_results(study, out, rows)[job.name]


def run_cell(cell: Cell, out: Path, reference_cache: Path | None = None) -> tuple[dict[str, Any], float]:
    """Train and evaluate one cell; returns the summary and the time in seconds."""
    from staytrue.runs.eval_request import EvalRequest, for_recipe
    from staytrue.runs.evaluate import evaluate_model, evaluate_run

    begun, request = time.monotonic(), EvalRequest(cell.study.probes)
    recipe = recipes.parse(cell.recipe(), (out / "data" / cell.domain).absolute(), cell.label)
    path = out / cell.folder
    file, text = path.with_name(f"{path.name}.yaml"), to_yaml(cell.recipe())
    same = file.exists() and file.read_text(encoding="utf-8") == text
    if not (same and (path / "checkpoints").is_dir()):
        shutil.rmtree(path, ignore_errors=True)  # left by an interrupted run that cannot go on
        write_atomic(file, text)
    if cell.variant.name == "untuned":
        summary = evaluate_model(for_recipe(recipe, request), path / "eval", seed=recipe.seed)
    else:
        usable = why_no_cache(labelled(recipe.defenses), sampled=recipe.trainer == "grpo") is None
        with recipes.named(cell.label):
            _train(recipe, path, reference_cache if usable else None)
        summary = evaluate_run(path, seed=cell.seed, request=request)
    seconds = round(time.monotonic() - begun, 1)
    record = {"schema": SCHEMA, "recipe": cell.recipe(), "probes": _probe_keys(cell.study), "seconds": seconds}
    write_json(path / "cell.json", record)
    return summary, seconds


def _train(recipe: Recipe, path: Path, reference_cache: Path | None) -> None:
    """Train a cell's run; one that was interrupted goes on if nothing has changed since."""
    from staytrue.runs.train import resume, train

    if path.exists():
        try:
            resume(path, reference_cache=reference_cache)
        except FolderInUseError:
            raise
        except RequestError:  # other data or versions than it began with
            shutil.rmtree(path)
        else:
            return
    train(recipe, path, reference_cache=reference_cache)


def cache_summary(study: Study, out: Path) -> str:
    """Summarise the use of the reference cache in one line, from the manifests of the study's runs."""
    files = [out / cell.folder / "manifest.json" for cell in cells(study)]
    recorded = [json.loads(file.read_text(encoding="utf-8")).get("reference") for file in files if file.exists()]
    used = [reference for reference in recorded if reference is not None]
    rows = [sum(reference[key] for reference in used) for key in ("rows_read", "rows_made")]
    line = f"{len(used)} of {len(files)} runs used it; {rows[0]} rows read, {rows[1]} made"
    stopped = next((reference["stopped_keeping"] for reference in used if "stopped_keeping" in reference), None)
    return line if stopped is None else f"{line}; not all could be kept ({stopped})"


def _jobs(todo: list[Cell], out: Path, reference_cache: Path | None) -> list[Job]:
    """Return a job for every cell, and the jobs of its prerequisites."""
    prepared: dict[str, Job] = {}
    runs = []
    for cell in todo:
        prerequisites.write_rows(cell.domain, out / "data")
        first = prerequisites.jobs(recipes.parse(cell.recipe()), cell.domain, out / "data")
        prepared |= {job.name: job for job in first}
        runs.append(Job(cell.folder, run_cell, (cell, out, reference_cache), frozenset(job.name for job in first)))
    return [*runs[:_FIRST], *prepared.values(), *runs[_FIRST:]]


def _write_results(study: Study, out: Path, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Write `results.json` in the order of the study's tables; returns `rows`."""
    ordered = [rows[cell.folder] for cell in cells(study) if cell.folder in rows]
    write_json(out / "results.json", {"schema": SCHEMA, "title": study.title, "rows": ordered})
    return rows


def _stored(folder: Path, cell: Cell) -> tuple[dict[str, Any], float] | None:
    """Return the summary and seconds of a finished run; None if its recipe or probes differ or files are missing."""
    try:
        summary = read_summary(folder / "eval")
        record = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        now = json.loads(json.dumps([cell.recipe(), _probe_keys(cell.study)]))
        same: bool = [record["recipe"], record.get("probes", [])] == now
        return (summary, record["seconds"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _probe_keys(study: Study) -> list[str]:
    """The study's probes; a question file has its hash appended, so that an edited file counts as another probe."""
    files = {name: Path(name.removeprefix(f"{PAIRS}:")) for name in study.probes}
    return [f"{name} {sha256_of(file)}" if file.suffix in SUFFIXES else name for name, file in files.items()]
