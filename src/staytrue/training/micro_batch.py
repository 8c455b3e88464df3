"""One micro-batch in a guarded trainer: masks computed once, the trainer's forward, and the penalties on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from staytrue.errors import ForwardPassError
from staytrue.step import Marks, SharedProjection
from staytrue.training.fused_head import FusedLMHead
from staytrue.training.guard import Guard
from staytrue.training.hooks import RecordedCall, refuse_other_shape
from staytrue.training.step_plan import StepPlan


class MicroBatch:
    """One micro-batch of an optimizer step, from its masks to its penalty.

    Args:
        guard: the run's defenses.
        marks: (B, T) masks of the positions that the forward will read.
        slot: which of the step's slots this micro-batch is, counted over all processes; None for one of no planned
            step, see `Guard.penalty`.

    Attributes:
        penalty: () the weighted penalties in nats; None before they are evaluated, or where no defense has one.
        evaluated: whether the penalties were evaluated.
    """

    def __init__(self, guard: Guard, marks: Marks, slot: int | None) -> None:
        self.marks = marks
        self.penalty: Tensor | None = None
        self.evaluated = False
        self._guard, self._slot = guard, slot
        self._gradients: list[Tensor] = []  # () of the loss with respect to the penalty, after the backward pass
        self._calls: list[RecordedCall] = []

    @contextmanager
    def recorded(self, head: FusedLMHead | None) -> Iterator[None]:
        """Record the forward of the trainer's loss and evaluate the penalties, inside the fused head if possible.

        Raises:
            ForwardPassError: the loss made no forward that builds a gradient, or several; or this is its second loss.
        """
        if self.evaluated:
            raise ForwardPassError(
                "compute_loss was called twice in one training step, so the penalties would be added and logged twice. "
                "Call super().compute_loss(...) once and reuse what it returns."
            )
        with self._guard.watch(self.marks) as self._calls, nullcontext() if head is None else head.during(self):
            yield
        if not self.evaluated:
            self.evaluate_penalties(None)

    def check_labels(self, read: Marks, plan: StepPlan, trainer: str) -> None:
        """Check that the loss reads and scores the positions that were counted as its optimizer step was planned.

        Args:
            read: the marks of what the trainer's loss is about to read.
            plan: keeps what is found on a device.
            trainer: the name of the trainer's class.

        Raises:
            ForwardPassError: the loss reads a batch of another shape.
        """
        refuse_other_shape(read.real.shape, self.marks)
        other = (read.scored != self.marks.scored).any() | (read.real != self.marks.real).any()
        plan.add_fault(other, _OTHER_LABELS.format(trainer=trainer))

    def check_trained(self, plan: StepPlan, trainer: str) -> None:
        """Check after the backward pass that the penalties were part of the loss.

        Args:
            plan: keeps what is found on a device.
            trainer: the name of the trainer's class.

        Raises:
            ForwardPassError: the loss holds no penalties.
        """
        if self._guard.pulls("penalty") and not self.evaluated:
            raise ForwardPassError(
                f"{trainer} computed a loss without the penalties of its defenses: a subclass replaces compute_loss "
                "without calling super().compute_loss(...). Call it and change what it returns."
            )
        if self.penalty is not None and self.penalty.requires_grad:
            none = torch.ones((), dtype=torch.bool, device=self.penalty.device)
            plan.add_fault(
                ~(self._gradients[-1] != 0) if self._gradients else none,
                f"{trainer} trains on another loss than super().compute_loss(...) returns, so the penalties of its "
                "defenses have no gradient. Add your term to what it returns, or scale it.",
            )

    def evaluate_penalties(self, head: SharedProjection | None) -> None:
        """Evaluate the penalties on the recorded forward, once."""
        self.penalty = self._guard.penalty(self._calls[0], self.marks, self._slot, head)
        self.evaluated = True
        if self.penalty is not None and self.penalty.requires_grad:
            # A hook that knew this object, which holds the penalty, would be a cycle through autograd's graph, which
            # Python does not see: no step's states would ever be freed.
            self.penalty.register_hook(self._gradients.append)  # type: ignore[no-untyped-call]


def refuse_untrained(loss: Tensor, model: nn.Module) -> None:
    """Refuse a loss without a gradient; with activation checkpointing the inputs have one too.

    Raises:
        ForwardPassError: nothing would be trained.
    """
    if not loss.requires_grad or not any(weight.requires_grad for weight in model.parameters()):
        raise ForwardPassError(_NO_GRADIENT)


_OTHER_LABELS = (
    "{trainer} changed the labels or the mask of a batch after its optimizer step was planned, or trained on one batch "
    "twice, so the loss would score other tokens than the defenses count. Change labels in the dataset or the data "
    "collator, not in training_step or compute_loss."
)
_NO_GRADIENT = (
    "The loss has no gradient, so nothing would be trained: every weight is frozen, the adapter is switched off "
    "(disable_adapter, or another active adapter), or compute_loss_func returns a constant. Load the adapter with "
    "is_trainable=True, leave it on, and compute the loss from the model's outputs."
)
