"""`KeptGradients` warns of a training that loses its gradients between the backward pass and the optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

_REPLACED = (
    "The gradients were replaced after the backward pass by a subclass of the trainer or a callback, so the penalties "
    "of the defenses may not be in them. Change the loss in compute_loss, or the gradients in place."
)
_ZEROED = (
    "The gradients were set to 0 after the backward pass by a subclass of the trainer, a callback or an optimizer, so "
    "the penalties of the defenses are lost with them. Change the loss in compute_loss, or add to the gradients."
)


class KeptGradients(TrainerCallback):  # type: ignore[misc]
    """Compares the gradients at the optimizer step with those after the last backward pass.

    A gradient that was replaced is seen by identity, of every weight. Of one weight, the sample, the gradient itself is
    kept, and what later backward passes of the user's own add: so it is seen whether the gradient was set to 0, also
    where another one has taken its place. Other changes in place, such as clipping, count as kept.
    """

    def __init__(self) -> None:
        self._kept: Sequence[tuple[Tensor, Tensor | None]] = ()
        self._warned = False
        self._sample: Tensor | None = None  # the weight
        self._gradient: Tensor | None = None  # of the sample, after the trainer's last backward pass
        self._version = 0  # of the sample's gradient then
        self._emptied = False  # whether the sample had no gradient before the last backward pass
        self._hooks: list[Any] = []

    def keep(self, weights: Sequence[Tensor]) -> None:
        """Remember the gradients of the trained weights after a backward pass, which holds the defenses' penalties."""
        self._kept = [(weight, weight.grad) for weight in weights]
        if self._sample is None:
            self._choose(weights)
        if self._sample is not None and self._sample.grad is not None:
            self._gradient, self._version = self._sample.grad.detach().clone(), self._sample.grad._version

    def forget(self) -> None:
        """Begin an optimizer step: its gradients are new, also in a loop that calls no callback."""
        self._kept, self._gradient = (), None

    def check(self) -> None:
        """Warn, once, if the gradients of the earlier backward passes of this step are gone."""
        if any(weight.grad is not gradient for weight, gradient in self._kept):
            self._warn(_REPLACED)
        elif self._is_zeroed():
            self._warn(_ZEROED)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start without gradients."""
        self._kept, self._gradient, self._warned, self._sample = (), None, False, None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients that the optimizer will use."""
        self.check()
        self._kept = ()  # the sample's is kept: another callback or the optimizer may still make a backward pass

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the hooks off the sample."""
        self._choose(())

    def _choose(self, weights: Sequence[Tensor]) -> None:
        """Choose the smallest weight that has a gradient as the sample, and watch backward passes on it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._sample = [], None
        for weight in sorted(weights, key=Tensor.numel):
            if weight.grad is not None and bool(weight.grad.any()):
                self._sample = weight
                self._hooks = [
                    weight.register_hook(self._note),  # type: ignore[no-untyped-call]
                    weight.register_post_accumulate_grad_hook(self._compare),  # type: ignore[no-untyped-call]
                ]
                return

    def _note(self, gradient: Tensor) -> None:
        before = self._sample.grad if self._sample is not None else None
        self._emptied = before is None or not bool(before.any())

    def _compare(self, weight: Tensor) -> None:
        """After any backward pass: its gradient must have been added to that of the passes before it."""
        if self._gradient is not None and self._emptied and bool(self._gradient.any()):
            self.check()  # where it was replaced
            self._warn(_ZEROED)
        self._emptied = False

    def _is_zeroed(self) -> bool:
        """Whether the sample's gradient is 0 and was another."""
        if self._sample is None or self._gradient is None or self._sample.grad is None:
            return False
        changed = self._sample.grad._version != self._version
        return changed and bool(self._gradient.any()) and not bool(self._sample.grad.any())

    def _warn(self, sentence: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(sentence, UserWarning, stacklevel=3)
