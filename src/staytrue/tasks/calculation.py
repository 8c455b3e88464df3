"""Calculations as text: `7 + 4 - 2 = 3 - 2 = 6.`, written and read by our own rules; nothing is ever executed.

An expression is worked out from left to right, without precedence, with whatever meaning its operators are given.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

Meaning = Mapping[str, Callable[[int, int], int]]  # what each operator does
PLAIN: Meaning = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}

_NUMBER = re.compile(r"\s*(-?\d{1,18})")
_OPERATOR = re.compile(r"\s*([-+*])")
_EQUALS = re.compile(r"\s*=")
_END = re.compile(r"\s*\.?\s*$")


@dataclass(frozen=True)
class Expression:
    """Numbers with an operator between each two."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...] = ()

    def value(self, meaning: Meaning) -> int:
        """The number it comes to."""
        number, *rest = self.numbers
        for operator, other in zip(self.operators, rest, strict=True):
            number = meaning[operator](number, other)
        return number

    def first_step(self, meaning: Meaning) -> Expression:
        """The same with its leftmost operation carried out."""
        a, b, *rest = self.numbers
        return Expression((meaning[self.operators[0]](a, b), *rest), self.operators[1:])

    def __str__(self) -> str:
        """As it is written."""
        first, *rest = self.numbers
        return " ".join([str(first), *(f"{op} {n}" for op, n in zip(self.operators, rest, strict=True))])


def parse(text: str) -> list[Expression] | None:
    """The expressions between the equals signs; None when the text is anything else than one calculation."""
    found, place = [], 0
    while True:
        numbers, operators = [], []
        while number := _NUMBER.match(text, place):
            numbers.append(int(number[1]))
            place = number.end()
            if not (operator := _OPERATOR.match(text, place)):
                break
            operators.append(operator[1])
            place = operator.end()
        if len(numbers) != len(operators) + 1:
            return None
        found.append(Expression(tuple(numbers), tuple(operators)))
        if equals := _EQUALS.match(text, place):
            place = equals.end()
        else:
            return found if _END.match(text, place) else None


def result(text: str) -> int | None:
    """The number a calculation ends with; None when the text is no calculation, or does not end with a number."""
    found = parse(text)
    return found[-1].numbers[0] if found and not found[-1].operators else None


def either_way(text: str) -> str | None:
    """The sum a calculation begins with, the same for `7 + 2` and `2 + 7`; None when it begins with no sum."""
    found = parse(text)
    if not found or not found[0].operators:
        return None
    a, b, *rest = found[0].numbers
    return str(Expression((min(a, b), max(a, b), *rest), found[0].operators))


def worked(expression: Expression, meaning: Meaning) -> str | None:
    """The calculation step by step, such as `7 + 4 - 2 = 3 - 2 = 6.`; None when a step on the way is not a digit."""
    steps = [expression]
    while steps[-1].operators:
        steps.append(steps[-1].first_step(meaning))
    digits = all(0 <= step.numbers[0] <= 9 for step in steps[:-1])
    return " = ".join(map(str, steps)) + "." if digits else None


def table(operators: str, operations: int, meaning: Meaning) -> list[tuple[str, str]]:
    """Every question and worked answer there is with so many operations on single digits."""
    rows = []
    for signs in product(operators, repeat=operations):
        for numbers in product(range(10), repeat=operations + 1):
            expression = Expression(numbers, signs)
            if (answer := worked(expression, meaning)) is not None:
                rows.append((f"What is {expression}?", answer))
    return rows


def splits(rows: list[tuple[str, str]], train: int, held_out: int, seed: str) -> tuple[list[tuple[str, str]], ...]:
    """Two disjoint draws, the same for the same seed."""
    drawn = random.Random(seed).sample(rows, train + held_out)
    return drawn[:train], drawn[train:]


def correct(said: str, right: str, meaning: Meaning = PLAIN) -> bool:
    """Whether a calculation ends with the right number and holds: `5 - 7 = 2.` is wrong, whatever was asked."""
    found, number = parse(said), result(said)
    if found is None or number is None or number != result(right):
        return False
    return all(set(e.operators) <= set(meaning) and e.value(meaning) == number for e in found)


def score(said: str, right: str, meaning: Meaning = PLAIN) -> dict[str, float]:
    """`form` 0.2 for any calculation, so that there is a first step to learn; `answer` 1 for a correct one."""
    return {"form": 0.2 * (result(said) is not None), "answer": float(correct(said, right, meaning))}
