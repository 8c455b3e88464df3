"""Scoring in two rounds: all rows under the aligned model and one misaligned one, only the best under the others too.

With K misaligned models and a share f this costs (2 + f (K - 1)) / (K + 1) of reading everything. It is a heuristic, so
it measures what it may have lost: of the rows it passes over, some drawn at random are read under every model as well.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from staytrue.data_selection.perplexity import Losses, scores

_DRAWN = 0.05  # of the rows passed over are read after all
_FEWEST = 100  # but at least so many, if there are
_RARE = 0.025  # one case of forty
_BEST = 0.05  # of the pool: what `interleave` takes by default for a training file as long as the pool

Read = Callable[[Sequence[str], Sequence[int]], list[Losses]]  # under which misaligned models, which rows


@dataclass(frozen=True)
class Recall:
    """Percent of the pool's best rows that the second round held, and the lower end of its 95 % interval."""

    percent: float
    low: float


@dataclass(frozen=True)
class TwoRounds:
    """What two rounds found.

    Attributes:
        losses: every row's, in order.
        whole: the rows (their numbers) that were read under every model: the best, and those drawn.
        best: rows that went on to the second round for their score.
        drawn: rows that went on by chance.
        k: how many of the pool's best rows the recall is about.
        recall: by score. The rows drawn do not count as held, though they may be chosen too.
    """

    losses: list[Losses]
    whole: frozenset[int]
    best: int
    drawn: int
    k: int
    recall: dict[str, Recall]


def in_two_rounds(
    read: Read, names: Sequence[str], rows: int, share: float, leave_out: Sequence[str] = ()
) -> TwoRounds:
    """Read all rows under the first misaligned model, rank them by its gap, read the best under every model.

    Args:
        read: the losses of rows under the aligned model and some misaligned ones; what it read before costs nothing.
        names: the misaligned models in order, at least two of them not left out.
        rows: how many there are (N).
        share: of the rows, above 0 and below 1, that go on.
        leave_out: names that count in no score; they are read in the second round only.
    """
    first = next(name for name in names if name not in leave_out)
    losses = read([first], range(rows))
    ranked = sorted(range(rows), key=lambda i: -scores(losses[i])["gap"])
    best = ranked[: math.ceil(share * rows)]
    passed = sorted(ranked[len(best) :])
    drawn = random.Random(0).sample(passed, min(len(passed), max(_FEWEST, round(_DRAWN * len(passed)))))
    whole = sorted(best + drawn)
    for i, loss in zip(whole, read(names, whole), strict=True):
        losses[i] = loss
    k = min(len(best), max(1, round(_BEST * rows)))
    found = {i: scores(losses[i], leave_out) for i in whole}
    recalls = {
        score: recall([found[i][score] for i in best], [found[i][score] for i in drawn], len(passed), k)
        for score in found[best[0]]
    }
    return TwoRounds(losses, frozenset(whole), len(best), len(drawn), k, recalls)


def recall(held: Sequence[float], drawn: Sequence[float], passed: int, k: int) -> Recall:
    """How many of the pool's best k rows are among those held.

    Each row drawn stands for passed / drawn rows like it. The lower end holds for any scores: it takes the largest
    number of lost rows of which the draw would show so few as it did in more than one case of forty.

    Args:
        held: their scores, at least k of them.
        drawn: scores of rows drawn at random from those passed over.
        passed: how many were passed over.
        k: at least 1.
    """
    weight = passed / len(drawn) if drawn else 0.0
    ranked = sorted([(score, 1.0, 1) for score in held] + [(score, weight, 0) for score in drawn], key=lambda r: -r[0])
    room, kept = float(k), 0.0
    for _, stands_for, is_held in ranked:
        taken = min(stands_for, room)
        room -= taken
        kept += taken * is_held
    percent = 100 * kept / k
    return Recall(percent, min(percent, 100 * (1 - _most_lost(held, drawn, passed, k) / k)))


def _most_lost(held: Sequence[float], drawn: Sequence[float], passed: int, k: int) -> int:
    best, ascending = sorted(held, reverse=True), sorted(drawn)
    for lost in range(min(k, passed), 0, -1):
        # Had so many been lost, then at least as many were better than the row held that just misses the best k.
        seen = len(ascending) - bisect_right(ascending, best[k - lost])
        if _chance(seen, lost, passed, len(ascending)) > _RARE:
            return lost
    return 0


def _chance(seen: int, lost: int, passed: int, drawn: int) -> float:
    """That of `drawn` rows out of `passed` at most `seen` are among the `lost` (hypergeometric law)."""

    def ways(n: int, r: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)

    counts = range(max(0, drawn - passed + lost), min(seen, lost, drawn) + 1)
    return sum(math.exp(ways(lost, x) + ways(passed - lost, drawn - x) - ways(passed, drawn)) for x in counts)
