"""`KeptGradients` warns of a training that loses its gradients between the backward pass and the optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from staytrue.errors import StaytrueWarning
from staytrue.modeling.sharded import local

_REPLACED = (
    "The gradients were replaced after the backward pass by a subclass of the trainer or a callback, so the penalties "
    "of the defenses may not be in them. Change the loss in compute_loss, or the gradients in place."
)
_ZEROED = (
    "The gradients were set to 0 after the backward pass by a subclass of the trainer, a callback or an optimizer, so "
    "the penalties of the defenses are lost with them. Change the loss in compute_loss, or add to the gradients."
)
_OVERWRITTEN = (
    "The gradients were overwritten in place after the backward pass by a subclass of the trainer, a callback or an "
    "optimizer, so the penalties of the defenses may not be in them. Change the loss in compute_loss, or scale the "
    "gradients. If they were added to, projected or centred, the penalties are still in them."
)
_TOLERANCE = 1e-4  # of a scaled gradient, or four roundings of its precision


class KeptGradients(TrainerCallback):  # type: ignore[misc]
    """Compares the gradients at the optimizer step with those after the last backward pass.

    Each weight's gradient is compared by identity, so a replaced tensor is seen. The gradient of the smallest weight,
    the sample, is also compared by value, before each later backward pass and before the optimizer's step, so one that
    is set to 0 or overwritten in place is seen. Clipping and scaling are allowed; added noise is reported as
    overwriting. Values are compared on the weight's device, and read once an optimizer step.
    """

    def __init__(self) -> None:
        self._kept: Sequence[tuple[Tensor, Tensor | None]] = ()
        self._warned = False
        self._sample: Tensor | None = None  # the weight
        self._gradient: Tensor | None = None  # of the sample, after the last backward pass
        self._faults: list[Tensor] = []  # (2,) each: whether the sample's gradient was set to 0, and was overwritten
        self._hooks: list[Any] = []  # on the sample
        self._before_step: Any = None  # the hook on the optimizer

    def keep(self, weights: Sequence[Tensor]) -> None:
        """Remember the gradients of the trained weights after a backward pass, which holds the defenses' penalties."""
        self._kept = [(weight, weight.grad) for weight in weights]
        if self._sample is None:
            self._choose(weights)
        if self._sample is not None and self._sample.grad is not None:
            self._gradient = local(self._sample.grad).clone()

    def forget(self) -> None:
        """End an optimizer step, and warn, once, of what its comparisons found.

        A trainer calls it by a callback; in a loop that calls none, it is called as the next step begins.
        """
        if self._faults and not self._warned:
            zeroed, overwritten = torch.stack(self._faults).any(0).tolist()
            if zeroed or overwritten:
                self._warn(_ZEROED if zeroed else _OVERWRITTEN)
        self._kept, self._gradient, self._faults = (), None, []

    def check(self, *_: Any) -> None:
        """Compare the gradients with those after the last backward pass; warn, once, of any that were replaced."""
        if any(weight.grad is not gradient for weight, gradient in self._kept):
            self._warn(_REPLACED)
        self._compare()

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Start without gradients, and watch the optimizer."""
        self._warned, self._sample, self._faults = False, None, []
        self.forget()
        while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
            optimizer = optimizer.optimizer
        if isinstance(optimizer, torch.optim.Optimizer):
            self._before_step = optimizer.register_step_pre_hook(self.check)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the gradients that the optimizer will use."""
        self.check()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the step here, since an optimizer may make backward passes too."""
        self.forget()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the hooks off the sample and the optimizer."""
        self._choose(())
        if self._before_step is not None:
            self._before_step.remove()

    def _choose(self, weights: Sequence[Tensor]) -> None:
        """Choose the smallest weight that has a gradient as the sample, and watch backward passes on it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._sample = [], None
        for weight in sorted(weights, key=Tensor.numel):
            if weight.grad is not None and not weight.grad.is_sparse and bool(local(weight.grad).any()):
                self._sample = weight
                self._hooks = [
                    weight.register_hook(lambda gradient: self._compare()),  # type: ignore[no-untyped-call]
                    weight.register_post_accumulate_grad_hook(self._added),  # type: ignore[no-untyped-call]
                ]
                return

    def _compare(self) -> None:
        """Compare the sample's gradient with the one that was kept, and keep it."""
        if self._gradient is None or self._sample is None or self._warned:
            return
        if self._sample.grad is None:
            self._faults.append(torch.tensor([True, False], device=self._gradient.device))
            return
        now = local(self._sample.grad)
        self._faults.append(torch.stack([_is_zeroed(self._gradient, now), _is_overwritten(self._gradient, now)]))

    def _added(self, weight: Tensor) -> None:
        """After any backward pass, which has added to the gradient; several processes may still average it."""
        if self._gradient is not None:
            alone = not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
            self._gradient = local(weight.grad).clone() if alone and weight.grad is not None else None

    def _warn(self, sentence: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(sentence, StaytrueWarning, stacklevel=3)


def _is_zeroed(before: Tensor, now: Tensor) -> Tensor:
    """() whether a gradient is 0 and was another."""
    return before.any() & ~now.any()


def _is_overwritten(before: Tensor, now: Tensor) -> Tensor:
    """() whether a gradient is no multiple of the one before, nor smaller in each entry; False if not finite."""
    tolerance = max(_TOLERANCE, 4 * torch.finfo(now.dtype).eps)
    before, now = before.float(), now.float()
    clipped = ((now * before >= 0) & (now.abs() <= before.abs())).all()
    scale = (now * before).sum() / (before * before).sum()
    scaled = (scale > 0) & ((now - scale * before).abs() <= tolerance * (scale * before).abs()).all()
    return before.isfinite().all() & now.isfinite().all() & ~clipped & ~scaled
