"""The source of each token of a training batch, and the tokens that begin a row.

TRL's packing joins rows and its collators drop every column but the tokens. So packing gets a column of codes beside
the tokens, and the collator of the training data (never the user's own object) carries it into the batch.
A code is the row's number in SOURCES; on the first token of a row, len(SOURCES) is added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from staytrue.errors import RecipeError
from staytrue.step import SOURCE_COLUMN, SOURCES, Marks
from staytrue.training.padded_batch import marks_of


def row_codes(source: int, length: int) -> list[int]:
    """The codes of one row's tokens."""
    return [source + len(SOURCES) * (i == 0) for i in range(length)]


def task_rows_of(codes: list[int] | int) -> int:
    """How many rows of the task begin in a row of the training data, packed or not."""
    return codes.count(len(SOURCES)) if isinstance(codes, list) else int(codes == 0)


def sources_of(codes: list[int] | int) -> set[int]:
    """The numbers of the sources of a row of the training data, packed or not."""
    return {code % len(SOURCES) for code in (codes if isinstance(codes, list) else [codes])}


def packed_with_sources(rows: Any, args: Any, pack: Callable[[Any, int, str], Any]) -> Any:
    """Rows of tokens and labels, packed by trl with a code beside each token.

    Args:
        rows: a dataset, not cut.
        args: trl's SFTConfig, of which `max_length`, the strategy of packing, and shuffling with its seed are read.
        pack: trl's `pack_dataset`.
    """
    rows = rows.map(lambda row: {SOURCE_COLUMN: row_codes(row.get(SOURCE_COLUMN, 0), len(row["input_ids"]))})
    rows = rows.select_columns(["input_ids", "labels", SOURCE_COLUMN])
    rows = rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows
    packed = pack(rows, args.max_length, args.packing_strategy)
    return packed.shuffle(seed=args.seed) if args.shuffle_dataset else packed


class TrackingCollator:
    """A collator that adds each row's source to the batch of another: (B,), or (B, T) codes where rows were joined.

    Args:
        inner: the trainer's own collator.
    """

    def __init__(self, inner: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """The batch of some rows."""
        sources = [row.get(SOURCE_COLUMN, 0) for row in rows]
        plain = [{key: value for key, value in row.items() if key != SOURCE_COLUMN} for row in rows]
        with _naming_blank_columns("data collator", rows):
            batch = self._inner(plain)
        joined = "seq_lengths" in rows[0] or any(isinstance(source, list) for source in sources)
        if joined or len(batch["labels"]) != len(rows):
            batch[SOURCE_COLUMN] = _laid_out([_codes(row) for row in rows], rows, batch)
        else:
            batch[SOURCE_COLUMN] = torch.tensor(sources)
        return batch


class CheckedFormat:
    """A formatting function whose faults are sentences: no text, or columns of an added row that it cannot take."""

    def __init__(self, inner: Callable[[dict[str, Any]], Any]) -> None:
        self._inner = inner

    def __call__(self, row: dict[str, Any]) -> Any:
        """The text of a row."""
        with _naming_blank_columns("formatting_func", [row]):
            text = self._inner(row)
        if not isinstance(text, str):
            raise RecipeError(f"formatting_func returned {str(text)[:60]!r}, which is no text; return a string.")
        return text


def marks_of_batch(batch: Any) -> Marks:
    """The marks of a supervised batch, tracked or not.

    Raises:
        RecipeError: the batch has no labels.
    """
    if "labels" not in batch or batch["labels"] is None:
        raise RecipeError(
            "The data collator gives a batch without 'labels', which trl's loss and the defenses read. Let it add "
            "them: token ids, with -100 where nothing is learnt."
        )
    labels: Tensor = batch["labels"]
    for column in ("input_ids", "attention_mask"):
        shape = getattr(batch.get(column), "shape", labels.shape)
        if not labels.numel() or (shape != labels.shape and len(shape) == labels.ndim):
            raise RecipeError(
                f"The data collator gives a batch with labels of the shape {tuple(labels.shape)} and {column} of "
                f"{tuple(shape)}. Both have one entry for each token of each row, and a batch has at least one."
            )
    mask, codes = batch.get("attention_mask"), batch.get(SOURCE_COLUMN)
    real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    if codes is None:
        codes = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
    if codes.ndim == 1:
        return replace(marks_of(labels, real, codes), begins=_begins(batch.get("position_ids"), real))
    marks = marks_of(labels, real, codes.new_zeros(len(labels)))
    return replace(marks, source=codes % len(SOURCES), begins=codes >= len(SOURCES))


def _begins(positions: Tensor | None, real: Tensor) -> Tensor | None:
    """The tokens (B, T) that begin a row, where the collator joins rows and numbers the tokens of each; else None."""
    if positions is None or positions.shape != real.shape:
        return None
    return real & ((positions == 0) | (real.cumsum(1) == 1))


@contextmanager
def _naming_blank_columns(what: str, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Around the user's own code: if it fails on added rows, name the columns that are None in them."""
    try:
        yield
    except Exception as error:
        added = [row for row in rows if row.get(SOURCE_COLUMN) and not isinstance(row[SOURCE_COLUMN], list)]
        blank = sorted({key for row in added for key, value in row.items() if value is None})
        if not blank:
            raise
        raise RecipeError(
            f"The {what} failed on a row that a data defense added, in which {', '.join(blank)} is None "
            f"({type(error).__name__}: {error}). Give the rows of its pool that column, or let the {what} take None."
        ) from error


def _codes(row: dict[str, Any]) -> list[int]:
    source = row.get(SOURCE_COLUMN, 0)
    if isinstance(source, list):
        return source
    lengths = row.get("seq_lengths") or [len(row["input_ids"])]
    return [code for length in lengths for code in row_codes(source, length)]


def _laid_out(codes: list[list[int]], rows: list[dict[str, Any]], batch: Any) -> Tensor:
    """(B, T) codes at the places where the collator has put the tokens: one row, or each row padded on the right."""
    ids: Tensor = batch["input_ids"]
    tokens = [list(row["input_ids"]) for row in rows]
    if len(ids) != len(rows):
        codes, tokens = [list(chain(*codes))], [list(chain(*tokens))]
    out = torch.zeros(ids.shape, dtype=torch.long)
    for i, (row, row_tokens) in enumerate(zip(codes, tokens, strict=False)):
        if i >= len(ids) or ids[i, : len(row_tokens)].tolist() != row_tokens:
            raise RecipeError(
                "The data collator orders the tokens of packed rows in its own way, so the defenses cannot know which "
                "row each comes from. Set packing and padding_free to False, or use trl's collator."
            )
        out[i, : len(row)] = torch.tensor(row)
    return out
