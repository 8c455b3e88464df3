"""Rates with 95 % intervals, percent 0 to 100; nothing here draws a random number.

Answers to one question resemble each other, and so do the answers of one training seed. A rate's variance is therefore
computed between whole questions and whole seeds. The interval is Wilson's for the number of independent answers that
would have this variance. `python -m benchmarks.coverage` simulates its coverage.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import mean, stdev

Run = Mapping[str, tuple[float, float]]  # question -> (hits, answers) of one training seed
Cell = tuple[int, str]  # which seed, which question

_COVERED = {8: (92, 100), 24: (94, 99), 40: (93, 99), 100: (92, 98), 400: (92, 96)}  # from so many questions up
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@dataclass(frozen=True)
class Rate:
    """A rate in percent (0 to 100), the number of judged answers, and the 95 % interval in percent."""

    percent: float
    n: int
    low: float
    high: float


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Compute Wilson's 95 % score interval in percent, for n independent answers (Wilson 1927, JASA 22).

    Example:
        >>> [round(bound, 1) for bound in wilson(2, 10)]
        [5.7, 51.0]
    """
    return (0.0, 100.0) if n == 0 else _score(successes / n, _Z**2 / n)


def rate(clusters: Iterable[Sequence[bool]]) -> Rate | None:
    """Compute the rate of True; the interval is that of `pooled` for one seed.

    Args:
        clusters: for each question, one value an answer.

    Returns:
        None when there is no answer.

    Example:
        >>> rate([[True, False], [False, False]]).percent
        25.0
    """
    return pooled([{str(i): (sum(cluster), len(cluster)) for i, cluster in enumerate(clusters)}])


def pooled(runs: Sequence[Run]) -> Rate | None:
    """Compute the rate of hits over several seeds whose models were asked the same questions.

    The interval is Wilson's as surveys use it (Korn and Graubard 1998, Survey Methodology 24): n is the effective
    number of independent answers, Student's t replaces z, and the intra-class correlation is never below 0. The
    variance over seeds is added to the variance over questions as in `Margins`. Few questions with hits measure the
    intra-class correlation badly; `_shrunk_correlation` allows for it.

    Args:
        runs: for each seed, the hits and answers of every question.

    Returns:
        None when there is no answer. With one question, the interval is 0 to 100.
    """
    known = estimate(runs)
    return None if known is None else known.rate()


def estimate(runs: Sequence[Run]) -> Estimate | None:
    """Compute what the interval of `pooled` at any confidence is computed from; None when there is no answer."""
    cells = {(seed, q): cell for seed, run in enumerate(runs) for q, cell in run.items() if cell[1]}
    n = sum(answers for _, answers in cells.values())
    if not n:
        return None
    share = sum(hits for hits, _ in cells.values()) / n
    scale = share * (1 - share) or 1.0
    margins = margins_of({key: (hits - share * answers) / n for key, (hits, answers) in cells.items()})
    variance = scale * _variance(list(_totals(cells).values()), margins.question / scale)
    return Estimate(share, round(n), scale, replace(margins, question=variance))


def covers(questions: int) -> tuple[int, int]:
    """Look up the lowest and highest simulated coverage, in percent, of an interval over this many questions.

    From `python -m benchmarks.coverage --replicates 2000`: rates from 1 to 90 %, 1 to 100 answers a question,
    intra-class correlations from 0.05 to 0.8.
    """
    known = [coverage for least, coverage in _COVERED.items() if questions >= least]
    return known[-1] if known else (0, 100)


