"""A comparison as a table for a terminal: one line a defense, a sentence that explains the columns, and the notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from staytrue.utils.console import say, table

if TYPE_CHECKING:
    from staytrue.report.comparison import Compared

_COLUMNS = ("95 % interval", "p", "q", "detectable", "questions x seeds")
_EXPLAINED = (
    "q: Benjamini and Hochberg over all lines. Detectable: the smallest difference that this many questions and seeds "
    "find in 80 of 100 studies."
)


@dataclass(frozen=True)
class Unit:
    """The unit of a comparison: headings, digits, and the text of a value.

    Attributes:
        value: heading of a defense's own value.
        difference: heading of its difference.
        key: of a line's own value.
        digits: of a difference, after the point.
        text: writes a value with its interval.
    """

    value: str
    difference: str
    key: str
    digits: int
    text: Callable[[Any], str]


def show_table(compared: Compared, unit: Unit, what: str, where: str) -> None:
    """Print a comparison.

    Args:
        compared: its lines and notes.
        unit: how its values are written.
        what: the beginning of the sentence under the table: what is compared with what.
        where: its end, after the other side's values in brackets.
    """
    rows = [
        (
            f"{line['domain']}  {line['defense']}".strip(),
            unit.text(line[unit.key]),
            f"{line['difference']:+.{unit.digits}f}",
            f"{line['low']:+.{unit.digits}f} to {line['high']:+.{unit.digits}f}",
            f"{line['p']:.3g}",
            f"{line['q']:.3g}",
            f"{line['detectable']:.{unit.digits}f}",
            f"{line['questions']} x {line['seeds']}",
        )
        for line in compared.lines
    ]
    table(("defense", unit.value, unit.difference, *_COLUMNS), rows)
    others = dict.fromkeys(f"{line['domain']} {unit.text(line['other'])}".strip() for line in compared.lines)
    say(f"{what} ({', '.join(others)}){where} {_EXPLAINED}")
    for note in compared.notes:
        say(note)
