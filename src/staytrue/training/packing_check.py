"""`refuse_mixed_rows` finds out whether a model reads across rows that packing or padding-free batches join."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from staytrue.errors import RecipeError, StaytrueWarning

_TOLERANCE = {torch.float32: 0.01}  # of the largest logit
_HALF = 0.1


def refuse_mixed_rows(model: Any, *, refused: bool) -> None:
    """Refuse, or warn of, a model that trains each joined row behind others.

    Args:
        model: a causal language model, with or without an adapter.
        refused: whether this is an error; else a warning.

    Raises:
        RecipeError: the model reads across rows, and `refused` is set.
    """
    if not mixes_joined_rows(model):
        return
    fault = (
        f"A model of type {model.config.model_type} reads across the rows that packing and padding_free join in one "
        "sequence, so each row is trained behind others. Set both to False."
    )
    if refused:
        raise RecipeError(fault)
    warnings.warn(fault, StaytrueWarning, stacklevel=5)


def mixes_joined_rows(model: Any) -> bool:
    """Whether the logits of a row change when another row stands before it in the same sequence.

    trl separates the rows of a sequence by position ids that begin at 0 again. The attention of transformers respects
    them; the states of some hybrid models do not. If the model fails on the two short rows, the trainer goes on.

    Args:
        model: a causal language model, with or without an adapter.
    """
    device, training = next(model.parameters()).device, model.training
    first, second = [1, 2, 3], [3, 1]
    joined = torch.tensor([first + second], device=device)
    positions = torch.tensor([[0, 1, 2, 0, 1]], device=device)
    alone = torch.tensor([second], device=device)
    model.eval()
    try:
        with torch.no_grad():
            after = model(input_ids=joined, position_ids=positions, use_cache=False).logits[:, -2:]
            before = model(input_ids=alone, position_ids=positions[:, -2:], use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model's own code raises anything
        return False
    finally:
        model.train(training)
    difference = (after.float() - before.float()).abs().max() / before.float().abs().max()
    return bool(difference > _TOLERANCE.get(before.dtype, _HALF))
