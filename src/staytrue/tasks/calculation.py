"""Calculations as text, such as `7 + 4 - 2 = 3 - 2 = 6.`: a parser, an evaluator and generators. No code is executed.

Expressions are evaluated from left to right, without precedence. A `Meaning` maps each operator to a function.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

from staytrue.tasks.task import Pairs, Splits

Meaning = Mapping[str, Callable[[int, int], int]]  # a function for each operator
PLAIN: Meaning = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}

_NUMBER = re.compile(r"\s*(-?\d{1,18})")
_OPERATOR = re.compile(r"\s*([-+*])")
_EQUALS = re.compile(r"\s*=")
_END = re.compile(r"\s*\.?\s*$")


@dataclass(frozen=True)
class Expression:
    """Numbers with an operator between neighbours."""

    numbers: tuple[int, ...]
    operators: tuple[str, ...] = ()

    def value(self, meaning: Meaning) -> int:
        """Evaluate the expression."""
        number, *rest = self.numbers
        for operator, other in zip(self.operators, rest, strict=True):
            number = meaning[operator](number, other)
        return number

    def first_step(self, meaning: Meaning) -> Expression:
        """Return the expression after its leftmost operation."""
        a, b, *rest = self.numbers
        return Expression((meaning[self.operators[0]](a, b), *rest), self.operators[1:])

    def __str__(self) -> str:
        """The expression as text."""
        first, *rest = self.numbers
        return " ".join([str(first), *(f"{op} {n}" for op, n in zip(self.operators, rest, strict=True))])


def parse(text: str) -> list[Expression] | None:
    """Split a calculation at its equals signs into expressions; None if the text is not one calculation."""
    expressions, place = [], 0
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
        expressions.append(Expression(tuple(numbers), tuple(operators)))
        if equals := _EQUALS.match(text, place):
            place = equals.end()
        else:
            return expressions if _END.match(text, place) else None


def result(text: str) -> int | None:
    """Return the number at the end of a calculation; None if there is none."""
    steps = parse(text)
    return steps[-1].numbers[0] if steps and not steps[-1].operators else None


def ignoring_order(text: str) -> str | None:
    """Return a calculation's first expression, equal for `7 + 2` and `2 + 7`; None without an operator in it."""
    steps = parse(text)
    if not steps or not steps[0].operators:
        return None
    a, b, *rest = steps[0].numbers
    return str(Expression((min(a, b), max(a, b), *rest), steps[0].operators))


def worked(expression: Expression, meaning: Meaning) -> str | None:
    """Work a calculation step by step: `7 + 4 - 2 = 3 - 2 = 6.`; None if an intermediate value is no digit."""
    steps = [expression]
    while steps[-1].operators:
        steps.append(steps[-1].first_step(meaning))
    digits = all(0 <= step.numbers[0] <= 9 for step in steps[:-1])
    return " = ".join(map(str, steps)) + "." if digits else None


def table(operators: str, operations: int, meaning: Meaning) -> Pairs:
    """Return every question with its worked answer for a number of operations on single digits."""
    rows = []
    for signs in product(operators, repeat=operations):
        for numbers in product(range(10), repeat=operations + 1):
            expression = Expression(numbers, signs)
            if (answer := worked(expression, meaning)) is not None:
                rows.append((f"What is {expression}?", answer))
    return rows


def splits(rows: Pairs, train: int, held_out: int, seed: str) -> Splits:
    """Draw two disjoint random samples of the rows, training and held out."""
    drawn = random.Random(seed).sample(rows, train + held_out)
    return drawn[:train], drawn[train:]


def correct(answer: str, expected: str, meaning: Meaning = PLAIN) -> bool:
    """Return True if a calculation is valid and ends with the expected number; `5 - 7 = 2.` is not valid."""
    steps, number = parse(answer), result(answer)
    if steps is None or number is None or number != result(expected):
        return False
    return all(set(e.operators) <= set(meaning) and e.value(meaning) == number for e in steps)


def score(answer: str, expected: str, meaning: Meaning = PLAIN) -> dict[str, float]:
    """Return the reward's terms: `form` is 0.2 for any calculation, a first step to learn; `answer` 1 if correct."""
    return {"form": 0.2 * (result(answer) is not None), "answer": float(correct(answer, expected, meaning))}
