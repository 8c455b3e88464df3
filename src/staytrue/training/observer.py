"""`Observer`: what a guard shows to a recorder of evidence, which compares it with its own measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Observer(Protocol):
    """Receives values before the guard uses them."""

    def evaluated(self, label: str, value: Tensor) -> None:
        """Receive a penalty of one micro-batch, unweighted: a scalar with its gradient."""
        ...

    def combining(self, label: str, task: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        """Receive both gradients of an optimizer step before a defense combines them, one tensor a trained weight."""
        ...
