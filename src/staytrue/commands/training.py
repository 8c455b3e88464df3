"""`demo`, `study`, `train`: from rows to models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from staytrue.commands.options import Json, ReferenceCache, Workers, stoppable
from staytrue.errors import RequestError


def demo(
    domains: Annotated[str, typer.Option(help="Narrow data sets, separated by commas, or 'all'.")] = "medical",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder to write; a demo's own folder is replaced.")] = Path("runs/demo"),
    workers: Workers = None,
) -> None:
    """Watch emergent misalignment happen in the embedded organism, and watch defenses prevent it."""
    from staytrue.studies.demo import run_demo

    with stoppable(f"finished runs are in {out}"):
        run_demo(domains, seeds, out, workers)


def study(
    file: Annotated[Path, typer.Argument(help="A study in YAML: variants, domains, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder for its runs; a stopped study goes on there.")],
    domains: Annotated[str, typer.Option(help="Other domains than the study's, separated by commas.")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="So many of its seeds, or more.")] = None,
    workers: Workers = None,
    reference_cache: ReferenceCache = None,
) -> None:
    """Run many recipes on the organism: a table, results.json and a page."""
    from staytrue.studies import config as studies
    from staytrue.studies.demo import run_study
    from staytrue.training.reference.cache_checks import refuse_cache

    if out.exists() and not (out / "results.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not a study's folder (it has no results.json); name another with --out.")
    refuse_cache(reference_cache, {})
    wanted = studies.read(file, [name for name in domains.split(",") if name], seeds)
    with stoppable(f"finished runs are in {out}; the same command goes on"):
        run_study(wanted, out, workers, reference_cache)


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; must not exist.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: kl.weight=0.3")] = None,
    reference_cache: ReferenceCache = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model as the recipe says, with its defenses."""
    from staytrue.config import recipe as recipes
    from staytrue.utils.console import bar, quieten, say
    from staytrue.utils.files import refuse_existing

    wanted = recipes.read(recipe, set_ or [])
    refuse_existing(out, allow_empty_folder=True)
    quieten()
    from staytrue.runs.train import train as run

    with stoppable(f"{out} says so", out), bar(f"train {recipe.stem}", quiet=as_json) as progress:
        done = run(wanted, out, progress, reference_cache=reference_cache)
    if as_json:
        print(json.dumps({"run": str(out), **done.manifest}))
    else:
        if reference_cache is not None:
            say(_of_reference(done.manifest.get("reference"), reference_cache))
        say(f"Trained: {done.adapter} is a peft adapter. Measure it with `staytrue eval {out}`.")


def _of_reference(told: dict[str, Any] | None, folder: Path) -> str:
    """What a cache of reference states did for a run."""
    if told is None:
        return f"No defense of this run reads a reference, so {folder} was not used."
    line = f"Reference: {told['rows_read']} rows read from {folder}, {told['rows_made']} made."
    if "calls_made_whole" in told:
        line += f" {told['calls_made_whole']} batches could not be told apart by rows, and nothing of them was kept."
    return line + (f" Nothing more is kept: {told['stopped_keeping']}." if "stopped_keeping" in told else "")
