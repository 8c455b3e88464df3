"""`SeparateGradients` keeps the gradients of penalties that a defense combines with the loss's gradient itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from staytrue.defense import Defense, pulled
from staytrue.errors import ForwardPassError

Observe = Callable[[str, Sequence[Tensor], Sequence[Tensor]], None]


class SeparateGradients:
    """Buffers of the gradients of penalties, one for each defense that overrides `combine`.

    Args:
        defenses: of the run, by label.
        weights: returns the trained weights.
    """

    def __init__(self, defenses: Mapping[str, Defense], weights: Callable[[], Sequence[Tensor]]) -> None:
        self._weights = weights
        self._defenses = {label: defense for label, defense in defenses.items() if "combine" in pulled(defense)}
        self._buffers: dict[str, list[Tensor]] = {}

    def clear(self) -> None:
        """Forget the gradients of an optimizer step that is over, or was never made."""
        self._buffers = {}

    def begin_step(self) -> None:
        """Start at 0, unless the last step's micro-batches were too few for an optimizer step; theirs are added to."""
        if not self._buffers:
            self._buffers = {label: [torch.zeros_like(w) for w in self._weights()] for label in self._defenses}

    def keep(self, label: str, penalty: Tensor) -> Tensor:
        """Add the gradient of a weighted penalty () to its buffer, if its defense combines; return what the loss gets.

        That is the penalty as it is, or its value without a gradient.

        Raises:
            ForwardPassError: the penalty reaches no trained weight.
        """
        if label not in self._buffers:
            return penalty
        gradients: Sequence[Tensor | None] = ()
        if penalty.requires_grad:
            gradients = torch.autograd.grad(penalty, self._weights(), retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            raise ForwardPassError(
                f"The penalty of {label} reaches no trained weight, so there is no gradient to combine: reentrant "
                "recomputation hides the weights, or the penalty is a constant or reads only what lies below the "
                "trained weights. Enable activation checkpointing with use_reentrant=False, or train lower blocks."
            )
        for total, gradient in zip(self._buffers[label], gradients, strict=True):
            if gradient is not None:
                total += gradient
        return penalty.detach()

    def combine(self, add_up: Callable[[Tensor], Tensor], observe: Observe | None = None) -> None:
        """Write each defense's combined gradient into the weights, and forget the buffers.

        Args:
            add_up: sums a tensor over processes; the loss's own gradient is summed already.
            observe: called with each defense's label, the loss's gradient and its own before they are combined.
        """
        for label, buffer in self._buffers.items():
            weights = self._weights()
            task = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
            own = [*map(add_up, buffer)]
            if observe is not None:
                observe(label, task, own)
            combined = self._defenses[label].combine(task, own)
            for weight, gradient in zip(weights, combined, strict=True):
                weight.grad = gradient if weight.grad is None else weight.grad.copy_(gradient)
        self.clear()
