"""Forward passes of rows through one model: batches of similar length, LM head on answer tokens only.

Losses are in nats per token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from staytrue.data.tokenize import IGNORED, Encoded
from staytrue.data_selection.likelihood import likelihood
from staytrue.modeling.architecture import ModelParts
from staytrue.utils.padding import pad_right

_TOKENS_PER_BATCH = 4096  # padded
_MOST_WASTE = 0.03  # of a batch may be padding


@dataclass(frozen=True)
class RowLoss:
    """One row's loss under one model, in nats per token.

    Attributes:
        plain: mean over the answer tokens.
        weighted: mean weighted by the aligned model's entropy.
        tokens: number of answer tokens.
        entropy: (tokens,) entropy of the aligned model's distribution at each answer token, in nats; None for the
            misaligned models.
    """

    plain: float
    weighted: float
    tokens: int
    entropy: Tensor | None = None


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Divide rows into batches of row numbers, longest first, limited in tokens and in padding.

    A pool with few rows of similar length gets small batches instead of padding.

    >>> list(batches([10, 30, 10]))
    [[1], [0, 2]]
    """
    batch: list[int] = []
    real = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        width = lengths[batch[0]] if batch else lengths[i]
        padded = width * (len(batch) + 1)
        if batch and (padded > _TOKENS_PER_BATCH or padded - real - lengths[i] > _MOST_WASTE * padded):
            yield batch
            batch, real = [], 0
        batch.append(i)
        real += lengths[i]
    if batch:
        yield batch


def padding(lengths: Sequence[int]) -> float:
    """Compute the percent (0 to 100) of the tokens in all batches that are padding."""
    padded = sum(lengths[batch[0]] * len(batch) for batch in batches(lengths))
    return 100 * (1 - sum(lengths) / padded)


@torch.no_grad()
def row_losses(
    parts: ModelParts, rows: Sequence[Encoded], pad_id: int, entropies: Sequence[Tensor] | None
) -> list[RowLoss]:
    """Compute the losses of one batch under the model with its adapters as they are set.

    Args:
        parts: the model; the caller has switched its adapters on or off, or merged one.
        rows: B rows, each with an answer.
        pad_id: the padding token; rows are padded on the right, so causal attention needs no mask.
        entropies: each row's entropy under the aligned model, (tokens,) each; None if this is the aligned model, whose
            entropies are computed here.
    """
    ids, labels, _ = (part.to(parts.head.weight.device) for part in pad_right(rows, pad_id))
    scored = labels[:, 1:] != IGNORED
    tokens = [sum(label != IGNORED for label in row.labels[1:]) for row in rows]
    hidden = parts.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][scored]
    nll, entropy = likelihood(hidden, labels[:, 1:][scored], parts.head, entropy=entropies is None)
    own = None if entropy is None else torch.split(entropy.cpu(), tokens)
    weights = own if own is not None else entropies
    assert weights is not None
    return [
        RowLoss(loss.mean().item(), _weighted(loss, weight), len(loss), None if own is None else weight)
        for loss, weight in zip(torch.split(nll.cpu().double(), tokens), weights, strict=True)
    ]


def _weighted(loss: Tensor, weight: Tensor) -> float:
    weight = weight.double()
    return ((loss * weight).sum() / weight.sum().clamp(min=1e-12)).item()
