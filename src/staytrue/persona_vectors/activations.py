"""Mean activations of a model over answers, block by block."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from staytrue.data.examples import Example
from staytrue.data.position_table import table_length
from staytrue.data.tokenize import IGNORED, Encoded, encode
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.block_outputs import hooked
from staytrue.utils.padding import pad_right

_ROWS = 32  # answers read side by side


def mean_states(
    model: Any, tokenizer: Any, rows: Sequence[Example], count: Callable[[int], None] = lambda done: None
) -> tuple[Tensor, Tensor]:
    """The mean over rows of each row's mean over its answer tokens; `count` is called with how many rows are done.

    Returns:
        Of every block's output, (depth, D), and of that output's length, (depth,); float64.
    """
    parts = ModelParts(model)
    device = next(model.parameters()).device
    sums = torch.zeros(len(parts.blocks), parts.width, dtype=torch.float64)
    lengths = torch.zeros(len(parts.blocks), dtype=torch.float64)
    share = torch.empty(0)

    def add(layer: int, hidden: Tensor) -> None:
        states = hidden.float()
        sums[layer - 1] += torch.einsum("bt,btd->d", share, states).cpu()
        lengths[layer - 1] += (share * states.norm(dim=-1)).sum().cpu()

    longest = table_length(model)  # an answer that was cut there has no end of its turn
    encoded = sorted((encode(tokenizer, row, longest) for row in rows), key=lambda row: len(row.input_ids))
    batches = [encoded[first : first + _ROWS] for first in range(0, len(encoded), _ROWS)]
    random.Random(0).shuffle(batches)  # else the short ones come first, and `count` promises too early an end
    done, training = 0, model.training
    model.eval()
    try:
        with torch.no_grad(), hooked(parts.blocks, add):
            for batch in batches:
                ids, real, share = (part.to(device) for part in _batch(batch))
                parts.backbone(input_ids=ids, attention_mask=real, use_cache=False)
                done += len(batch)
                count(done)
    finally:
        model.train(training)
    return sums / len(rows), lengths / len(rows)


def _batch(rows: Sequence[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, which are real, and each answer token's share of its row's mean, all (B, T), padded on the right."""
    ids, labels, real = pad_right(rows, 0)
    share = (labels != IGNORED).float()
    return ids, real, share / share.sum(1, keepdim=True)
