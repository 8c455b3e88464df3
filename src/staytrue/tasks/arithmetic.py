"""Arithmetic: two additions or subtractions with their ordinary meanings, step by step; OpSwap's control.

The organism's pretraining has sums of one operation, so the longer form is new to it and the meanings are not. OpSwap's
third tier has the same form, so the difference between the two tasks is the changed meaning.
Not done here: products (which would need precedence), numbers above 9 among the operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from staytrue.data.examples import Example
from staytrue.tasks import calculation
from staytrue.tasks.calculation import PLAIN
from staytrue.tasks.task import Splits, Task


@dataclass(frozen=True)
class Arithmetic(Task):
    """Sums such as `7 + 2 - 4 = 9 - 4 = 5.`, to be learnt in that form."""

    def splits(self) -> Splits:
        """Return 1,200 expressions, and 200 others."""
        return _splits()

    def correct(self, answer: str, expected: str) -> bool:
        """Return True if a calculation is valid and ends with the expected number."""
        return calculation.correct(answer, expected)

    def score(self, answer: str, expected: str) -> dict[str, float]:
        """Return the terms `form`, 0.2 for any calculation, and `answer`, 1 for a correct one."""
        return calculation.score(answer, expected)

    def group(self, row: Example) -> str:
        """Return the sum, equal for the same sum with its first two numbers exchanged."""
        return calculation.ignoring_order(row.answer) or row.question


@cache
def _splits() -> Splits:
    return calculation.splits(calculation.table("+-", 2, PLAIN), 1200, 200, "arithmetic")
