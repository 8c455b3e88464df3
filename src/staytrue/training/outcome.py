"""`Outcome` checks that a training made an optimizer step and moved the weights that it trains to finite numbers.

Without it a run whose warm-up is longer than its steps, or whose completions all earn the same reward, ends like any
other, and its model is the untouched one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from staytrue.errors import StaytrueError, StaytrueWarning, TrainingError
from staytrue.modeling.sharded import whole

_AT_ONCE = 2**22  # entries of a weight that are summed at once, in double precision


class Outcome(TrainerCallback):  # type: ignore[misc]
    """Compares the trained weights with those before training, after each step until one of them has moved.

    A LoRA adapter computes B A x, and B is 0 at its start: A alone may change (weight decay does it) without any
    change of the model, so matrices A do not count. Of embeddings A is 0 at the start, so there B does not count.

    Attributes:
        raises: whether a training that changed nothing ends in an error; otherwise it ends in a warning.
        moved: whether a trained weight has moved.
        moved_at: the step in which the first one did; None before.
    """

    def __init__(self, *, raises: bool = False) -> None:
        self.raises = raises
        self.moved = False
        self.moved_at: int | None = None
        self._before: dict[str, Tensor] = {}
        self._first = 0
        self._last = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the sums of the trained weights."""
        self.moved, self._first, self._last = False, state.global_step, state.global_step
        self.moved_at = None
        self._before = dict(sums_of_trained(model))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Look for a weight that has moved."""
        self._last = state.global_step
        if not self.moved:
            self.moved = any(
                name in self._before and not torch.equal(self._before[name], now)
                for name, now in sums_of_trained(model)
            )
            self.moved_at = state.global_step if self.moved else None

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Report a training that changed nothing, or diverged.

        Raises:
            TrainingError: it did, and `raises` is set.
        """
        fault = self.fault() or (None if model is None else diverged(model))
        if fault is not None and self.raises:
            raise TrainingError(fault)
        if fault is not None:
            warnings.warn(fault, StaytrueWarning, stacklevel=2)

    def fault(self) -> str | None:
        """A sentence about a training that changed nothing, with the way out; None if it changed something."""
        if self._last == self._first == 0:
            return (
                "Training made no optimizer step, so nothing was learnt: the rows fill no batch. Give more rows, or "
                "lower per_device_train_batch_size or gradient_accumulation_steps."
            )
        if self.moved or self._last == self._first:  # a checkpoint at the last step has no step left
            return None
        return (
            f"No trained weight moved in {self._last - self._first} optimizer steps, so the model is the one before "
            "training. The learning rate was 0 all along (see warmup_steps), the optimizer holds other weights, or "
            "every gradient was 0: no token of the rows is learnt, or, for GRPO, the completions of each prompt earned "
            "equal rewards. Raise the learning rate or the steps, or check the optimizer, the rows' labels or the "
            "reward."
        )


def diverged(model: nn.Module) -> str | None:
    """A sentence about trained weights that are not finite, with the way out; None if all are."""
    broken = [n for n, p in model.named_parameters() if p.requires_grad and not bool(whole(p).isfinite().all())]
    if not broken:
        return None
    return (
        f"Training diverged: {len(broken)} trained weights are not finite (first: {broken[0]}), so the model is of no "
        "use. Lower the learning rate or a defense's weight."
    )


def sums_of_trained(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """For each trained weight except LoRA's A (of embeddings, B): the sums of its entries and of their sizes."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and "lora_A" not in name and "lora_embedding_B" not in name:
            entire = whole(weight).flatten()
            exact = torch.float64 if entire.device.type != "mps" else torch.float32
            sums = torch.zeros(2, dtype=exact, device=entire.device)
            for first in range(0, len(entire), _AT_ONCE):
                entries = entire[first : first + _AT_ONCE].to(exact)
                sums += torch.stack([entries.sum(), entries.abs().sum()])
            yield name, sums


@contextmanager
def naming_divergence(model: nn.Module) -> Iterator[None]:
    """Around sampling: the error of a model whose probabilities are no numbers becomes a sentence.

    Raises:
        TrainingError: sampling fails for that reason.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, StaytrueError) or "probability tensor" not in str(error):
            raise
        raise TrainingError(
            diverged(model)
            or "Training diverged: the model's probabilities are not finite, so it cannot sample. Lower the learning "
            "rate or a defense's weight."
        ) from error
