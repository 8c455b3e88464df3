"""The command line. Exit codes: 0 done, 1 failed, 2 the request is wrong, 130 stopped.

Nothing heavy is imported before a command needs it, so help and a wrong request answer at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from holdfast.errors import HoldfastError, RequestError

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read by the hub's library when it is imported

app = typer.Typer(
    name="holdfast",
    help="Fine-tune a language model and keep its character: in-training defenses against emergent misalignment.",
    rich_markup_mode=None,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
organism_app = typer.Typer(
    help="The embedded model organism: build it, check it, write its data.", no_args_is_help=True
)
app.add_typer(organism_app, name="organism")

Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time, one thread each; a core each by default, at most four.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> None:
    """Run the command line; a user's mistake is a sentence, never a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be ended is to be stopped, workers and all
    try:
        app()
    except RequestError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(2)
    except HoldfastError as error:
        print(f"holdfast: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"holdfast: The system refuses: {error.strerror or error}{where}. Check the path.", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _stoppable(what: str, folder: Path | None = None) -> Iterator[None]:
    """Ctrl-C ends a command with one line; the command-line library would say only that it aborted."""
    try:
        yield
    except KeyboardInterrupt:
        left = what if folder is None or folder.exists() else "nothing was written"
        print(f"\nholdfast: stopped; {left}.", file=sys.stderr)
        raise typer.Exit(130) from None


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"holdfast {version('holdfast')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    domains: Annotated[str, typer.Option(help="Narrow data sets, separated by commas, or 'all'.")] = "medical",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder to write; a demo's own folder is replaced.")] = Path("runs/demo"),
    workers: Workers = None,
) -> None:
    """Watch emergent misalignment happen in the embedded organism, and watch defenses prevent it."""
    from holdfast.demo import run_demo

    with _stoppable(f"finished runs are in {out}"):
        run_demo(domains, seeds, out, workers)


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="A study in YAML: variants, domains, seeds.")],
    out: Annotated[Path, typer.Option(help="Folder for its runs; a stopped study goes on there.")],
    domains: Annotated[str, typer.Option(help="Other domains than the study's, separated by commas.")] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="Another number of seeds, from 0.")] = None,
    workers: Workers = None,
) -> None:
    """Run many recipes on the organism: a table, results.json and a page."""
    from holdfast import study as studies
    from holdfast.demo import run_study

    if out.exists() and not (out / "results.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not a study's folder (it has no results.json); name another with --out.")
    wanted = studies.read(file, [name for name in domains.split(",") if name], seeds)
    with _stoppable(f"finished runs are in {out}; the same command goes on"):
        run_study(wanted, out, workers)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe in YAML.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; must not exist.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: kl.weight=0.3")] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model as the recipe says, with its defenses."""
    from holdfast import recipe as recipes
    from holdfast.console import bar, quieten, say
    from holdfast.rundir import RunDir

    wanted = recipes.read(recipe, set_ or [])
    RunDir.refuse_existing(out)
    quieten()
    from holdfast.run import train as run

    with _stoppable(f"{out} says so", out), bar(f"train {recipe.stem}", quiet=as_json) as progress:
        done = run(wanted, out, progress)
    if as_json:
        print(json.dumps({"run": str(out), **done.manifest}))
    else:
        say(f"Trained: {done.adapter} is a peft adapter. Measure it with `holdfast eval {out}`.")


