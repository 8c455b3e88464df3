"""Options and helpers that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from staytrue.errors import RequestError
from staytrue.utils import processes
from staytrue.utils.console import tell
from staytrue.utils.interrupts import Stopped

if TYPE_CHECKING:
    from staytrue.evals.openai_client.budget import Budget
    from staytrue.evals.types import Judge

JUDGE = "rules, local:FOLDER, or openai:MODEL[@URL]"

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="How many runs at a time, one thread each. Default: one per core, at most four."),
]
ReferenceCache = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the reference model's hidden states, shared by runs on the same rows. Changes results by "
        "rounding. Not with steer or grpo."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of text.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Answers written side by side; by default as many as memory allows. Answers change by rounding only.",
    ),
]
MOST_SEED = 2**32 - 1  # as of a recipe's `seed:`
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed for sampling answers.")]
MaxCalls = Annotated[int | None, typer.Option(min=1, help="Maximum number of requests to endpoints.")]
MaxCost = Annotated[float | None, typer.Option(help="Maximum cost of calls to endpoints, in US dollars.")]
Price = Annotated[str | None, typer.Option(help="IN,OUT: an endpoint's price, US dollars per million tokens.")]


def finite(value: float) -> float:
    """An option's number, which is refused where it is infinite or no number; a range lets `nan` pass."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


@contextmanager
def stoppable(what: str | Callable[[], str], folder: Path | None = None) -> Iterator[None]:
    """End a command with one line and exit code 130 on Ctrl-C.

    Args:
        what: what is left, as the end of that line, or a function that finds it out.
        folder: if given and absent, the line says that nothing was written.

    Raises:
        Stopped: the line's content, which `cli` prints.
    """
    try:
        yield
    except KeyboardInterrupt:
        what = what if isinstance(what, str) else what()
        raise Stopped(what if folder is None or folder.exists() else "nothing was written") from None


def stages(title: str) -> Callable[[str], None]:
    """Return a function that tells the part of a command's work that begins, in the main process."""
    return lambda part: tell(f"{title}: {part}") if processes.is_main() else None


def budget_of(max_calls: int | None, max_cost: float | None, price: str | None, *called: str | None) -> Budget:
    """Return the limit on calls to endpoints that the options set.

    Args:
        max_calls: the most requests.
        max_cost: the most US dollars.
        price: of every endpoint.
        called: the models and judges that the command names.

    Raises:
        RequestError: an option is wrong, or none of those named is behind an endpoint.
    """
    from staytrue.evals.openai_client.budget import Budget, parse_price

    options = {"--max-calls": max_calls, "--max-cost": max_cost, "--price": price}
    given = [option for option, value in options.items() if value is not None]
    if given and not any(name and name.strip().startswith("openai:") for name in called):
        raise RequestError(
            f"{given[0]} is for calls to endpoints, and this command calls none. Leave it out, or name an endpoint "
            "(openai:MODEL[@URL])."
        )
    return Budget(max_calls, max_cost, None if price is None else parse_price(price))


def judge_of(text: str, budget: Budget) -> Judge:
    """Return the judge that `--judge` names."""
    from staytrue.runs import judge_factory

    return judge_factory.judge(text, budget, tell)


def report_spending(judge: Judge | None) -> None:
    """Print the calls and cost of a judge that counts them."""
    from staytrue.evals.types import CountsCalls

    if isinstance(judge, CountsCalls):
        tell(f"Judging by {judge.name} took {judge.spent()}.")
