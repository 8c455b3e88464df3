"""Rows through one model: batches of like length, the head on answer tokens only. Losses are nats per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from staytrue.data.tokenize import IGNORED, Encoded
from staytrue.data_selection.likelihood import likelihood
from staytrue.modeling.architecture import Anatomy

_TOKENS_PER_BATCH = 4096  # padded
_MOST_WASTE = 0.03  # of a batch may be padding


@dataclass(frozen=True)
class RowLoss:
    """One row under one model: the plain mean over its answer tokens, and the mean weighted by `entropy`.

    `entropy` (tokens,) is that of the aligned model's law at each answer token, in nats; only its own pass has it.
    """

    plain: float
    weighted: float
    tokens: int
    entropy: Tensor | None = None


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers, longest first, cut where a token budget is full or padding would pass a few percent.

    So a large pool fills its batches, and a small one with few rows of like length gets small ones instead of padding.
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
    """Percent of the tokens in all batches that are padding."""
    padded = sum(lengths[batch[0]] * len(batch) for batch in batches(lengths))
    return 100 * (1 - sum(lengths) / padded)


@torch.no_grad()
def row_losses(
    anatomy: Anatomy, rows: Sequence[Encoded], pad_id: int, entropies: Sequence[Tensor] | None
) -> list[RowLoss]:
    """One batch under the model as it stands now.

    Args:
        anatomy: the model; its adapters are on, off or merged as the caller wants them.
        rows: (B) of them, each with an answer.
        pad_id: what fills the shorter ones, on the right: causal attention never looks there, so no mask is needed.
        entropies: each row's entropy under the aligned model, (its tokens,); None when this is the aligned model, and
            then they are made here. No other pass needs the law itself, only its log-probabilities.
    """
    device = anatomy.head.weight.device
    width = max(len(row.input_ids) for row in rows)
    ids = torch.tensor([row.input_ids + [pad_id] * (width - len(row.input_ids)) for row in rows], device=device)
    labels = torch.tensor([row.labels + [IGNORED] * (width - len(row.labels)) for row in rows], device=device)
    scored = labels[:, 1:] != IGNORED
    tokens = [sum(label != IGNORED for label in row.labels[1:]) for row in rows]
    hidden = anatomy.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][scored]
    nll, entropy = likelihood(hidden, labels[:, 1:][scored], anatomy.head, entropy=entropies is None)
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
