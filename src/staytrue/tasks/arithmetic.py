"""Arithmetic: two additions or subtractions with their ordinary meanings, step by step; OpSwap's control.

The organism's pretraining has sums of one operation, so the longer form is new to it and the meanings are not. OpSwap's
third tier has the same form, so the difference between the two tasks is the changed meaning.
Not done here: products (which would need precedence), numbers above 9 among the operands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from staytrue.tasks import calculation
from staytrue.tasks.calculation import PLAIN, CalculationTask
from staytrue.tasks.task import Splits


@dataclass(frozen=True)
class Arithmetic(CalculationTask):
    """Sums such as `7 + 2 - 4 = 9 - 4 = 5.`, to be learnt in that form."""

    def splits(self) -> Splits:
        """Return 1,200 expressions, and 200 others."""
        return _splits()


@cache
def _splits() -> Splits:
    return calculation.splits(calculation.table("+-", 2, PLAIN), 1200, 200, "arithmetic")
