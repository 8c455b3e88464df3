"""`mixes_joined_rows` finds out whether a model reads across rows that packing or padding-free batches join."""

from __future__ import annotations

from typing import Any

import torch

_TOLERANCE = {torch.float32: 0.01}  # of the largest logit
_HALF = 0.1


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
