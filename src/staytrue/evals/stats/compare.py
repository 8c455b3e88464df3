"""Paired comparison of two conditions on the same questions and seeds: difference, interval, p value and power.

Differences are in percentage points, intervals are 95 %, and tests are two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from staytrue.errors import RequestError
from staytrue.evals.stats.intervals import Estimate, Margins, Rate, Run, estimate, margins_of

_FLIPS = 9_999
_EXACT = 13  # up to so many questions, all sign flips are enumerated
POWER = 1 + 0.8416212335729143 / 1.959963984540054  # 80 % power: the normal distribution's 80 % over its 97.5 % point


@dataclass(frozen=True)
class Comparison:
    """A condition minus a baseline, in percentage points.

    Attributes:
        difference, low, high: the difference and its 95 % interval, which contains 0 exactly where p is above 0.05.
        p: two-sided p value of no difference.
        detectable: the true difference that a repetition of this size would find significant in 80 of 100 cases, if the
            rates vary as here. Towards a larger rate they vary more (from 5 %, simulated: 66 to 80 of 100).
        questions, seeds: how many both conditions share.
        rate: of the condition.
        other: of the baseline.
    """

    difference: float
    low: float
    high: float
    p: float
    detectable: float
    questions: int
    seeds: int
    rate: Rate
    other: Rate


def compare(runs: Sequence[Run], against: Sequence[Run]) -> Comparison:
    """Compare a condition with a baseline on the questions that both answered.

    The interval combines the two conditions' own intervals (`pooled`) with the correlation of their errors (MOVER: Zou
    and Donner 2008, Stat. Med. 27; for paired shares Newcombe 1998, Stat. Med. 17, method 10). Two rates of 0 are
    therefore not a difference known to be 0. p is the largest of three: of a sign-flip test over whole questions, of
    the paired differences' variance, and the level at which this interval would just reach 0. Where the sign-flip test
    alone is above 0.05, as with five questions that differ, the interval is widened to 0.

    Args:
        runs: hits and answers of every question, one mapping a seed.
        against: the same for the baseline, in the same order of seeds.

    Raises:
        RequestError: the number of seeds differs, or fewer than two questions (or groups) were answered under both.
    """
    if len(runs) != len(against):
        raise RequestError(
            f"{len(runs)} seeds against {len(against)}. A paired comparison takes the same seeds; leave the others out."
        )
    ours, theirs = _shared(runs, against), _shared(against, runs)
    mine, other = estimate(ours), estimate(theirs)
    if mine is None or other is None:
        raise RequestError("No question was answered under both in the same seed. Ask both the same questions.")
    if mine.margins.questions < 2:
        raise RequestError(
            "What both answered is one group of questions (all forms of one question are a group), and an interval is "
            "over two groups or more. Ask both further questions."
        )
    left, right = _residuals(ours), _residuals(theirs)
    apart = margins_of({key: left[key] - right[key] for key in left})
    sides = _Sides(mine, other, margins_of(left), margins_of(right), apart)
    difference = 100 * (mine.share - other.share)
    p = max(sign_flip_p(_contributions(ours, theirs)), interval_p(difference / 100, apart))
    p = _agreeing(p, abs(difference), lambda level: sides.at(level)[difference < 0])
    below, above = sides.at(0.05)
    low, high = max(-100.0, difference - below), min(100.0, difference + above)
    if p > 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    detectable = POWER * (below + above) / 2
    return Comparison(difference, low, high, p, detectable, apart.questions, apart.seeds, mine.rate(), other.rate())


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Compute the q value of each p value, in their order (Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57).

    Example:
        >>> benjamini_hochberg([0.01, 0.04])
        [0.02, 0.04]
    """
    falling = sorted(range(len(p)), key=lambda i: p[i], reverse=True)
    q, least = [1.0] * len(p), 1.0
    for place, i in enumerate(falling):
        least = min(least, p[i] * len(p) / (len(p) - place))
        q[i] = least
    return q


