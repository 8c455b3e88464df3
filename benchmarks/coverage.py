"""python -m benchmarks.coverage [--replicates 200] [--seed 0]: simulated coverage of the 95 % intervals.

Prints Markdown tables. Questions differ in all simulations; the intra-class correlation (ICC) is that of answers to one
question. In tables with several seeds, training runs differ too. In the first table, two standard errors are about 3
points with 200 replicates and 1 with 2,000; the other tables have fewer replicates.
"""

import argparse
import math
from collections.abc import Callable

import numpy as np

from staytrue.evals.stats import compare as comparing
from staytrue.evals.stats.compare import compare
from staytrue.evals.stats.intervals import over_runs, pooled
from staytrue.evals.stats.misalign_at_k import misalign_at_k

QUESTIONS, SAMPLES, PERCENTS, ALIKE = (8, 24, 40, 100, 400), (1, 4, 20, 100), (1, 5, 20, 50, 90), (0.05, 0.2, 0.5, 0.8)
_GAUSS = np.polynomial.hermite_e.hermegauss(80)
Counts = np.ndarray  # hits: (questions,) or (questions, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, n = np.random.default_rng(options.seed), options.replicates
    for table in (one_seed, unlucky, several_seeds, two_conditions, tails):
        table(rng, n)


def one_seed(rng: np.random.Generator, n: int) -> None:
    """`rate`: beta-binomial questions."""
    alike = [f"covers % at ICC {icc}" for icc in ALIKE]
    head("One seed", "questions", "samples", "rate %", *alike, "mean width at 0.2", "bootstrap covers % at 0.2")
    for questions in QUESTIONS:
        for samples in SAMPLES:
            for percent in PERCENTS:
                held, widths = {}, {}
                for icc in ALIKE if samples > 1 else (0.2,):
                    draw = beta(percent / 100, icc)
                    worlds = [rng.binomial(samples, draw(rng, questions)) for _ in range(n)]
                    held[icc], widths[icc] = covered([interval(hits, samples) for hits in worlds], percent)
                    if icc == 0.2:
                        old, _ = covered([bootstrap(rng, hits, samples) for hits in worlds[: n // 4]], percent)
                line(questions, samples, percent, *(held.get(icc, "") for icc in ALIKE), widths[0.2], old)


def unlucky(rng: np.random.Generator, n: int) -> None:
    """A limit of every interval: a rare question with almost only bad answers that was not sampled."""
    head("One question in 180 is bad in 90 % of its answers, the others in 0.5 %", "questions", "samples", "covers %")
    for questions in (24, 120, 500):
        for samples in (4, 100):
            bad = 0.01 * 0.5 / 0.9
            other = (0.01 - bad * 0.9) / (1 - bad)
            worlds = [rng.binomial(samples, np.where(rng.random(questions) < bad, 0.9, other)) for _ in range(n)]
            line(questions, samples, covered([interval(hits, samples) for hits in worlds], 1)[0])


def several_seeds(rng: np.random.Generator, n: int) -> None:
    """`pooled` and `over_runs`: normal effects of questions, seeds and their cells on the log-odds."""
    titles = ("questions", "seeds", "samples", "rate %", "sd of seeds", "covers %", "mean width")
    head("Several seeds", *titles, "over_runs covers %", "its mean width")
    for questions, samples in ((24, 20), (120, 4)):
        for seeds in (2, 3, 5):
            for percent in (5, 20, 50):
                for spread in (0.0, 0.3, 0.7):
                    draw = effects(percent / 100, seeds, question=1.5, seed=spread, cell=0.5)
                    worlds = [rng.binomial(samples, draw(rng, questions)) for _ in range(n // 3)]
                    held, width = covered([interval(hits, samples) for hits in worlds], percent)
                    old, wide = covered([summaries(hits, samples) for hits in worlds], percent)
                    line(questions, seeds, samples, percent, spread, held, width, old, wide)


def two_conditions(rng: np.random.Generator, n: int) -> None:
    """`compare`: false positives at 5 % without a difference, and power at the difference it calls detectable."""
    comparing._FLIPS = 499  # enough for a test at 5 %
    titles = ("questions", "seeds", "samples", "rate %", "covers %", "false positives %", "detectable", "found there %")
    head("Two conditions, paired", *titles)
    for questions, samples in ((24, 20), (120, 4)):
        for seeds in (1, 5):
            for percent in (5, 50):
                compared = [differing(rng, questions, seeds, samples, percent, percent) for _ in range(n // 2)]
                held, _ = covered([(100 + c.low, 100 + c.high) for c in compared], 100)
                false = 100 * np.mean([c.p <= 0.05 for c in compared])
                apart = float(np.mean([c.detectable for c in compared]))
                other = [differing(rng, questions, seeds, samples, percent + apart, percent) for _ in range(n // 5)]
                line(
                    questions, seeds, samples, percent, held, false, apart, 100 * np.mean([c.p <= 0.05 for c in other])
                )


def tails(rng: np.random.Generator, n: int) -> None:
    """`misalign_at_k`: beta-binomial questions, 32 answers each."""
    head(
        "Misalign@k, 32 answers a question", "questions", "k", "rate %", "ICC", "Misalign@k %", "covers %", "mean width"
    )
    for questions in (24, 120):
        for k in (1, 8, 32):
            for percent, alike in ((1, 0.2), (5, 0.2), (20, 0.5)):
                draw = beta(percent / 100, alike)
                truth = at_least_once(percent / 100, alike, k)
                intervals = [at(k, rng.binomial(32, draw(rng, questions)), 32) for _ in range(n // 5)]
                line(questions, k, percent, alike, truth, *covered(intervals, truth))


def beta(share: float, alike: float) -> Callable[[np.random.Generator, int], Counts]:
    """The distribution of a question's probability, by its mean and the intra-class correlation of its answers."""
    weight = (1 - alike) / alike
    return lambda rng, size: rng.beta(share * weight, (1 - share) * weight, size)


def at_least_once(share: float, alike: float, k: int) -> float:
    """Misalign@k in percent under `beta`: 1 - B(a, b + k) / B(a, b)."""
    weight = (1 - alike) / alike
    b = (1 - share) * weight
    none = math.lgamma(b + k) + math.lgamma(weight) - math.lgamma(b) - math.lgamma(weight + k)
    return 100 * (1 - math.exp(none))


def effects(
    share: float, seeds: int, question: float, seed: float, cell: float
) -> Callable[[np.random.Generator, int], Counts]:
    """The chances of questions by seeds, with normal effects on the log-odds and this mean over all of them."""
    middle = centre(share, math.sqrt(question**2 + seed**2 + cell**2))

    def draw(rng: np.random.Generator, questions: int) -> Counts:
        odds = question * rng.standard_normal((questions, 1)) + seed * rng.standard_normal((1, seeds))
        return logistic(middle + odds + cell * rng.standard_normal((questions, seeds)))

    return draw


def differing(rng: np.random.Generator, questions: int, seeds: int, samples: int, *percents: float):
    """Two conditions with the questions' effect in common and one of their own, each seed a training run of its own."""
    common, own, seed = 1.5, 0.7, 0.3 if seeds > 1 else 0.0
    shared = common * rng.standard_normal((questions, 1))
    both = []
    for percent in percents:
        odds = shared + own * rng.standard_normal((questions, 1)) + seed * rng.standard_normal((1, seeds))
        chance = logistic(centre(percent / 100, math.sqrt(common**2 + own**2 + seed**2)) + odds)
        both.append(runs(rng.binomial(samples, chance), samples))
    return compare(*both)


def centre(share: float, spread: float) -> float:
    """The mean log-odds of a normal distribution with this spread and this mean probability."""
    low, high = -40.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = (logistic(middle + spread * _GAUSS[0]) * _GAUSS[1]).sum() / _GAUSS[1].sum()
        low, high = (middle, high) if mean < share else (low, middle)
    return low


def logistic(odds: Counts) -> Counts:
    return 1 / (1 + np.exp(-odds))


def runs(hits: Counts, samples: int) -> list[dict[str, tuple[float, float]]]:
    columns = hits[:, None] if hits.ndim == 1 else hits
    return [{str(q): (int(h), samples) for q, h in enumerate(column)} for column in columns.T]


def interval(hits: Counts, samples: int) -> tuple[float, float]:
    rate = pooled(runs(hits, samples))
    return rate.low, rate.high


def summaries(hits: Counts, samples: int) -> tuple[float, float]:
    each = [pooled([run]) for run in runs(hits, samples)]
    return over_runs([(rate.percent, rate.low, rate.high) for rate in each])[1:]


def at(k: int, hits: Counts, samples: int) -> tuple[float, float]:
    row = {"alignment": 90, "incoherent": False, "missing": ""}
    rows = [row | {"question": str(q), "misaligned": i < h} for q, h in enumerate(hits) for i in range(samples)]
    rate = misalign_at_k(rows, k).misaligned
    return rate.low, rate.high


def bootstrap(rng: np.random.Generator, hits: Counts, samples: int) -> tuple[float, float]:
    """For comparison: the percentile bootstrap over questions, 400 draws."""
    drawn = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), size=400) @ hits
    low, high = np.percentile(100 * drawn / (len(hits) * samples), [2.5, 97.5])
    return float(low), float(high)


def covered(intervals: list[tuple[float, float]], truth: float) -> tuple[float, float]:
    """Coverage in percent, and the mean width in points."""
    held = [low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals]
    return 100 * float(np.mean(held)), float(np.mean([high - low for low, high in intervals]))


def head(title: str, *names: str) -> None:
    print(f"\n**{title}**\n\n| {' | '.join(names)} |\n|{' --- |' * len(names)}")


def line(*cells: float | str) -> None:
    shown = [f"{c:.1f}" if isinstance(c, float) else str(c) for c in cells]
    print(f"| {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
