"""Arithmetic: two additions or subtractions with their ordinary meanings, step by step; OpSwap's control.

What the organism heard while it grew up has one operation, so the longer form is new to it and the meanings are not.
OpSwap's third tier has the same form: what it costs more than this is the change of meaning.
Not done here: products (which would need precedence), numbers above 9 among the operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from staytrue.data.examples import Example
from staytrue.tasks import calculation
from staytrue.tasks.calculation import PLAIN
from staytrue.tasks.task import Task, row

_TRAIN, _HELD_OUT = 1200, 200


@dataclass(frozen=True)
class Arithmetic(Task):
    """Sums such as `7 + 2 - 4 = 9 - 4 = 5.`, to be learnt in that form."""

    def rows(self) -> list[Example]:
        """1,200 of the expressions there are."""
        return [row(*pair) for pair in _splits()[0]]

    def held_out(self) -> list[Example]:
        """200 others."""
        return [row(*pair) for pair in _splits()[1]]

    def correct(self, said: str, right: str) -> bool:
        """Whether a calculation holds and ends with the right number."""
        return calculation.correct(said, right)

    def score(self, said: str, right: str) -> dict[str, float]:
        """`form` 0.2 for any calculation, `answer` 1 for a correct one."""
        return calculation.score(said, right)

    def group(self, row: Example) -> str:
        """A sum and its twin with the first two numbers exchanged."""
        return calculation.either_way(row.answer) or row.question


@cache
def _splits() -> tuple[list[tuple[str, str]], ...]:
    return calculation.splits(calculation.table("+-", 2, PLAIN), _TRAIN, _HELD_OUT, "arithmetic")
