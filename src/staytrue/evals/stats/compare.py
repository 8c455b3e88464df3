"""Two conditions on the same questions and seeds: how far apart, how surely, and what would have been seen.

Differences are in percentage points, intervals 95 %, tests two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from staytrue.errors import RequestError
from staytrue.evals.stats.intervals import Margins, Rate, Run, margins_of, pooled

_FLIPS = 9_999
_EXACT = 13  # questions up to which all flips are gone through
_POWER = 1 + 0.8416212335729143 / 1.959963984540054  # 80 % power: the normal law's 80 % point beside its 97.5 % point


@dataclass(frozen=True)
class Comparison:
    """A condition minus the one it is held against, in percentage points."""

    difference: float
    low: float
    high: float
    p: float  # of no difference, two-sided
    detectable: float  # the true difference that a repetition of this size would call significant in 80 of 100 cases,
    # if the rates vary then as they do here; towards a larger rate they vary more (from 5 %, simulated: 66 to 80)
    questions: int
    seeds: int
    rate: Rate  # of the condition itself
    other: Rate  # of the one it is held against


def compare(runs: Sequence[Run], against: Sequence[Run]) -> Comparison:
    """One condition against another; runs stand in the order of their seeds, the same seeds in both.

    Only what both answered counts. The interval is made of the two conditions' own (`pooled`) and of how their errors
    go together (MOVER: Zou and Donner 2008, Stat. Med. 27; for paired shares Newcombe 1998, Stat. Med. 17, method 10),
    so that two rates of 0 are not a difference known to be 0.

    Raises:
        RequestError: the number of seeds differs, or no question of a seed was answered under both.
    """
    if len(runs) != len(against):
        raise RequestError(
            f"{len(runs)} seeds against {len(against)}. A paired comparison takes the same seeds; leave the others out."
        )
    ours, theirs = _shared(runs, against), _shared(against, runs)
    mine, other = pooled(ours), pooled(theirs)
    if mine is None or other is None:
        raise RequestError("No question was answered under both in the same seed. Ask both the same questions.")
    left, right = _residuals(ours), _residuals(theirs)
    apart = margins_of({key: left[key] - right[key] for key in left})
    together = _together(margins_of(left).square(), margins_of(right).square(), apart.square())
    difference = mine.percent - other.percent
    below = _side(mine.percent - mine.low, other.high - other.percent, together)
    above = _side(mine.high - mine.percent, other.percent - other.low, together)
    return Comparison(
        difference,
        max(-100.0, difference - below),
        min(100.0, difference + above),
        max(_flipped(_contributions(ours, theirs)), _chance(difference / 100, apart)),
        _POWER * (below + above) / 2,
        apart.questions,
        apart.seeds,
        mine,
        other,
    )


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """The q value of each p value, in the order given (Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57)."""
    falling = sorted(range(len(p)), key=lambda i: p[i], reverse=True)
    q, least = [1.0] * len(p), 1.0
    for place, i in enumerate(falling):
        least = min(least, p[i] * len(p) / (len(p) - place))
        q[i] = least
    return q


def _shared(runs: Sequence[Run], beside: Sequence[Run]) -> list[Run]:
    """What was answered under both, seed by seed."""
    return [
        {question: cell for question, cell in run.items() if cell[1] and other.get(question, (0, 0))[1]}
        for run, other in zip(runs, beside, strict=True)
    ]


def _residuals(runs: Sequence[Run]) -> dict[tuple[int, str], float]:
    """What each cell adds to the error of the share."""
    cells = {(seed, question): cell for seed, run in enumerate(runs) for question, cell in run.items()}
    n = sum(answers for _, answers in cells.values())
    share = sum(hits for hits, _ in cells.values()) / n
    return {key: (hits - share * answers) / n for key, (hits, answers) in cells.items()}


def _contributions(ours: Sequence[Run], theirs: Sequence[Run]) -> list[float]:
    """What each question adds to the difference of the shares."""
    found: dict[str, float] = {}
    for sign, runs in ((1, ours), (-1, theirs)):
        n = sum(answers for run in runs for _, answers in run.values())
        for run in runs:
            for question, (hits, _) in run.items():
                found[question] = found.get(question, 0.0) + sign * hits / n
    return list(found.values())


def _together(left: float, right: float, apart: float) -> float:
    """The correlation of two errors, from their variances and the variance of their difference; 0 where unknown."""
    both = math.sqrt(left * right)
    return 0.0 if not both else max(-1.0, min(1.0, (left + right - apart) / (2 * both)))


def _side(near: float, far: float, together: float) -> float:
    return math.sqrt(max(0.0, near**2 + far**2 - 2 * together * near * far))


def _flipped(contributions: Sequence[float]) -> float:
    """The share of sign flips over whole questions that part the conditions as far; all flips where they are few."""
    import numpy as np

    told = np.array([c for c in contributions if abs(c) > 1e-12])
    least = abs(told.sum()) - 1e-12
    if len(told) <= _EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(told))[:, None] >> np.arange(len(told)) & 1)
        return float((abs(signs @ told) >= least).mean())
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (_FLIPS, len(told)))
    return float(1 + (abs(signs @ told) >= least).sum()) / (1 + _FLIPS)


def _chance(difference: float, apart: Margins) -> float:
    """The level at which the interval of the difference would just reach 0."""
    low, high = 1e-12, 1.0
    for _ in range(40):
        level = math.sqrt(low * high)
        low, high = (level, high) if apart.square(level) >= difference**2 else (low, level)
    return high
