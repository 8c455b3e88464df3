"""The order of added rows: spread evenly over an epoch, so that no batch holds many or none by chance.

`order` places interleaved rows among task rows; `AuxiliaryRows` yields the rows that are due beside a batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import floor

from torch.utils.data import Sampler

from staytrue.data.tokenize import Encoded


def order(sources: Sequence[int], seed: int, epoch: int, shuffled: bool = True) -> list[int]:
    """Row numbers of one epoch: every row once, shuffled within its source or as given, sources spread evenly.

    Any first k of the N rows hold k * m / N rows of a source with m rows, to within one.
    """
    ranked = []
    for source in sorted(set(sources)):
        rows = [i for i, s in enumerate(sources) if s == source]
        if shuffled:
            random.Random(f"{seed} {epoch} {source}").shuffle(rows)
        ranked += [((j + 0.5) / len(rows), source, row) for j, row in enumerate(rows)]
    return [row for _, _, row in sorted(ranked)]


class EvenSampler(Sampler[int]):
    """`order` as a torch sampler; the trainer sets the epoch."""

    def __init__(self, sources: Sequence[int], seed: int, shuffled: bool = True) -> None:
        self.sources = sources
        self.seed = seed
        self.shuffled = shuffled
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(order(self.sources, self.seed, self.epoch, self.shuffled))

    def __len__(self) -> int:
        return len(self.sources)


@dataclass(frozen=True)
class AuxiliaryRows:
    """Rows of a defense's own, fed beside the task rows at an exact share."""

    rows: Sequence[Encoded]
    share: float
    seed: int

    def due(self, before: int, after: int) -> list[Encoded]:
        """The rows due while the count of task rows seen goes from `before` to `after`.

        After n task rows, share * n auxiliary rows have been given, to within half a row. The rows come in a shuffled
        order, again and again, each once per round.
        """
        first, last = (floor(self.share * n + 0.5) for n in (before, after))
        return [self._row(i) for i in range(first, last)]

    def _row(self, index: int) -> Encoded:
        turn, place = divmod(index, len(self.rows))
        numbers = list(range(len(self.rows)))
        random.Random(f"{self.seed} {turn}").shuffle(numbers)
        return self.rows[numbers[place]]
