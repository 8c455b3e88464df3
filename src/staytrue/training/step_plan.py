"""`StepPlan` holds the masks of an optimizer step's micro-batches, and which of them were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from staytrue.errors import ForwardPassError
from staytrue.step import Marks


class StepPlan:
    """One optimizer step; without marks it was never planned.

    Args:
        marks: (B, T) masks of each micro-batch, in order.
    """

    def __init__(self, marks: Sequence[Marks] = ()) -> None:
        self.marks = marks
        self._trained = 0
        self._faults: list[tuple[Tensor, str]] = []

    def next(self) -> tuple[int, Marks | None]:
        """Return the number of the next micro-batch and its masks; None if the step has no further one planned."""
        number, self._trained = self._trained, self._trained + 1
        return number, self.marks[number] if number < len(self.marks) else None

    @property
    def is_complete(self) -> bool:
        """Whether as many micro-batches were trained on as were planned."""
        return self._trained == len(self.marks)

    def counts(self, accelerator: Any) -> tuple[Tensor, int]:
        """Count what the step holds on all processes: positions (len(SOURCES), 2), as `Marks.counts`, and task rows."""
        counts = torch.stack([marks.counts() for marks in self.marks]).sum(0)
        rows = torch.stack([marks.task_rows() for marks in self.marks]).sum()
        summed = accelerator.reduce(torch.cat([counts.flatten(), rows.reshape(1)]), "sum")
        return summed[:-1].view(counts.shape), int(summed[-1])

    def add_fault(self, found: Tensor, sentence: str) -> None:
        """Keep whether a fault was found in a micro-batch, a tensor () on any device; `refuse_faults` reads it."""
        self._faults.append((found, sentence))

    def refuse_faults(self) -> None:
        """Read what was found, all at once after a step's last micro-batch, since each reading waits for the device.

        Raises:
            ForwardPassError: a fault was found; the sentence is that of the first.
        """
        if self.marks and not self.is_complete:
            return
        faults, self._faults = self._faults, []
        found = torch.stack([value for value, _ in faults]).tolist() if faults else []
        for is_found, (_, sentence) in zip(found, faults, strict=True):
            if is_found:
                raise ForwardPassError(sentence)

    def check_complete(self, trainer: str) -> None:
        """Check, once the step is over, that it trained on each of its micro-batches once.

        Args:
            trainer: the name of the trainer's class.

        Raises:
            ForwardPassError: the defenses did not see each micro-batch once.
        """
        seen, planned = self._trained, len(self.marks)
        if 0 < seen == planned:
            return
        method = "training_step" if planned > 0 else "get_batch_samples"
        how = "calls super().{0}(...) twice" if 0 < planned < seen else "does not call super().{0}(...) for each"
        raise ForwardPassError(
            f"{trainer} made an optimizer step of {planned} planned micro-batches, of which the defenses saw {seen}: a "
            f"subclass's {method} {how.format(method)}. Call it once and change what it returns."
        )
