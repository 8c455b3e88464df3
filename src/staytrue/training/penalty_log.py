"""`PenaltyLog` sums each defense's numbers over the micro-batches until they are logged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor


class PenaltyLog:
    """Numbers of defenses since they were last logged: means over the optimizer steps in which a defense had tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: Counter[str] = Counter()

    def begin_step(self, labels: Iterable[str]) -> None:
        """Count an optimizer step for the defenses that have tokens in it."""
        self._steps.update(labels)

    def add(self, name: str, value: Tensor) -> None:
        """Add a micro-batch's share of a number; a name is a defense's label, or begins with it and a slash."""
        self._sums[name] = self._sums.get(name, torch.zeros((), device=value.device)) + value.detach()

    def drain(self) -> dict[str, Tensor]:
        """Return the mean of each number, and start anew; none of a defense that had no tokens."""
        numbers = {label: torch.zeros(()) for label in self._steps} | self._sums
        counted = {name: self._steps[name.split("/")[0]] for name in numbers}
        means = {name: value / counted[name] for name, value in numbers.items() if counted[name]}
        self._sums, self._steps = {}, Counter()
        return means


def summed(accelerator: Any, numbers: Mapping[str, Tensor]) -> dict[str, float]:
    """Each number () summed over the processes; a number may be absent on some of them."""
    if accelerator.num_processes > 1:
        names = sorted(set(gather_object(list(numbers))))
        numbers = {name: numbers.get(name, torch.zeros(())) for name in names}
    on_device = {name: value.float().to(accelerator.device) for name, value in numbers.items()}
    return {name: value.item() for name, value in accelerator.reduce(on_device, "sum").items()}
