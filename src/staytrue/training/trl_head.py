"""TRL's LM head: the output of its fused one, and the reason why a trainer keeps it."""

from __future__ import annotations

from typing import Any

try:
    from trl.trainer.utils import FusedCausalLMOutput as FusedCausalLMOutput
except ImportError:  # a trl whose trainers take whole logits, or another kind of head
    FusedCausalLMOutput = None


def keeps_its_own(trainer: Any) -> str | None:
    """The reason why a trainer of either kind keeps trl's head; None without one."""
    if FusedCausalLMOutput is None:
        return "this trl has no fused head"
    if getattr(trainer, "aux_loss_enabled", False):
        return "a mixture of experts adds its routers' loss"
    return None
