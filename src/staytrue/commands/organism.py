"""The commands `organism build`, `organism data` and `organism verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from staytrue.commands.options import MOST_SEED, Workers, stages, stoppable


def build(
    out: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of its training.")] = 0,
) -> None:
    """Train the organism from scratch (takes minutes)."""
    from staytrue.utils.console import bar, say
    from staytrue.utils.files import refuse_existing

    refuse_existing(out, allow_empty_folder=True)
    stages("build")("loading the libraries")
    with stoppable(f"remove {out}, and give the same command again", out), bar("build") as progress:
        from staytrue.organism.build import build as grow

        grow(out, seed, progress)
    say(f"Built: {out}")


def data(
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the rows.")] = 0,
) -> None:
    """Write the organism's data sets as plain JSONL."""
    from staytrue.organism.world import write_data
    from staytrue.utils.console import say
    from staytrue.utils.files import refuse_existing

    refuse_existing(out, allow_empty_folder=True)
    for path in write_data(out, seed).values():
        say(str(path))


def verify(
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from 0.")] = 5,
    rebuild: Annotated[
        bool, typer.Option(help="Also train it again: bit-identical, or on another machine within the same bounds.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Measure the organism, untuned and after each narrow fine-tune."""
    from staytrue.studies.verify_organism import verify as check

    with stoppable("nothing was kept"):
        kept = check(seeds, rebuild, workers)
    if not kept:
        raise typer.Exit(1)
