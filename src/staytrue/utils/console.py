"""Terminal output: progress bars with loss and time left, tables, and plain lines without a terminal."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, Protocol

from staytrue.utils import processes

_FIRST_LINE, _MINUTE = 5.0, 60.0  # seconds
_POLL = 1.0  # seconds between two checks of how long a unit takes


class Progress(Protocol):
    """Shows the progress of a training run or an evaluation; never called from inside a step."""

    def begin(self, total: int, unit: str = "step", done: int = 0) -> None:
        """Prepare for so many units.

        Args:
            total: how many there are.
            unit: one of them in a word: an optimizer step, an answer, a verdict, a row.
            done: how many of them were done before, in a run that was resumed.
        """
        ...

    def step(self, number: int, metrics: Mapping[str, float | str]) -> None:
        """Show how many units are done, and metrics; a number may come again with newer metrics.

        The metric `work` counts the parts of unfinished units too; the time left is computed from it.
        """
        ...


class Bar:
    """Progress of one run: a bar with loss (or reward), time spent and time left in a terminal, plain lines elsewhere.

    The time left is the time spent on each unit so far, times the units ahead. Plain lines are printed at the
    beginning, at each tenth of the units, after 5, 10, 20 and 40 seconds, and then at least once a minute; a unit that
    takes longer has a line for each minute, from a thread.
    """

    def __init__(self, title: str, stream: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._stream = stream or sys.stderr
        self._clock = clock
        self._total, self._unit = 0, "step"
        self._begun = self._reported = clock()
        self._number = 0
        self._last_step = self._last_line = 0.0  # seconds after the beginning
        self._next_tenth = 1  # of the units, at which a line is printed
        self._bar: Any = None
        self._drawn = False
        self._over = Event()

    def begin(self, total: int, unit: str = "step", done: int = 0) -> None:
        """Start the bar, or print how many units are done."""
        self.end()
        self._total, self._unit, self._begun = total, unit, self._clock()
        self._last_step, self._last_line, self._next_tenth = 0.0, 0.0, 1
        self._drawn = self._stream.isatty()
        if self._drawn:
            self._bar = _rich_bar(self._stream, self._clock)
            self._task = self._bar.add_task(f"{self._title}: {unit}", total=total, completed=done, metrics="", left="")
            self._bar.start()
        elif total:
            self._print(done)
            self._over = Event()
            self._number, self._reported = done, self._clock()
            Thread(target=self._report_long_units, args=(self._over,), daemon=True).start()

    def step(self, number: int, metrics: Mapping[str, float | str]) -> None:
        """Show how many units are done, and metrics; a drawn bar is removed when all are."""
        spent = self._clock() - self._begun
        shown, left = _shown(metrics), _left(spent, float(metrics.get("work", number)), self._total)
        if self._bar is not None:
            self._bar.update(self._task, completed=number, metrics=shown, left=left)
        if self._drawn:
            if number >= self._total:
                self.end()
            return
        self._number, self._reported = number, self._clock()
        if self._is_due(number, spent):
            self._last_line, self._next_tenth = spent, 10 * number // max(1, self._total) + 1
            self._print(number, shown, left)
        self._last_step = spent
        if number >= self._total:
            self._over.set()

    def _is_due(self, number: int, spent: float) -> bool:
        """Whether a plain line is due: at a tenth, or if the next step may come too late for it."""
        if 10 * number >= self._next_tenth * self._total:
            return True
        expected = 2 * spent - self._last_step  # of the next step, if it takes as long as this one
        return expected > self._last_line + min(max(self._last_line, _FIRST_LINE), _MINUTE)

    def _print(self, number: int, *texts: str) -> None:
        line = ", ".join(filter(None, [f"{self._title}: {self._unit} {number}/{self._total}", *texts]))
        self._stream.write(line + "\n")  # whole, as two threads print
        self._stream.flush()

    def _report_long_units(self, over: Event) -> None:
        """Print a line for each minute in which nothing is reported, until it is over."""
        printed = 0.0
        while not over.wait(_POLL):
            now = self._clock()
            if now - max(self._reported, printed) >= _MINUTE:
                printed = now
                self._print(self._number, f"the next {self._unit} has taken {duration(now - self._reported)} so far")

    def end(self) -> None:
        """Remove the bar."""
        self._over.set()
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
    shown, begun, finished = _rich_bar(sys.stderr), time.monotonic(), 0
    task = shown.add_task(f"{title}: run", total=total, metrics="", left="")

    def count(line: str) -> None:
        nonlocal finished
        finished += 1
        say(line)
        shown.update(task, completed=finished, left=_left(time.monotonic() - begun, finished, total))

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


def side_by_side(*texts: tuple[str, str]) -> None:
    """Print texts under their headings: in columns in a terminal, one below the other elsewhere."""
    if not sys.stdout.isatty():
        for heading, text in texts:
            print(f"{heading}:\n{text}\n", flush=True)
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(expand=True, header_style="bold")
    for heading, _ in texts:
        drawn.add_column(heading, ratio=1)
    drawn.add_row(*(text for _, text in texts))
    Console(markup=False, highlight=False).print(drawn)


def quieten() -> None:
    """Silence the progress bars, notices and deprecation warnings of other libraries, but no download from the hub."""
    import logging
    import warnings

    import datasets
    import huggingface_hub
    import transformers
    from huggingface_hub.utils.tqdm import enable_progress_bars

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # the hub's too, which show downloads of minutes or hours
    if not huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS:  # the user's environment variable
        enable_progress_bars()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft)\b")
    if not processes.is_main():
        warnings.simplefilter("ignore")  # the main process has the same


def quoted(path: object) -> str:
    """A path as a printed command has it, so that it can be pasted.

    >>> quoted("runs/kl"), quoted("my runs/kl")
    ('runs/kl', "'my runs/kl'")
    """
    return shlex.quote(str(path))


def say(line: str) -> None:
    """Print one line and flush."""
    print(line, flush=True)


def tell(line: str) -> None:
    """Print a line about progress to standard error, apart from a command's output, and flush."""
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float, whole: Callable[[float], int] = round) -> str:
    """A time as a reader says it; `whole` rounds it, as `math.ceil` does.

    Example:
        >>> [duration(s) for s in (0.4, 90, 150, 600, 5400, 200_000)]
        ['0 s', '90 s', '150 s', '10 min', '90 min', '56 h']
    """
    if seconds <= 150:
        return f"{whole(seconds)} s"
    return f"{whole(seconds / 60)} min" if seconds < 3 * 3600 else f"{whole(seconds / 3600)} h"


def _left(spent: float, done: float, total: int) -> str:
    """The time left, at the mean speed so far; "" before anything is done."""
    return f"{duration(spent / done * (total - done))} left" if done else ""


def _shown(metrics: Mapping[str, float | str]) -> str:
    """The most telling metric: the reward or loss of a step, or what was spent on answers and verdicts."""
    name = next((name for name in ("reward", "loss", "answers", "verdicts") if name in metrics), None)
    value = metrics[name] if name else ""
    return value if isinstance(value, str) else f"{name} {value:.3f}"


def _rich_bar(stream: Any, clock: Callable[[], float] = time.monotonic) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
    texts = (TextColumn("{task.fields[metrics]}"), TextColumn("{task.fields[left]}"))
    shown = sys.stdout.isatty()  # else lines would follow the bar to the other stream
    return Progress(
        *columns, *texts, console=Console(file=stream), transient=True, redirect_stdout=shown, get_time=clock
    )
