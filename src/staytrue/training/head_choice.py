"""`choose_head`: whether a trainer's forward projects with our fused LM head or with the trainer's own."""

from __future__ import annotations

from typing import Any

import torch

from staytrue.config.refused_settings import UNGUARDED
from staytrue.errors import ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.training.fused_head import FusedLMHead


def choose_head(
    parts: ModelParts, args: Any, keeps: str | None, temperature: float, output: Any
) -> tuple[FusedLMHead | None, str]:
    """Put our head in the place of the trainer's where that is possible.

    Args:
        parts: of the model.
        args: the trainer's settings.
        keeps: why the trainer's loss needs its own head; None if it does not.
        temperature: of the trainer's log-probabilities.
        output: the class of what the trainer's patched forward returns.

    Returns:
        Our head and "one pass"; or None and why the trainer keeps its own.

    Raises:
        ModelError: the model's own code fails on two tokens.
    """
    why = keeps or next((key for key in UNGUARDED if getattr(args, key, None)), None)
    try:
        if why is None and parts.head.is_trained:
            why = "the head is trained too, and ours is for a frozen one"
        if why is None and _casts(parts.head.weight.dtype, args):
            why = "it casts a float32 head to half precision, and ours does not; load the model in bfloat16"
        if why is None:
            return FusedLMHead(parts.causal, parts.backbone, parts.head, temperature, output), "one pass"
    except (ModelError, RuntimeError) as error:  # unknown to us, or a model that no two tokens go through
        why = str(error)
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:  # a model's own code
        raise ModelError(
            f"The model fails on two tokens, so it cannot be trained: {type(error).__name__}: {error}. Check its "
            "config, and layer_replication of the adapter."
        ) from error
    return None, f"trl's: {why}"


def _casts(dtype: torch.dtype, args: Any) -> bool:
    """Whether the trainer's head works in half precision where the weights do not.

    Ours would be slower there, and in GRPO more exact than the old probabilities that it is held against.
    """
    return dtype == torch.float32 and bool(args.bf16 or args.fp16)