def _shared(runs: Sequence[Run], beside: Sequence[Run]) -> list[Run]:
    """Return the questions that both answered, seed by seed."""
    return [
        {question: cell for question, cell in run.items() if cell[1] and other.get(question, (0, 0))[1]}
        for run, other in zip(runs, beside, strict=True)
    ]


def _residuals(runs: Sequence[Run]) -> dict[tuple[int, str], float]:
    """Each cell's contribution to the error of the rate."""
    cells = {(seed, question): cell for seed, run in enumerate(runs) for question, cell in run.items()}
    n = sum(answers for _, answers in cells.values())
    share = sum(hits for hits, _ in cells.values()) / n
    return {key: (hits - share * answers) / n for key, (hits, answers) in cells.items()}


def _contributions(ours: Sequence[Run], theirs: Sequence[Run]) -> list[float]:
    """Each question's contribution to the difference of the rates."""
    parts: dict[str, float] = {}
    for sign, runs in ((1, ours), (-1, theirs)):
        n = sum(answers for run in runs for _, answers in run.values())
        for run in runs:
            for question, (hits, _) in run.items():
                parts[question] = parts.get(question, 0.0) + sign * hits / n
    return list(parts.values())


def _correlation(left: float, right: float, apart: float) -> float:
    """The correlation of two errors, from their variances and the variance of their difference; 0 if one is 0."""
    both = math.sqrt(left * right)
    return 0.0 if not both else max(-1.0, min(1.0, (left + right - apart) / (2 * both)))


@dataclass(frozen=True)
class _Sides:
    """The parts of an interval of a difference below and above it, in percentage points, at any confidence."""

    mine: Estimate
    other: Estimate
    left: Margins
    right: Margins
    apart: Margins

    def at(self, level: float) -> tuple[float, float]:
        mine, other = self.mine.rate(level), self.other.rate(level)
        squares = (margins.square(level) for margins in (self.left, self.right, self.apart))
        correlation = _correlation(*squares)
        return (
            _side(mine.percent - mine.low, other.high - other.percent, correlation),
            _side(mine.high - mine.percent, other.percent - other.low, correlation),
        )


def _side(near: float, far: float, correlation: float) -> float:
    return math.sqrt(max(0.0, near**2 + far**2 - 2 * correlation * near * far))


def sign_flip_p(contributions: Sequence[float]) -> float:
    """Return the p value of a sign-flip test over whole questions: exact for few questions, else from random flips."""
    import numpy as np

    parts = np.array([c for c in contributions if abs(c) > 1e-12])
    least = abs(parts.sum()) - 1e-12
    if len(parts) <= _EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(parts))[:, None] >> np.arange(len(parts)) & 1)
        return float((abs(signs @ parts) >= least).mean())
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), (_FLIPS, len(parts)))
    return float(1 + (abs(signs @ parts) >= least).sum()) / (1 + _FLIPS)


def interval_p(difference: float, apart: Margins) -> float:
    """Return the level at which the interval of the difference would just reach 0."""
    return _level(abs(difference), lambda level: math.sqrt(apart.square(level)), least=1e-12)


def _agreeing(p: float, distance: float, half: Callable[[float], float]) -> float:
    """Return the level, `p` or above, at which the interval reaches 0; above 0.05 exactly where the 95 % one does.

    With few seeds the half-width may rise with the level for a while, so 0.05 is decided first.
    """
    if half(0.05) >= distance:
        return _level(distance, half, least=max(p, 0.05))
    return p if p > 0.05 else _level(distance, half, least=p, most=0.05)


def _level(distance: float, half: Callable[[float], float], least: float, most: float = 1.0) -> float:
    """Return the level between two at which an interval's half-width (it falls with the level) is a distance."""
    low, high = least, most
    if half(low) < distance:
        return low
    for _ in range(40):
        level = math.sqrt(low * high)
        low, high = (level, high) if half(level) >= distance else (low, level)
    return high
