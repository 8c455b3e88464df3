"""`CombinedGradients` compares the gradient that the optimizer uses with the two that a defense combines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class CombinedGradients:
    """Products of the gradients of each optimizer step, by defense."""

    def __init__(self) -> None:
        self._own: dict[str, tuple[Tensor, list[Tensor]]] = {}
        self._rows: dict[str, list[Tensor]] = {}

    def combining(self, label: str, task: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        """Receive both gradients before they are combined."""
        products = torch.stack([dot(task, task), dot(task, own), dot(own, own)])
        self._own[label] = products, [gradient.detach().clone() for gradient in own]

    def used(self, model: Any) -> None:
        """Read the gradients that the optimizer is about to use."""
        if not self._own:
            return
        gradients = [w.new_zeros(w.shape) if w.grad is None else w.grad for w in model.parameters() if w.requires_grad]
        for label, (products, own) in self._own.items():
            now = torch.stack([dot(gradients, gradients), dot(gradients, own)])
            self._rows.setdefault(label, []).append(torch.cat([products, now]))
        self._own = {}

    def drain(self) -> dict[str, list[list[float]]]:
        """Return the products of each optimizer step since the last call.

        In order: task . task, task . own, own . own; used . used and used . own, after the gradient was clipped.
        """
        rows, self._rows = self._rows, {}
        return {label: [[float(x) for x in row] for row in steps] for label, steps in rows.items()}


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Compute the scalar product () of two lists of tensors."""
    return torch.stack([(a.float() * b.float()).sum() for a, b in zip(one, other, strict=True)]).sum()
