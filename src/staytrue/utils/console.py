"""Terminal output: progress bars with loss and time left, tables, and plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Shows the progress of a training run or an evaluation; never called from inside a step."""

    def begin(self, steps: int) -> None:
        """Prepare for so many steps: optimizer steps, answers or verdicts."""
        ...

    def step(self, number: int, metrics: Mapping[str, float | str]) -> None:
        """Show a step and its metrics."""
        ...


class Bar:
    """Progress of one run: a bar with loss (or reward) and time left in a terminal, about ten plain lines elsewhere."""

    def __init__(self, title: str, stream: Any = None) -> None:
        self._title = title
        self._stream = stream or sys.stderr
        self._steps = 0
        self._tenths = 0  # tenths of the steps that a line was printed for
        self._begun = time.monotonic()
        self._bar: Any = None

    def begin(self, steps: int) -> None:
        """Start the bar."""
        self.end()
        self._steps, self._begun, self._tenths = steps, time.monotonic(), 0
        if self._stream.isatty():
            self._bar = _rich_bar(self._stream)
            self._task = self._bar.add_task(self._title, total=steps, loss="")
            self._bar.start()

    def step(self, number: int, metrics: Mapping[str, float | str]) -> None:
        """Show a logged step."""
        kind = next((name for name in ("reward", "loss", "answers", "verdicts") if name in metrics), None)
        value = metrics[kind] if kind else ""
        loss = f"{value if isinstance(value, str) else f'{kind} {value:.3f}'}, " if value != "" else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=number, loss=loss.rstrip(", "))
        elif number == self._steps or 10 * number // max(1, self._steps) > self._tenths:
            self._tenths = 10 * number // max(1, self._steps)
            spent = time.monotonic() - self._begun
            left = spent / number * (self._steps - number)
            print(f"{self._title}: step {number}/{self._steps}, {loss}{left:.0f} s left", file=self._stream, flush=True)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def bar(title: str, *, quiet: bool = False) -> Iterator[Bar | None]:
    """Show a progress bar inside `with`; it is removed at the end, also after an error. None if quiet."""
    if quiet:
        yield None
        return
    shown = Bar(title)
    try:
        yield shown
    finally:
        shown.end()


@contextmanager
def counter(title: str, total: int) -> Iterator[Callable[[str], None]]:
    """Count finished runs: print a line for each, and in a terminal a bar below them with the time left."""
    if not sys.stderr.isatty():
        yield say
        return
    shown = _rich_bar(sys.stderr)
    task = shown.add_task(title, total=total, loss="runs")

    def count(line: str) -> None:
        say(line)
        shown.advance(task)

    with shown:
        yield count


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table to standard output; the first column is aligned left, the others right."""
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        drawn.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*row)
    lines = [[part for cell in row for part in cell.split("\n")[:1]] for row in rows]
    widths = [
        max(len(part) for cell in column for part in cell.split("\n")) for column in zip(headings, *lines, strict=True)
    ]
    wide = None if sys.stdout.isatty() else sum(widths) + 2 * len(widths)
    Console(width=wide, markup=False, highlight=False).print(drawn)


def quieten() -> None:
    """Silence the progress bars, notices and deprecation warnings of other libraries."""
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\b")


def say(line: str) -> None:
    """Print one line and flush."""
    print(line, flush=True)


def _rich_bar(stream: Any) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    shown = sys.stdout.isatty()  # else lines would follow the bar to the other stream
    return Progress(
        *columns, TimeRemainingColumn(), console=Console(file=stream), transient=True, redirect_stdout=shown
    )
