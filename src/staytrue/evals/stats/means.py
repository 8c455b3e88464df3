"""Means of numbers over questions and seeds, with 95 % intervals, and paired differences of two conditions.

The interval is over questions, and with several seeds over questions and seeds together, by the same `Margins` as that
of a rate. A bootstrap over both is too narrow for the three or five seeds that a study has: docs/evaluation.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from staytrue.errors import RequestError
from staytrue.evals.stats.compare import POWER, interval_p, sign_flip_p
from staytrue.evals.stats.intervals import Margins, margins_of

Values = Mapping[str, float]  # question -> the value of one training seed


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval; `low` and `high` are None for a single question."""

    value: float
    low: float | None
    high: float | None
    questions: int
    seeds: int


@dataclass(frozen=True)
class Difference:
    """A condition's mean minus a baseline's, over the same questions and seeds.

    Attributes:
        difference, low, high: the difference and its 95 % interval, in the unit of the values.
        p: two-sided p value of no difference.
        detectable: the true difference that a repetition of this size would find significant in 80 of 100 cases.
        questions, seeds: how many both conditions share.
        mean: of the condition.
        other: of the baseline.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float
    questions: int
    seeds: int
    mean: Mean
    other: Mean


def mean(runs: Sequence[Values]) -> Mean | None:
    """Compute the mean over all questions and seeds.

    Args:
        runs: for each seed, the value of every question.

    Returns:
        None when there is no value.

    Example:
        >>> mean([{"a": 1.0, "b": 3.0}]).value
        2.0
    """
    cells = {(seed, question): value for seed, run in enumerate(runs) for question, value in run.items()}
    if not cells:
        return None
    middle, margins = _margins(cells)
    half = math.sqrt(margins.square()) if margins.questions > 1 else None
    low, high = (None, None) if half is None else (middle - half, middle + half)
    return Mean(middle, low, high, margins.questions, margins.seeds)


def difference(runs: Sequence[Values], against: Sequence[Values]) -> Difference:
    """Compare the means of a condition and a baseline on the questions that both have, seed by seed.

    Args:
        runs: the value of every question, one mapping a seed.
        against: the same for the baseline, in the same order of seeds.

    Raises:
        RequestError: fewer than two questions have a value under both.
    """
    ours = [{q: value for q, value in run.items() if q in other} for run, other in zip(runs, against, strict=True)]
    theirs = [{q: other[q] for q in run} for run, other in zip(ours, against, strict=True)]
    mine, other = mean(ours), mean(theirs)
    if mine is None or other is None or mine.questions < 2:
        raise RequestError("Fewer than two questions were measured under both. Measure both on the same questions.")
    apart = {
        (seed, question): value - theirs[seed][question]
        for seed, run in enumerate(ours)
        for question, value in run.items()
    }
    middle, margins = _margins(apart)
    half = math.sqrt(margins.square())
    by_question: dict[str, float] = {}
    for (_, question), value in apart.items():
        by_question[question] = by_question.get(question, 0.0) + value
    p = max(sign_flip_p(list(by_question.values())), interval_p(middle, margins))
    low, high, seeds = middle - half, middle + half, margins.seeds
    return Difference(middle, low, high, p, POWER * half, margins.questions, seeds, mine, other)


def _margins(cells: Mapping[tuple[int, str], float]) -> tuple[float, Margins]:
    """The mean of the cells (seed, question), and the margins of its error."""
    middle = math.fsum(cells.values()) / len(cells)
    return middle, margins_of({key: (value - middle) / len(cells) for key, value in cells.items()})
