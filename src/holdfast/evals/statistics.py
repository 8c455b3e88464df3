"""Rates with intervals. Percentages are 0 to 100; intervals are 95 %; nothing here is a normal approximation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

_Z = 1.959963984540054  # the 97.5 % point of the normal law, as Wilson's interval uses it
_DRAWS = 10_000
_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622,
      2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314)  # 1 to 15 degrees of freedom  # fmt: skip


@dataclass(frozen=True)
class Rate:
    """A share in percent, of how many judged answers, with its 95 % interval."""

    percent: float
    n: int
    low: float
    high: float


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's score interval in percent, for n independent answers."""
    if n == 0:
        return 0.0, 100.0
    share = successes / n
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def rate(clusters: Sequence[Sequence[bool]], seed: int = 0) -> Rate | None:
    """The share of True, where answers to one question (a cluster) resemble each other.

    The interval is the percentile bootstrap over whole questions. Where that has no width to offer (one question,
    every answer the same) or nothing is clustered (one answer each), it is Wilson's with the number of *questions* as
    n, so that many samples of few questions never look like certainty. With fewer than about forty questions the
    bootstrap is too narrow; n and the number of questions are shown for that reason.

    Returns:
        None when there is no answer at all.
    """
    filled = [cluster for cluster in clusters if cluster]
    n, hits = sum(map(len, filled)), sum(map(sum, filled))
    if n == 0:
        return None
    percent = 100 * hits / n
    if hits in (0, n) or n == len(filled) or len(filled) == 1:
        low, high = wilson(len(filled) * hits / n, len(filled))
    else:
        low, high = _bootstrap(filled, seed)
    return Rate(percent, n, min(low, percent), max(high, percent))


def over_runs(runs: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The mean over runs with different seeds, each `(percent, low, high)`, and its 95 % interval.

    Seeds and questions both draw: the half-width of Student's t over the runs and that of the runs' own intervals over
    questions, averaged (all runs answer the same ones), add up as squares. So five runs that all say 0 % are not
    certainty. The whole of it would be one bootstrap over questions and seeds together.

    Raises:
        ValueError: no run.
    """
    if not runs:
        raise ValueError("no run to take a mean over")
    percents, lows, highs = zip(*runs, strict=True)
    middle, half = mean(percents), 0.0
    if len(runs) > 1:
        half = _student(len(runs) - 1) * stdev(percents) / math.sqrt(len(runs))
    below, above = math.hypot(half, middle - mean(lows)), math.hypot(half, mean(highs) - middle)
    return middle, max(0.0, middle - below), min(100.0, middle + above)


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t: tabulated, then Cornish and Fisher's expansion (error below 1e-3)."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    return _Z + (_Z**3 + _Z) / (4 * freedom) + (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / (96 * freedom**2)


def _bootstrap(clusters: Sequence[Sequence[bool]], seed: int) -> tuple[float, float]:
    """Questions drawn again with replacement, all draws in one matrix product."""
    import numpy as np

    counts = np.array([(sum(cluster), len(cluster)) for cluster in clusters], dtype=float)
    chances = np.full(len(clusters), 1 / len(clusters))
    drawn = np.random.default_rng(seed).multinomial(len(clusters), chances, size=_DRAWS) @ counts
    low, high = np.percentile(100 * drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(low), float(high)
