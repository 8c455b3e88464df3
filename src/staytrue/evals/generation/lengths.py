"""`AnswerLengths`: how many tokens answers still take, from the answers seen so far.

The longer an answer has grown, the likelier it goes on: after t tokens, the next one ends it with the chance
`rate / (t + 50)`. The rate is one from 0 to 50 tokens, another from 50 to 150, from 150 to 350 and so on, because many
models end most answers soon and never end the others: at temperature 1 a small chat model wrote 137 of 180 answers in
fewer than 150 tokens, and 38 of the other 43 ran to the limit of 600.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

_SCALE = 50  # tokens of the first interval; each further one is twice as long
_INTERVALS = 8  # the last begins at 6,350 tokens and has no end
_EXPOSURE = math.log(2)  # of an answer that passes through an interval, to the risk of ending
_WEIGHT = 2.0  # ended answers that a likely rate is worth in each interval
_SLOWER = 0.7  # the rate of an interval that no answer has reached, as a part of the rate before it


@dataclass(frozen=True)
class AnswerLengths:
    """A distribution of lengths.

    Attributes:
        rates: in each interval, how soon answers end; the last one counts for all later intervals too.
        errors: the standard error of each rate's logarithm.

    Example:
        With one rate r, half of the answers are shorter than `50 (2 ** (1 / r) - 1)` tokens:

        >>> AnswerLengths((1.0,)).quantile(0.5, 600)
        50.0
    """

    rates: tuple[float, ...]
    errors: tuple[float, ...] = ()

    def moved(self, errors: float) -> AnswerLengths:
        """The distribution if each rate is so many standard errors above what was seen; below 0, answers are longer.

        Without errors it is the same distribution.
        """
        if not self.errors:
            return self
        moved = [rate * math.exp(errors * error) for rate, error in zip(self.rates, self.errors, strict=True)]
        return replace(self, rates=tuple(moved))

    def ahead(self, tokens: float, limit: float) -> float:
        """Mean tokens that an answer of so many tokens still takes, at most until `limit`.

        Example:
            >>> round(AnswerLengths((1.0,)).ahead(0, 600))  # 50 ln(1 + 600 / 50)
            128
        """
        mean, reached = 0.0, 1.0
        for rate, here, there in self._parts(tokens, limit):
            power, growth = 1 - rate, there - here
            written = growth if abs(power) < 1e-6 else math.expm1(power * growth) / power
            mean += reached * _SCALE * math.exp(here) * written
            reached *= math.exp(-rate * growth)
        return mean

    def quantile(self, share: float, limit: float, tokens: float = 0) -> float:
        """What an answer of so many tokens still takes, in so large a share of cases at most; never past `limit`."""
        risk = -math.log1p(-share)
        for rate, here, there in self._parts(tokens, limit):
            if risk < rate * (there - here):
                return _SCALE * math.expm1(here + risk / rate) - tokens
            risk -= rate * (there - here)
        return limit - tokens

    def _parts(self, tokens: float, limit: float) -> Iterator[tuple[float, float, float]]:
        """Each rate from `tokens` to `limit`, with the exposure of an answer where it begins and ends to count."""
        here, end, last = _exposure(tokens), _exposure(limit), len(self.rates) - 1
        while here < end:
            interval = min(int(here / _EXPOSURE + 1e-9), last)
            there = end if interval == last else min(end, (interval + 1) * _EXPOSURE)
            yield self.rates[interval], here, there
            here = there


class SeenAnswers:
    """Counts the answers of each probe that have ended, and tells how long its others will be."""

    def __init__(self, before: SeenAnswers | None = None) -> None:
        """Start with no answer, or with those of an earlier count."""
        self._counts: dict[str, _Counts] = defaultdict(_Counts)
        for probe, counts in before._counts.items() if before else ():
            self._counts[probe].join(counts)

    def add(self, probe: str, tokens: int, ended: bool) -> None:
        """Count an answer; `ended` if it was not cut at its limit and does not go on."""
        self._counts[probe].add(tokens, ended)

    def lengths(self, running: Iterable[tuple[str, int]] = ()) -> dict[str, AnswerLengths]:
        """The lengths of each probe's answers, by its name; of a probe that none was seen of, those of all probes.

        Args:
            running: the probe and the tokens of each answer that goes on.
        """
        seen = SeenAnswers(self)
        for probe, tokens in running:
            seen.add(probe, tokens, ended=False)
        together = _Counts()
        for counts in seen._counts.values():
            together.join(counts)
        likely = together.rates()
        lengths: dict[str, AnswerLengths] = defaultdict(lambda: AnswerLengths(likely, together.errors()))
        for probe, counts in seen._counts.items():
            lengths[probe] = AnswerLengths(counts.rates(likely), counts.errors())
        return lengths


class _Counts:
    """Answers by interval: how many ended in it, and the exposure of all of them to ending in it."""

    def __init__(self) -> None:
        self.ended, self.exposed = [0] * _INTERVALS, [0.0] * _INTERVALS

    def add(self, tokens: int, ended: bool) -> None:
        """Count one answer."""
        exposure, last = _exposure(tokens), 0
        while last < _INTERVALS - 1 and exposure > (last + 1) * _EXPOSURE:
            self.exposed[last] += _EXPOSURE
            last += 1
        self.exposed[last] += exposure - last * _EXPOSURE
        self.ended[last] += ended

    def join(self, others: _Counts) -> None:
        """Count other answers too."""
        self.ended = [a + b for a, b in zip(self.ended, others.ended, strict=True)]
        self.exposed = [a + b for a, b in zip(self.exposed, others.exposed, strict=True)]

    def rates(self, likely: Sequence[float] | None = None) -> tuple[float, ...]:
        """The rate of each interval, drawn towards a likely one.

        Args:
            likely: the rates of all probes; these answers' are to them as in the interval before. None if these are
                the answers of all probes: then a rate is likely to be a part of the rate before it, and the first 1.
        """
        rates: list[float] = []
        for interval, (ended, exposed) in enumerate(zip(self.ended, self.exposed, strict=True)):
            rate = likely[interval] if likely else 1.0 if not rates else _SLOWER * rates[-1]
            if likely and rates:
                rate *= rates[-1] / likely[interval - 1]
            rates.append((ended + _WEIGHT) / (exposed + _WEIGHT / rate))
        return tuple(rates)

    def errors(self) -> tuple[float, ...]:
        """The standard error of each rate's logarithm."""
        return tuple(1 / math.sqrt(ended + _WEIGHT) for ended in self.ended)


def shares(count: int) -> list[float]:
    """The middles of so many equal parts of 0 to 1, in an order that is mixed and always the same.

    Example:
        >>> sorted(shares(4))
        [0.125, 0.375, 0.625, 0.875]
    """
    middles = [(i + 0.5) / count for i in range(count)]
    random.Random(0).shuffle(middles)
    return middles


def _exposure(tokens: float) -> float:
    """The exposure of an answer of so many tokens to the risk of ending."""
    return math.log1p(tokens / _SCALE)
