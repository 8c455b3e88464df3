"""`CombinedGradients` compares the gradient that the optimizer uses with the two that a defense combines.

A defense's own gradient is computed apart from the loss's, one micro-batch after another. Hooks on the trained weights
see these gradients when autograd computes them, so that a gradient that is lost or scaled afterwards shows: the sum of
each weight's entries is linear, and adds up over micro-batches as the gradient should.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable


class CombinedGradients:
    """Products of the gradients of each optimizer step, by defense.

    Args:
        weights: the trained weights, in the trainer's order; hooks are put on them.
        add_up: sums a tensor over processes, as a defense's own gradient is summed before it is combined.
    """

    def __init__(
        self, weights: Sequence[Tensor] = (), add_up: Callable[[Tensor], Tensor] = lambda tensor: tensor
    ) -> None:
        self._add_up = add_up
        self._own: dict[str, tuple[Tensor, Tensor, list[Tensor]]] = {}
        self._rows: dict[str, list[Tensor]] = {}
        self._computed: str | None = None  # the defense whose gradient autograd computes now
        self._sums: dict[str, dict[int, Tensor]] = {}
        self._handles = [weight.register_hook(partial(self._see, place)) for place, weight in enumerate(weights)]  # type: ignore[no-untyped-call]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def evaluated(self, label: str, value: Tensor) -> None:
        """Receive the penalty () of a defense that combines, before its gradient is computed."""
        if value.requires_grad:
            value.register_hook(partial(self._begin, label))  # type: ignore[no-untyped-call]

    def _begin(self, label: str, gradient: Tensor) -> None:
        self._computed = label
        Variable._execution_engine.queue_callback(self._end)  # after this backward pass

    def _end(self) -> None:
        self._computed = None

    def _see(self, place: int, gradient: Tensor) -> None:
        if self._computed is not None:
            sums = self._sums.setdefault(self._computed, {})
            total = gradient.detach().double().sum()
            sums[place] = sums[place] + total if place in sums else total

    def combining(self, label: str, task: Sequence[Tensor], own: Sequence[Tensor]) -> None:
        """Receive both gradients before they are combined."""
        products = torch.stack([dot(task, task), dot(task, own), dot(own, own)])
        self._own[label] = products, self._kept(label, own), [gradient.detach().clone() for gradient in own]

    def used(self, model: Any) -> None:
        """Read the gradients that the optimizer is about to use."""
        if not self._own:
            return
        gradients = [w.new_zeros(w.shape) if w.grad is None else w.grad for w in model.parameters() if w.requires_grad]
        for label, (products, kept, own) in self._own.items():
            now = torch.stack([dot(gradients, gradients), dot(gradients, own), kept])
            self._rows.setdefault(label, []).append(torch.cat([products, now]))
        self._own = {}

    def drain(self) -> dict[str, list[list[float]]]:
        """Return the products of each optimizer step since the last call.

        In order: task . task, task . own, own . own; used . used and used . own, after the gradient was clipped; the
        share of its own gradient that reached `combine`, 1 if all did.
        """
        rows, self._rows = self._rows, {}
        return {label: [[float(x) for x in row] for row in steps] for label, steps in rows.items()}

    def _kept(self, label: str, own: Sequence[Tensor]) -> Tensor:
        """The share () of a defense's own gradient that it combines, by least squares over the sums of weights."""
        sums, none = self._sums.pop(label, {}), own[0].new_zeros((), dtype=torch.float64)
        seen = self._add_up(torch.stack([sums.get(place, none).to(none) for place in range(len(own))]))
        kept = torch.stack([gradient.double().sum() for gradient in own])
        whole = seen.square().sum()
        share = torch.where(whole > 0, (seen * kept).sum() / whole.clamp(min=1e-300), 1.0)
        return share.float()


def dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Compute the scalar product () of two lists of tensors."""
    return torch.stack([(a.float() * b.float()).sum() for a, b in zip(one, other, strict=True)]).sum()
