"""Full fine-tuning: what its reference costs, and the updates that weights in half precision lose."""

from __future__ import annotations

import logging
from typing import Any

import torch

from staytrue.modeling.reference_model import AdapterOff
from staytrue.modeling.rounding import half_spacing
from staytrue.training.lost_text import warn_of

_log = logging.getLogger(__name__)
_MOST = 0.1  # of the trained weights, whose updates may be lost without a word


def notes(trainer: Any) -> list[str]:
    """Return what a user of a guarded trainer would not expect of full fine-tuning; [] with an adapter."""
    if trainer.guard.parts.has_adapter:
        return []
    found = (memory(trainer.guard.reference), _lost(trainer))
    return [note for note in found if note]


def report(trainer: Any) -> None:
    """Warn a script of updates that are lost, and log the memory of the reference at level INFO."""
    if trainer.guard.defenses and not trainer.guard.parts.has_adapter:
        _log.info(memory(trainer.guard.reference) or "No defense reads the reference, so the model is not copied.")
        lost = _lost(trainer)
        warn_of([lost] if lost else [])


def _lost(trainer: Any) -> str | None:
    """The sentence of `lost_updates` for an Adam; how far other optimizers move a weight is not known."""
    optimizer = getattr(trainer.args.optim, "value", trainer.args.optim)
    return lost_updates(trainer.model, trainer.args.learning_rate) if "adam" in str(optimizer) else None


def memory(reference: AdapterOff) -> str | None:
    """Return a sentence about the memory of a reference that is a copy; None for any other."""
    if not reference.is_copy:
        return None
    return (
        f"The reference is a frozen copy of the model, which takes {max(reference.bytes / 1e6, 1):,.0f} MB beside the "
        "weights, their gradients and the optimizer's states."
    )


@torch.no_grad()
def lost_updates(model: Any, learning_rate: float) -> str | None:
    """Return a sentence if many weights would not move; None if all but a few do, as in float32.

    Adam moves a weight by about the learning rate in a step. The sum is rounded to the nearest number of the weight's
    precision, so a move of less than half the distance of two such numbers is lost: in bfloat16, of less than a 512th
    to a 256th of the weight.

    Args:
        model: with its trained weights.
        learning_rate: the highest of the run.
    """
    lost = count = 0
    for weight in model.parameters():
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16):
            lost += int(((half_spacing(weight, weight.dtype) > learning_rate) & (weight != 0)).sum())
            count += weight.numel()
    if not count or lost <= _MOST * count:
        return None
    return (
        f"The weights are trained in half precision, and at a learning rate of {learning_rate:g} an update is smaller "
        f"than their rounding for {100 * lost / count:.0f} % of them, which stay as they are. Set dtype: float32 "
        "(in a script, load the model in float32 and set bf16=True), or raise the learning rate."
    )
