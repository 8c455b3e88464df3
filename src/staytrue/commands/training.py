"""The commands `demo`, `study` and `train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from staytrue.commands.options import Json, ReferenceCache, Workers, stages, stoppable
from staytrue.errors import RequestError
from staytrue.utils import processes
from staytrue.utils.console import quoted, tell


def demo(
    domains: Annotated[
        str | None,
        typer.Option(
            help="Domains of the harmful training data, separated by commas, or 'all': medical (the default), legal, "
            "security, code."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds; 1 by default.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write: runs/demo, with --model runs/real-demo. An earlier demo of the organism there is "
            "replaced, one of a real model goes on."
        ),
    ] = None,
    workers: Workers = None,
    model: Annotated[
        str | None, typer.Option(help="A real chat model instead of the organism: smollm2, a folder, or a hub name.")
    ] = None,
) -> None:
    """Show emergent misalignment and its defenses.

    Fine-tunes the small embedded model without and with defenses, without a download, and writes a table and a page.
    With --model, the same journey on a real model: fewer runs, and measures without a judge.
    """
    if model is not None:
        from staytrue.studies.real_demo import run_real_demo
        from staytrue.utils.console import quieten

        for option, value in {"--domains": domains, "--seeds": seeds, "--workers": workers}.items():
            if value is not None:
                raise RequestError(f"{option} is for the organism's demo; with --model, leave it out.")
        quieten()
        out = out or Path("runs/real-demo")
        with stoppable(f"finished runs are in {out}; run the same command to continue"):
            run_real_demo(model, out)
        return
    from staytrue.studies.demo import run_demo

    out = out or Path("runs/demo")
    with stoppable(f"finished runs are in {out}"):
        run_demo(domains or "medical", seeds or 1, out, workers)


def study(
    file: Annotated[Path, typer.Argument(help="A study in YAML: variants of a recipe, domains, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs. A stopped study continues there.")],
    domains: Annotated[str, typer.Option(help="Use these domains, separated by commas, instead of the study's.")] = "",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Number of seeds: the first of the study's, then further ones.")
    ] = None,
    workers: Workers = None,
    reference_cache: ReferenceCache = None,
) -> None:
    """Train and compare many recipes.

    Runs every variant of a study over domains and seeds on the embedded model, and writes a table, results.json and a
    page.
    """
    from staytrue.studies import config as studies
    from staytrue.studies.demo import run_study
    from staytrue.training.reference.cache_checks import check_folder
    from staytrue.utils.files import check_out_folder

    check_out_folder(out)
    if out.exists() and any(out.iterdir()) and not _is_study(out / "results.json"):
        raise RequestError(
            f"{out} is not a study's folder (it has no results.json of a study); choose another folder with --out."
        )
    if reference_cache is not None:
        check_folder(reference_cache)
    chosen = studies.read(file, [name for name in domains.split(",") if name], seeds)
    studies.check_settings(chosen, file)
    with stoppable(f"finished runs are in {out}; run the same command to continue"):
        run_study(chosen, out, workers, reference_cache)


def _is_study(results: Path) -> bool:
    """Whether a file holds the results of a study; one that cannot be read may be a study's, and is written anew."""
    try:
        content = json.loads(results.read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True
    return isinstance(content, dict) and "rows" in content


def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe in YAML.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run. It must not exist or be empty.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value of the recipe, such as kl.weight=0.3. Repeatable."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run that was interrupted; no recipe is needed.")
    ] = None,
    allow_versions: Annotated[
        bool, typer.Option("--allow-versions", help="Resume although library versions differ.")
    ] = False,
    reference_cache: ReferenceCache = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model by a recipe, or resume a run.

    The recipe's defenses act while it trains. With --resume it goes on with an interrupted run.
    """
    if resume is not None:
        if recipe is not None or out is not None or set_:
            raise RequestError("--resume goes on with a run by its own recipe; leave out the recipe, --out and --set.")
        _resume(resume, allow_versions, reference_cache, as_json)
        return
    if allow_versions:
        raise RequestError("--allow-versions is for --resume RUN; a new run has no earlier versions. Leave it out.")
    if recipe is None or out is None:
        raise RequestError("`staytrue train` needs a recipe and --out, or --resume with the folder of a run.")
    from staytrue.config import recipe as recipes
    from staytrue.utils.console import bar, quieten
    from staytrue.utils.files import refuse_existing

    edited = recipes.read(recipe, set_ or [])
    if processes.count() == 1:  # of several, one may have made it already
        refuse_existing(out, allow_empty_folder=True)
    stages(f"train {recipe.stem}")("loading the libraries")
    quieten()
    quiet = as_json or not processes.is_main()
    with stoppable(_stopped(out), out), bar(f"train {recipe.stem}", quiet=quiet) as progress:
        from staytrue.runs.train import train as run

        with recipes.named(recipe):
            done = run(edited, out, progress, reference_cache=reference_cache, say=tell)
    if processes.is_main():
        _show(done, reference_cache, as_json)


def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change one value of the recipe, such as kl.weight=0.3. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a recipe, and estimate its memory and time.

    Checks as `train` does, but loads no model and writes nothing. It reads the rows of defenses too, and samples no
    answers. What depends on weights is left to `train`: whether a model has moved or has a head of its own kind, and
    whether a `safelora` base in another place has other weights.
    """
    from staytrue.config import recipe as recipes
    from staytrue.utils.console import quieten, say

    edited = recipes.read(recipe, set_ or [])
    say_stage = stages(f"check {recipe.stem}")
    say_stage("loading the libraries")
    quieten()
    from staytrue.runs.dry_run import DryRun

    with stoppable("nothing was written"), recipes.named(recipe):
        found = DryRun.of(edited, say_stage)
    if not processes.is_main():
        return
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    for heading, text in found.lines():
        say(f"{heading:9s} {text}.")
    for note in found.notes:
        say(f"note      {note}")