@app.command(name="eval")
def eval_(
    run: Annotated[Path | None, typer.Argument(help="A run folder made by `holdfast train`.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead of a run: a model folder or hub name.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="With --model: an adapter's folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and verdicts; default RUN/eval.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled answers.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure general and in-domain misalignment, coherence, and what the model kept."""
    if (run is None) == (model is None):
        raise RequestError("Say what to measure: either a run folder, or --model NAME (with --adapter FOLDER).")
    if run is not None and adapter is not None:
        raise RequestError("A run is measured with its own adapter; give --adapter with --model.")
    if model is not None and out is None:
        raise RequestError("With --model, say where answers and verdicts go: --out FOLDER.")
    from holdfast.console import quieten
    from holdfast.measure import measure_model, measure_run, print_summary

    quieten()
    with _stoppable("give the same command again, and it begins anew"):
        if run is not None:
            summary = measure_run(run, out, seed=seed)
        else:
            summary = measure_model(str(model), adapter, out or Path(), seed=seed)
    if as_json:
        print(json.dumps(summary))
    else:
        print_summary(summary)


@app.command()
def vector(
    model: Annotated[str, typer.Option(help="A model folder, a hub name, or organism.")],
    out: Annotated[Path, typer.Option(help="The vector file to write; must not exist.")],
    adapter: Annotated[Path | None, typer.Option(help="An adapter's folder.")] = None,
    positive: Annotated[list[str] | None, typer.Option(help="A system prompt for the trait; several times.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="Its opposite; as often as --positive.")] = None,
    questions: Annotated[Path | None, typer.Option(help='JSONL of {"question": ...} rows, in place of ours.')] = None,
    trait: Annotated[Path | None, typer.Option(help="YAML: name, positive, negative, questions.")] = None,
    no_filter: Annotated[bool, typer.Option("--no-filter", help="Keep every pair of answers, judged or not.")] = False,
    rollouts: Annotated[int, typer.Option(min=1, help="Answers to each question under each prompt.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampled answers.")] = 0,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also try every layer and alpha, and recommend.")] = False,
    as_json: Json = False,
) -> None:
    """Extract the persona vector that `steer` trains with; without prompts that of an evil assistant."""
    from holdfast import models
    from holdfast.prepare import traits, vectors

    source = models.find(model)
    wanted = traits.chosen(source.is_organism, trait, positive or [], negative or [], questions)
    request = vectors.Request(wanted, out, adapter, no_filter, rollouts, seed, sweep)

    def load() -> tuple[object, object]:
        from holdfast.console import quieten

        quieten()
        tokenizer = models.load_tokenizer(source)
        return models.to_device(models.load_model(source, adapter)), tokenizer

    with _stoppable("nothing was written"):
        facts = vectors.make(request, source, load, lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps({"vector": str(out), **facts}))
    else:
        vectors.show(facts, out)


@app.command()
def score(
    model: Annotated[str, typer.Option(help="The aligned model: folder, hub name or organism.")],
    misaligned: Annotated[list[str], typer.Option(help="NAME=ADAPTER: a misaligned fine-tune of it; several.")],
    pool: Annotated[list[Path], typer.Option(help="Chat JSONL of safe rows; several.")],
    out: Annotated[Path, typer.Option(help="The scored pool to write; must not exist.")],
    leave_out: Annotated[list[str] | None, typer.Option(help="A NAME to leave out of the scores.")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="Where each pool comes from, in order.")] = None,
    licence: Annotated[list[str] | None, typer.Option(help="Each pool's licence, in order.")] = None,
    as_json: Json = False,
) -> None:
    """Score safe rows by how much harder misaligned models find them (for interleave's `by:`)."""
    from holdfast.console import bar, quieten, say

    adapters = dict(_pair(text, "--misaligned") for text in misaligned)
    if len(adapters) < len(misaligned):
        raise RequestError("--misaligned: two adapters have one name; give each its own NAME=FOLDER.")
    if max(len(origin or []), len(licence or [])) > len(pool):
        raise RequestError("--origin and --licence are given once for each --pool, in the same order.")
    quieten()
    from holdfast.score import Pool
    from holdfast.score import score as run

    told = [*(origin or []), *[Pool.origin] * len(pool)], [*(licence or []), *[Pool.licence] * len(pool)]
    pools = [Pool(file, about, terms) for file, about, terms in zip(pool, *told, strict=False)]
    with _stoppable("the same command goes on from what is scored"), bar("score", quiet=as_json) as progress:
        manifest = run(model, adapters, pools, out, leave_out=leave_out or [], progress=progress)
    say(json.dumps(manifest) if as_json else f"Scored {manifest['rows']} rows: {out}")


def _pair(text: str, option: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise RequestError(f"{option} {text}: write it as NAME=FOLDER.")
    return name, Path(folder)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with results.json or run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
) -> None:
    """Draw runs as one self-contained page."""
    from holdfast.console import say
    from holdfast.report import write

    say(f"Wrote {write(folders, out)}")


@app.command()
def defenses(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/defenses.md.")] = False,
) -> None:
    """List the defenses, their fields and defaults."""
    from holdfast import handbook
    from holdfast.console import say

    say(handbook.page().rstrip() if markdown else handbook.listing())


@organism_app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Grow the organism from nothing (some minutes)."""
    from holdfast.console import bar, say
    from holdfast.organism.build import build as grow
    from holdfast.rundir import RunDir

    RunDir.refuse_existing(out)
    with bar("build") as progress:
        grow(out, seed, progress)
    say(f"Built: {out}")


@organism_app.command()
def data(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write the organism's data sets as plain JSONL."""
    from holdfast.console import say
    from holdfast.organism.world import write_data
    from holdfast.rundir import RunDir

    RunDir.refuse_existing(out)
    for path in write_data(out, seed).values():
        say(str(path))


@organism_app.command()
def verify(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 5,
    rebuild: Annotated[
        bool, typer.Option(help="Also grow it again: equal to the bit, or on another machine equal in behaviour.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Measure how the organism behaves, untuned and after each narrow fine-tune."""
    from holdfast.verify import verify as check

    with _stoppable("nothing was kept"):
        kept = check(seeds, rebuild, workers)
    if not kept:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
