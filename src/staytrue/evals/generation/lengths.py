"""`AnswerLengths`: how many tokens answers still take, from the answers seen so far.

The longer an answer has grown, the likelier it goes on: after t tokens, the next one ends it with the chance
`rate / (t + 50)` (a Lomax distribution). With one chance for all tokens, the answers that run to the limit would be
overlooked; at temperature 1 they were one in eight of a small chat model's.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

_SCALE = 50  # tokens, by which the chance of an end falls to half


@dataclass(frozen=True)
class AnswerLengths:
    """A distribution of lengths.

    Attributes:
        rate: how soon answers end: half of them are shorter than `50 (2 ** (1 / rate) - 1)` tokens.
        error: standard error of the rate's logarithm.
    """

    rate: float
    error: float = 0.0

    @classmethod
    def seen(cls, ended: int, exposure: float, *, like: float = 1.0, weight: float = 2.0) -> AnswerLengths:
        """The likeliest distribution for answers of which some have ended and the others go on.

        Args:
            ended: how many ended before the limit.
            exposure: the sum of `exposure(tokens)` over all answers.
            like: a rate that is likely before any answer is seen.
            weight: how many ended answers this opinion is worth.
        """
        counted = ended + weight
        return cls(counted / (exposure + weight / like), 1 / math.sqrt(counted) if counted else math.inf)

    def updated(self, ended: int, exposure: float) -> AnswerLengths:
        """The likeliest distribution after further answers; this one's `error` tells how much it still counts."""
        if not self.error:
            return self
        return AnswerLengths.seen(ended, exposure, like=self.rate, weight=1 / self.error**2)

    def moved(self, errors: float) -> AnswerLengths:
        """The distribution if the rate is so many standard errors above what was seen; below 0, answers are longer."""
        return replace(self, rate=self.rate * math.exp(errors * self.error))

    def ahead(self, tokens: float, limit: float) -> float:
        """Mean tokens that an answer of so many tokens still takes, at most until `limit`.

        Example:
            >>> round(AnswerLengths(rate=1.0).ahead(0, 600))  # 50 ln(1 + 600 / 50)
            128
        """
        here, growth = tokens + _SCALE, math.log((limit + _SCALE) / (tokens + _SCALE))
        power = 1 - self.rate
        return here * (growth if abs(power) < 1e-6 else math.expm1(power * growth) / power)

    def quantile(self, share: float, limit: float, tokens: float = 0) -> float:
        """What an answer of so many tokens still takes, in so large a share of cases at most; never past `limit`."""
        here, grown = tokens + _SCALE, -math.log1p(-share) / self.rate
        return here * math.expm1(grown) if grown < math.log((limit + _SCALE) / here) else limit - tokens


class SeenAnswers:
    """Counts the answers of each probe that have ended, and tells how long its others will be."""

    def __init__(self, expected: Mapping[str, AnswerLengths] | None = None) -> None:
        """Start with no answer.

        Args:
            expected: the lengths of each probe's answers, where some were measured before.
        """
        self._expected = expected or {}
        self._ended: dict[str, int] = defaultdict(int)
        self._exposed: dict[str, float] = defaultdict(float)

    def add(self, probe: str, tokens: int, ended: bool) -> None:
        """Count an answer that is finished; `ended` if it was not cut at its limit."""
        self._ended[probe] += ended
        self._exposed[probe] += exposure(tokens)

    def lengths(self, running: Iterable[tuple[str, int]]) -> dict[str, AnswerLengths]:
        """The lengths of each probe's answers, by its name; of one for which none were expected, those of all probes.

        Args:
            running: the probe and the tokens of each answer that goes on.
        """
        exposed = self._exposed.copy()
        for probe, tokens in running:
            exposed[probe] += exposure(tokens)
        together = AnswerLengths.seen(sum(self._ended.values()), sum(exposed.values()))
        lengths: dict[str, AnswerLengths] = defaultdict(lambda: together)
        for probe, expected in self._expected.items():
            lengths[probe] = expected.updated(self._ended[probe], exposed[probe])
        return lengths


def shares(count: int) -> list[float]:
    """The middles of so many equal parts of 0 to 1, in an order that is mixed and always the same.

    Example:
        >>> sorted(shares(4))
        [0.125, 0.375, 0.625, 0.875]
    """
    middles = [(i + 0.5) / count for i in range(count)]
    random.Random(0).shuffle(middles)
    return middles


def exposure(tokens: float) -> float:
    """The opportunities that an answer of so many tokens has had to end."""
    return math.log1p(tokens / _SCALE)
