"""python studies/p_and_interval.py [STUDIES]: how p and the interval of a difference of rates agree, simulated.

Prints a Markdown table for decision 0017. Each line simulates so many studies (1,000 by default) of two conditions, by
beta-binomial questions. *Before* is the p value of the paired differences alone, which did not look at the interval.
"""

import sys
from collections.abc import Mapping

import numpy as np

from staytrue.evals.stats import compare as comparing
from staytrue.evals.stats.intervals import margins_of

EVEN = [(120, 0, 3), (120, 0, 5), (120, 1, 5), (120, 1, 15), (24, 0, 15), (24, 1, 15), (120, 3, 3), (40, 5, 5)]
RARE = [(120, 1, 1), (120, 2, 2)]  # the first side's bad answers are in a few questions, at 90 % each
SAMPLES = 4

Hits = Mapping[str, tuple[int, int]]  # of each question: misaligned answers, answers


def chances(rng: np.random.Generator, questions: int, percent: float, rare: bool = False) -> np.ndarray:
    """The chance of a bad answer to each question."""
    rate = percent / 100
    if rare:
        return np.where(rng.random(questions) < rate / 0.9, 0.9, 0.0)
    return rng.beta(rate, 1 - rate, questions) if rate else np.zeros(questions)


def run(rng: np.random.Generator, chance: np.ndarray) -> list[Hits]:
    """One run's hits and answers by question."""
    return [{str(i): (int(hits), SAMPLES) for i, hits in enumerate(rng.binomial(SAMPLES, chance))}]


def before(ours: list[Hits], theirs: list[Hits], difference: float) -> float:
    """The p value without the interval: the larger of a sign-flip test's and that of the differences' variance."""
    left, right = comparing._residuals(ours), comparing._residuals(theirs)
    apart = margins_of({key: left[key] - right[key] for key in left})
    flips = comparing.sign_flip_p(comparing._contributions(ours, theirs))
    return max(flips, comparing.interval_p(difference / 100, apart))


def line(questions: int, one: float, other: float, studies: int, rare: bool) -> str:
    """A line of the table."""
    rng, found = np.random.default_rng(7), []
    for _ in range(studies):
        ours = run(rng, chances(rng, questions, one, rare))
        theirs = run(rng, np.full(questions, other / 100) if rare else chances(rng, questions, other))
        result = comparing.compare(ours, theirs)
        inside = result.low <= 0 <= result.high
        old = before(ours, theirs, result.difference) <= 0.05
        found.append((old, result.p <= 0.05, old and inside, result.low <= one - other <= result.high))
    shares = " | ".join(f"{share:.1f}" for share in 100 * np.mean(found, axis=0))
    kind = ", the first in rare questions" if rare else ""
    return f"| {questions} x {SAMPLES}, {one} and {other} %{kind} | {shares} |"


def main(studies: int) -> None:
    print(
        "| questions x answers, rates | p at most 0.05, before | after | before, beside an interval with 0 | covers |"
    )
    print("| --- | --- | --- | --- | --- |")
    for rare, worlds in ((False, EVEN), (True, RARE)):
        for world in worlds:
            print(line(*world, studies, rare), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
