"""Rows of a trainer that its model cannot read are refused before training, or as they are read.

A row has token ids without an embedding, or more tokens than a table of positions.

Tokens come from the user, from a tokenizer that is larger than the embeddings, or from a data collator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset
from pyarrow import compute, types
from torch import Tensor

from staytrue.data.position_table import refuse_longer, table_length
from staytrue.data.vocabulary import embedding_count, refuse_unknown_tokens
from staytrue.errors import RecipeError

_NOT_LEARNT = -100
_SHORTER = "Lower max_length to that number, or filter long rows out."
_TOKENS = ("input_ids", "labels", "completion_mask", "assistant_masks")


def refuse_unknown_rows(trainer: Any) -> None:
    """Refuse rows of tokens, or padding, that the model of a supervised trainer has no embeddings or positions for.

    Raises:
        ModelError: the first such row.
    """
    count, table = embedding_count(trainer.model), table_length(trainer.model)
    padding = getattr(trainer.data_collator, "pad_token_id", None)
    refuse_unknown_tokens([] if padding is None else [padding], count, "The tokenizer's padding")
    for name in ("train_dataset", "eval_dataset"):
        _refuse_unknown_ids(getattr(trainer, name), count, name)
        _refuse_long_rows(getattr(trainer, name), table, name)


def refuse_unknown_prompts(trainer: Any) -> None:
    """Refuse prompts of a GRPO trainer that its model cannot read; all are tokenized only if there may be such.

    Raises:
        ModelError: the first such prompt.
    """
    count, dataset = embedding_count(trainer.model), trainer.train_dataset
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if table_length(trainer.model) is None and (count is None or len(tokenizer) <= count):
        return
    refuse_unknown_tokens([tokenizer.pad_token_id or 0], count, "The tokenizer's padding")
    if isinstance(dataset, Dataset):
        for row in dataset.select_columns(["prompt"]):
            trainer._tokenize_prompts([row["prompt"]])


def refuse_unreadable_tokens(dataset: Any, name: str) -> None:
    """Refuse columns of tokens that are no whole numbers, hold None, or differ in length.

    Raises:
        RecipeError: the column, and the first such row.
    """
    columns = [c for c in _TOKENS if isinstance(dataset, Dataset) and c in dataset.column_names]
    first = 1
    for table in dataset.select_columns(columns).with_format("arrow").iter(batch_size=1000) if columns else ():
        lengths = {}
        for column in columns:
            kind = table.schema.field(column).type
            entry = getattr(kind, "value_type", kind)
            if entry is kind or not (types.is_integer(entry) or types.is_null(entry)):
                raise RecipeError(f"The column {column!r} of {name} is of type {kind}. Give lists of token ids.")
            lengths[column] = compute.list_value_length(table[column]).to_pylist()
        for number, row in enumerate(zip(*lengths.values(), strict=True), start=first):
            if len(set(row)) > 1 or None in row:
                found = ", ".join(f"{column} has {n}" for column, n in zip(columns, row, strict=True))
                raise RecipeError(
                    f"Row {number} of {name}: {found} entries. Each column of tokens has one entry for each token. "
                    "Mend the row, or filter it out."
                )
        first += len(table)


class CheckedTokens:
    """A collator that refuses batches with unknown token ids, whichever stream or collator they come from.

    Args:
        inner: the trainer's own collator.
        count: see `vocabulary.embedding_count`.
        table: see `position_table.table_length`.
    """

    def __init__(self, inner: Callable[[list[Any]], Any], count: int | None, table: int | None = None) -> None:
        self._inner, self._count, self._table = inner, count, table

    def __call__(self, rows: list[Any]) -> Any:
        """The batch of some rows."""
        batch = self._inner(rows)
        self._refuse_long(batch)
        for column in ("input_ids", "labels") if isinstance(batch, Mapping) else ():
            ids = batch.get(column)
            if not isinstance(ids, Tensor) or not ids.numel():
                continue
            read = ids[ids != _NOT_LEARNT] if column == "labels" else ids
            if read.numel():
                extremes = [int(read.min()), int(read.max())]
                refuse_unknown_tokens(extremes, self._count, f"A batch (column {column!r})")
        return batch

    def _refuse_long(self, batch: Any) -> None:
        """Refuse rows beyond the table; where a batch has positions, they begin anew within a row."""
        ids = batch.get("input_ids") if isinstance(batch, Mapping) and "position_ids" not in batch else None
        if isinstance(ids, Tensor):
            refuse_longer(ids.shape[-1], self._table, "A batch's longest row", _SHORTER)


def refuse_unreadable_prompts(trainer: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Refuse prompts with unknown token ids, or that leave no place for a completion in a table of positions.

    Raises:
        ModelError: the sentence says what to do.
    """
    count, table, answer = (
        embedding_count(trainer.model),
        table_length(trainer.model),
        trainer.args.max_completion_length,
    )
    where, way = f"A prompt, with {answer:,} for its completion,", "Lower max_completion_length, or shorten prompts."
    for ids in prompts:
        refuse_unknown_tokens(ids, count, "A prompt")
        refuse_longer(len(ids) + answer, table, where, way)


def _refuse_unknown_ids(dataset: Any, count: int | None, name: str) -> None:
    """Refuse rows of a dataset, or of several by name; a stream is not read."""
    if isinstance(dataset, Mapping) and not isinstance(dataset, Dataset):
        for key, part in dataset.items():
            _refuse_unknown_ids(part, count, f"{name}[{key!r}]")
    if count is None or not isinstance(dataset, Dataset):
        return
    for column in ("input_ids", "labels"):
        if column not in dataset.column_names:
            continue
        for number, ids in _suspicious(dataset, column, count):
            known = [token for token in ids if column != "labels" or token != _NOT_LEARNT]
            refuse_unknown_tokens(known, count, f"Row {number} of {name} (column {column!r})")


def _refuse_long_rows(dataset: Any, table: int | None, name: str) -> None:
    """Refuse rows of a dataset, or of several by name, that are longer than the table."""
    if isinstance(dataset, Mapping) and not isinstance(dataset, Dataset):
        for key, part in dataset.items():
            _refuse_long_rows(part, table, f"{name}[{key!r}]")
    if table is None or not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
        return
    packed = "seq_lengths" in dataset.column_names  # positions begin anew with each row of a pack
    column = "seq_lengths" if packed else "input_ids"
    first = 1
    for part in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        rows = part[column].to_pylist() if packed else compute.list_value_length(part[column]).to_pylist()
        for number, tokens in enumerate(rows, start=first):
            what = f"{'A row in pack' if packed else 'Row'} {number} of {name}"
            refuse_longer(max(tokens) if packed else tokens, table, what, _SHORTER)
        first += len(part)


def _suspicious(dataset: Dataset, column: str, count: int) -> Iterator[tuple[int, list[int]]]:
    """The rows, with their numbers, in batches that hold an id outside of the embeddings."""
    first = 1
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        extremes = compute.min_max(compute.list_flatten(table[column])).as_py()
        lowest, highest = extremes["min"] or 0, extremes["max"] or 0
        if lowest < 0 or highest >= count:
            yield from enumerate(table[column].to_pylist(), start=first)
        first += len(table)
