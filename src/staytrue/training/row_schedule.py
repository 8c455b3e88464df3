"""The order of added rows: spread evenly over an epoch, so that no batch holds many or none by chance.

`order` places interleaved rows among task rows; `AuxiliaryRows` yields the rows that are due beside a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

import torch
from torch.utils.data import Sampler

from staytrue.data.due_order import shuffled
from staytrue.data.tokenize import Encoded


def order(sources: Sequence[int], seed: int, epoch: int, shuffled: bool = True) -> list[int]:
    """Order the rows of one epoch: each once, shuffled within its source or as given, sources spread evenly.

    Any first k of the N rows hold k * m / N rows of a source with m rows, to within one.
    """
    ranked = []
    for source in sorted(set(sources)):
        rows = [i for i, s in enumerate(sources) if s == source]
        if shuffled:
            random.Random(f"{seed} {epoch} {source}").shuffle(rows)
        ranked += [((j + 0.5) / len(rows), source, row) for j, row in enumerate(rows)]
    return [row for _, _, row in sorted(ranked)]


def epochs_done(trainer: Any) -> int:
    """The number of whole epochs that a trainer has trained, those before it was resumed included."""
    return int((trainer.state.epoch or 0) + 1e-6)


class EvenSampler(Sampler[int]):
    """A torch sampler that yields `order`.

    Args:
        sources: the source of each row.
        seed: of the order.
        shuffled: whether the rows of a source are shuffled.
        epochs: returns the epochs done; None leaves the epoch to `set_epoch`, which accelerate does not call on
            several processes in the epoch in which a training is resumed.
    """

    def __init__(
        self, sources: Sequence[int], seed: int, shuffled: bool = True, epochs: Callable[[], int] | None = None
    ) -> None:
        self.sources = sources
        self.seed = seed
        self.shuffled = shuffled
        self.epoch = 0
        self._epochs = epochs

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the data loader calls this before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch if self._epochs is None else self._epochs()
        return iter(order(self.sources, self.seed, epoch, self.shuffled))

    def __len__(self) -> int:
        return len(self.sources)


class PromptSampler(Sampler[int]):
    """trl's sampler of prompts in GRPO, for trainings that are resumed.

    trl shuffles each epoch with one generator, so that a resumed training begins with the order of the first epoch.

    Args:
        sampler: trl's `RepeatSampler`.
        epochs: returns the epochs done.
    """

    def __init__(self, sampler: Any, epochs: Callable[[], int]) -> None:
        self._sampler = sampler
        self._epochs = epochs

    def __iter__(self) -> Iterator[int]:
        sampler = self._sampler
        if sampler.shuffle:
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(self._epochs()):
                torch.randperm(sampler.num_samples, generator=sampler.generator)
        return iter(sampler)

    def __len__(self) -> int:
        return len(self._sampler)


@dataclass(frozen=True)
class AuxiliaryRows:
    """A defense's auxiliary rows, fed beside the task rows at an exact share."""

    rows: Sequence[Encoded]
    share: float
    seed: int

    def due(self, before: int, after: int) -> list[Encoded]:
        """Return the rows due while the count of task rows seen goes from `before` to `after`.

        After n task rows, share * n auxiliary rows have been returned, to within half a row. The rows are shuffled
        anew for each round, and each is returned once per round.
        """
        first, last = (floor(self.share * n + 0.5) for n in (before, after))
        return [self._row(i) for i in range(first, last)]

    def rarity(self, task_rows: int) -> float:
        """Return how many optimizer steps of so many task rows pass for one auxiliary row, at least 1.

        The penalty is multiplied by it: on a row that is due in every fourth step it counts four times there. So its
        mean over the steps, and what a weight means, does not depend on the number of task rows in a step.
        """
        return max(1.0, 1 / (self.share * task_rows)) if task_rows else 1.0

    def _row(self, index: int) -> Encoded:
        turn, place = divmod(index, len(self.rows))
        return self.rows[shuffled(len(self.rows), self.seed, turn)[place]]