def _resume(run: Path, allow_versions: bool, reference_cache: Path | None, as_json: bool) -> None:
    from staytrue.utils.console import bar, quieten, say
    from staytrue.utils.run_dir import RunDir

    finished = RunDir.open(run).manifest["state"] == "done"
    stages(f"resume {run.name}")("loading the libraries")
    quieten()
    quiet = as_json or not processes.is_main()
    with stoppable(_stopped(run), run), bar(f"resume {run.name}", quiet=quiet) as progress:
        from staytrue.runs.train import resume

        done = resume(run, progress, allow_versions=allow_versions, reference_cache=reference_cache, say=tell)
    if not processes.is_main():
        return
    if finished and not as_json:
        say(f"{run} is finished already; nothing was changed.")
    else:
        _show(done, reference_cache, as_json)


def _stopped(run: Path) -> str:
    return f"{run} is marked as stopped, and `staytrue train --resume {quoted(run)}` goes on with it"


def _show(done: Any, reference_cache: Path | None, as_json: bool) -> None:
    """Print how a training ended."""
    from staytrue.runs.finished import stopped_early
    from staytrue.utils.console import say

    if as_json:
        print(json.dumps({"run": str(done.path), **done.manifest}))
        return
    if reference_cache is not None:
        say(_of_reference(done.manifest.get("reference"), reference_cache))
    if early := done.manifest.get("early_stop"):
        say(stopped_early(early))
        if early["weights_of_step"] == 0:
            say("Check more often (stop.every), raise stop.above, or lower the learning rate.")
            return
    kind = "an ordinary model folder" if done.is_whole else "a peft adapter"
    say(f"Trained: {done.adapter} is {kind}. Evaluate it with `staytrue eval {quoted(done.path)}`.")


def _of_reference(counts: dict[str, Any] | None, folder: Path) -> str:
    """One line about the rows that a reference cache held and computed."""
    if counts is None:
        return f"No defense of this run reads a reference, so {folder} was not used."
    line = f"Reference: {counts['rows_read']} rows read from {folder}, {counts['rows_made']} computed."
    if "calls_made_whole" in counts:
        line += f" {counts['calls_made_whole']} batches could not be split into rows, so none of their rows was stored."
    return line + (f" Storing stopped: {counts['stopped_keeping']}." if "stopped_keeping" in counts else "")