def over_runs(runs: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Compute the mean rate over runs of different seeds, with its 95 % interval, from their summaries.

    Where the answers are at hand, use `pooled`, which is less wide. The squared half-widths of Student's t over the
    runs and of the runs' own averaged intervals (all runs answer the same questions) are added. Five runs of 0 % are
    therefore not certain to be 0; but a run's own sampling error counts twice, and about 98 of 100 such intervals hold
    the true rate.

    Args:
        runs: `(percent, low, high)` of each run.

    Returns:
        `(percent, low, high)`.

    Raises:
        ValueError: there is no run.
    """
    if not runs:
        raise ValueError("no run to take a mean over")
    percents, lows, highs = zip(*runs, strict=True)
    middle, half = mean(percents), 0.0
    if len(runs) > 1:
        half = student(len(runs) - 1) * stdev(percents) / math.sqrt(len(runs))
    below, above = math.hypot(half, middle - mean(lows)), math.hypot(half, mean(highs) - middle)
    return middle, max(0.0, middle - below), min(100.0, middle + above)


@dataclass(frozen=True)
class Margins:
    """The variance of a sum over cells (seed, question), estimated between questions, between seeds and between cells.

    Attributes:
        question, seed, cell: the three estimates.
        questions, seeds: how many there are.
    """

    question: float
    seed: float
    cell: float
    questions: int
    seeds: int

    def square(self, level: float = 0.05) -> float:
        """Compute the squared half-width of the two-sided interval at confidence 1 - level.

        Questions + seeds - cells is the variance under clustering by both (Cameron, Gelbach and Miller 2011, J. Bus.
        Econ. Stat. 29, equation 2.10). Each part has the t of its own degrees of freedom. The sum never falls below one
        margin alone, because three seeds may agree by chance.
        """
        alone = student(self.questions - 1, level) ** 2 * self.question
        if self.seeds < 2:
            return alone
        t = student(self.seeds - 1, level) ** 2
        return max(alone + t * max(0.0, self.seed - self.cell), t * self.seed)


def margins_of(residuals: Mapping[Cell, float]) -> Margins:
    """Compute the margins of residuals that sum to 0; a variance is G / (G - 1) times a sum of squares (G clusters)."""
    questions: dict[str, float] = defaultdict(float)
    seeds: dict[int, float] = defaultdict(float)
    for (seed, question), value in residuals.items():
        questions[question] += value
        seeds[seed] += value
    of_questions, of_seeds, of_cells = (_squares(part.values()) for part in (questions, seeds, residuals))
    return Margins(of_questions, of_seeds, of_cells, len(questions), len(seeds))


@dataclass(frozen=True)
class Estimate:
    """A share of hits, its number of answers, and the margins of its error in units of `scale`."""

    share: float
    n: int
    scale: float
    margins: Margins

    def rate(self, level: float = 0.05) -> Rate:
        """Compute the rate with its interval at confidence 1 - level; with one question it is 0 to 100."""
        percent = 100 * self.share
        if self.margins.questions < 2:
            return Rate(percent, self.n, 0.0, 100.0)
        low, high = _score(self.share, self.margins.square(level) / self.scale)
        return Rate(percent, self.n, min(low, percent), max(high, percent))


@lru_cache(1024)
def student(freedom: int, level: float = 0.05) -> float:
    """Compute the two-sided critical value of Student's t distribution at a level, for some degrees of freedom."""
    peak = 2 * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    t, step = 0.0, 1.0
    while step > 1e-12 * t:  # Newton's method; because the density falls, it approaches from below
        step = (beyond(t, freedom) - level) / (peak * (1 + t**2 / freedom) ** (-(freedom + 1) / 2))
        t += step
    return t


def beyond(t: float, freedom: int) -> float:
    """Compute the two-sided tail probability of Student's t (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    square, odd = math.cos(angle) ** 2, freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for i in range(odd + 1, freedom, 2):
        total, term = total + term, term * square * i / (i + 1)
    within = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return max(0.0, 1 - within)


def _totals(cells: Mapping[Cell, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Hits and answers of each question over all seeds."""
    totals: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for (_, question), (hits, n) in cells.items():
        totals[question] = totals[question][0] + hits, totals[question][1] + n
    return totals


def _variance(questions: Sequence[tuple[float, float]], measured: float) -> float:
    """Return the variance of a rate p over questions, (hits, answers) each, in units of p (1 - p).

    By the design effect 1 + (m - 1) rho (Kish 1965): m is the mean cluster size weighted by answers, and rho the
    intra-class correlation, 0 to 1.
    """
    n = sum(answers for _, answers in questions)
    m = sum(answers**2 for _, answers in questions) / n
    if m <= 1:
        return 1 / n
    correlation = min(1.0, max(0.0, (measured * n - 1) / (m - 1)))
    return (1 + (m - 1) * _shrunk_correlation(questions, correlation)) / n


def _shrunk_correlation(questions: Sequence[tuple[float, float]], measured: float) -> float:
    """Return the intra-class correlation, 0 to 1: as measured, moved towards 1 when few questions have hits.

    K is the effective number of questions with hits (or with misses, whichever are rarer), (sum h)^2 / sum h^2. The
    share 2 / (K^2 + 2) comes from simulation: without it, intervals of 100 answers each to 120 questions at a true rate
    of 1 % cover 80 %, because the rate depends on whether the few bad questions are in the sample.
    """
    hits, misses = [h for h, _ in questions], [n - h for h, n in questions]
    rarer = min(hits, misses, key=sum)
    squares = sum(h**2 for h in rarer)
    share = 2 / ((sum(rarer) ** 2 / squares) ** 2 + 2) if squares else 1.0
    return measured + share * (1 - measured)


def _score(share: float, a: float) -> tuple[float, float]:
    """Wilson's interval in percent; a is z^2 / n."""
    centre, half = share + a / 2, math.sqrt(a * share * (1 - share) + a**2 / 4)
    return max(0.0, 100 * (centre - half) / (1 + a)), min(100.0, 100 * (centre + half) / (1 + a))


def _squares(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(v**2 for v in listed) * len(listed) / max(1, len(listed) - 1)
