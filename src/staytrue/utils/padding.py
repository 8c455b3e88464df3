"""Pads rows of token ids to one width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from staytrue.data.tokenize import Encoded


def pad_right(rows: Sequence[Encoded], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pad rows on the right.

    Args:
        rows: B rows of at most T tokens.
        pad_id: the token that fills a row.

    Returns:
        Token ids, labels (-100 where padded) and the attention mask, int64, (B, T) each.
    """
    ids = _padded((row.input_ids for row in rows), pad_id)
    labels = _padded((row.labels for row in rows), -100)
    return ids, labels, _padded(([1] * len(row.input_ids) for row in rows), 0)


def _padded(rows: Iterable[list[int]], value: int) -> Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
