"""What several commands share: their options, and how a stopped one ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Workers = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time, one thread each; a core each by default, at most four.")
]
ReferenceCache = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps the reference's states for other runs on the same rows. Changes results by rounding; "
        "not with steer or grpo."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sampled answers.")]
MaxCalls = Annotated[int | None, typer.Option(min=1, help="Most requests to an endpoint.")]
MaxCost = Annotated[float | None, typer.Option(help="Most US dollars for calls to an endpoint.")]
Price = Annotated[str | None, typer.Option(help="IN,OUT: an endpoint's price, US dollars per million tokens.")]


@contextmanager
def stoppable(what: str, folder: Path | None = None) -> Iterator[None]:
    """Ctrl-C ends a command with one line; the command-line library would say only that it aborted."""
    try:
        yield
    except KeyboardInterrupt:
        left = what if folder is None or folder.exists() else "nothing was written"
        print(f"\nstaytrue: stopped; {left}.", file=sys.stderr)
        raise typer.Exit(130) from None


def tell(line: str) -> None:
    """A line about the work, beside what a command prints."""
    print(line, file=sys.stderr, flush=True)
