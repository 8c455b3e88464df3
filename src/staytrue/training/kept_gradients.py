"""`KeptGradients` warns of a training that replaces its gradients between the backward pass and the optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback


class KeptGradients(TrainerCallback):  # type: ignore[misc]
    """Compares the gradients at the optimizer step with those after the last backward pass, by identity.

    A gradient that is changed in place, as clipping does, counts as kept: what a user adds to it is not known here.
    """

    def __init__(self) -> None:
        self._kept: Sequence[tuple[Tensor, Tensor | None]] = ()
        self._warned = False

    def keep(self, weights: Sequence[Tensor]) -> None:
        """Remember the gradients of the trained weights after a backward pass, which holds the defenses' penalties."""
        self._kept = [(weight, weight.grad) for weight in weights]

    def forget(self) -> None:
        """Begin an optimizer step: its gradients are new, also in a loop that calls no callback."""
        self._kept = ()

    def check(self) -> None:
        """Warn, once, if the gradients of the earlier backward passes of this step are gone."""
        if not self._warned and any(weight.grad is not gradient for weight, gradient in self._kept):
            self._warned = True
            warnings.warn(
                "The gradients were replaced after the backward pass by a subclass of the trainer or a callback, so "
                "the penalties of the defenses may not be in them. Change the loss in compute_loss, or the gradients "
                "in place.",
                UserWarning,
                stacklevel=2,
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start without gradients."""
        self._kept, self._warned = (), False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients that the optimizer will use."""
        self.check()
        self.forget()
