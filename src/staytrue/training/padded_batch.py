"""A padded batch: rows as model inputs, the marks of their positions, and counts of what is scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_column

from staytrue.data.tokenize import Encoded
from staytrue.step import SOURCES, Marks
from staytrue.utils.padding import pad_right


def pad(
    rows: Sequence[Encoded], pad_id: int, device: torch.device, taken: tuple[int, ...] | None = None
) -> tuple[dict[str, Tensor], Marks]:
    """Pad rows on the right to model inputs (B, T), and mark their positions.

    Args:
        rows: token ids and labels.
        pad_id: the token that fills a row.
        device: the device of the tensors.
        taken: a shape (B, T) that the result must not have; it then gets one more column of padding.
    """
    ids, labels, mask = pad_right(rows, pad_id)
    if ids.shape == taken:
        ids, labels, mask = (
            pad_column(part, (0, 1), value=v) for part, v in ((ids, pad_id), (labels, -100), (mask, 0))
        )
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    source = torch.zeros(len(rows), dtype=torch.long, device=device)
    return inputs, marks_of(labels.to(device), mask.bool().to(device), source)


def marks_of(labels: Tensor, real: Tensor, source: Tensor) -> Marks:
    """Mark labels (B, T), real positions (B, T) and sources (B,); position t predicts token t + 1."""
    scored = torch.zeros_like(real)
    scored[:, :-1] = labels[:, 1:] != -100
    return Marks(real, scored, source.unsqueeze(1).expand_as(labels))


def counts_of(rows: Sequence[Encoded]) -> Tensor:
    """Return `Marks.counts` (len(SOURCES), 2) of auxiliary rows, which count as the first source."""
    counts = torch.zeros(len(SOURCES), 2, dtype=torch.long)
    counts[0, 0] = sum(label != -100 for row in rows for label in row.labels[1:])
    counts[0, 1] = sum(len(row.input_ids) - 1 for row in rows)
    return counts
