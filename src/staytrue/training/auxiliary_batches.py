"""Auxiliary batches: the rows that defenses feed beside the task's batches, from their examples to one padded batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor

from staytrue.data.examples import Example
from staytrue.data.position_table import refuse_longer
from staytrue.data.tokenize import Encoded, encode_all
from staytrue.data.vocabulary import refuse_unknown_tokens
from staytrue.defense import Base, Defense, pulled
from staytrue.errors import RecipeError, StaytrueWarning
from staytrue.step import Marks
from staytrue.training.padded_batch import counts_of, pad
from staytrue.training.row_schedule import AuxiliaryRows

Encode = Callable[[list[Example]], list[Encoded]]


def make_rows(defenses: Mapping[str, Defense], base: Base, encode: Encode, seed: int) -> dict[str, AuxiliaryRows]:
    """Make the auxiliary rows of each defense that has any, by label.

    Raises:
        RecipeError: no row of a defense is left, none has a token of an answer, or its share puts none beside the run.
    """
    beside = {label: defense for label, defense in defenses.items() if "beside" in pulled(defense)}
    for label, defense in beside.items():  # before an answer is sampled for any
        _refuse_too_few(label, defense.share, base.task_rows)
    return {label: _rows_of(label, defense, base, encode, seed) for label, defense in beside.items()}


def _rows_of(label: str, defense: Defense, base: Base, encode: Encode, seed: int) -> AuxiliaryRows:
    examples = defense.beside(base, seed)
    if not examples:
        raise RecipeError(f"{label}: no row is left to put beside the batch; check its file.")
    try:
        rows = encode(examples)
    except RecipeError as error:
        raise RecipeError(f"{label}: {error}") from None
    base.note(f"{label}/rows_beside", len(rows))
    base.note(f"{label}/rows_without_answer", len(examples) - len(rows))
    return AuxiliaryRows(rows, defense.share, seed)


def encode_rows(
    tokenizer: Any,
    examples: list[Example],
    max_length: int | None,
    known: int | None = None,
    accelerator: Any = None,
    table: int | None = None,
) -> list[Encoded]:
    """Encode a defense's auxiliary rows, the same ones on every process.

    Args:
        tokenizer: the model's.
        examples: the rows.
        max_length: number of tokens at which they are cut; None cuts none.
        known: how many token ids the model has embeddings for; None checks none.
        accelerator: of the trainer; None for one process.
        table: how many positions the model has, where it has a table of them; None checks none.

    Raises:
        RecipeError: no row has a token of an answer.
        ModelError: the model has no embedding for a token, or a row is longer than its table of positions.
    """
    encoded, report = encode_all(tokenizer, examples, max_length)
    if not encoded and report.truncated == report.rows:
        raise RecipeError(
            f"all {report.rows} rows are longer than max_length={max_length}, and no token of an answer is left. "
            "Raise max_length, or give shorter rows."
        )
    if not encoded:
        raise RecipeError(f"none of its {report.rows} rows has a token of an answer; check its file.")
    for note in report.notes() if accelerator is None or accelerator.is_main_process else ():
        warnings.warn(f"Rows that a defense feeds beside the batch: {note}", StaytrueWarning, stacklevel=2)
    for number, row in enumerate(encoded, start=1):
        where = f"Row {number} of a defense's own"
        refuse_unknown_tokens(row.input_ids, known, where)
        refuse_longer(len(row.input_ids), table, where, "Lower max_length to that number, or give shorter rows.")
    shared = [encoded]
    # answers sampled on several machines need not agree to the bit
    if accelerator is not None and accelerator.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]


def _refuse_too_few(label: str, share: float, task_rows: int | None) -> None:
    """Refuse a share that makes no row due beside all of a run's task rows, where their number is known."""
    if task_rows is not None and share * task_rows < 0.5:  # rounded to whole rows
        raise RecipeError(
            f"{label}: a share of {share:g} puts no row beside the run's {task_rows} task rows, so it would do "
            "nothing; raise share, or train on more rows."
        )


class Slice(NamedTuple):
    """The rows of one defense in an auxiliary batch."""

    label: str
    first: int
    last: int  # exclusive
    totals: Tensor  # (len(SOURCES), 2), the `Marks.counts` of the defense's rows in the whole optimizer step


class AuxiliaryBatch(NamedTuple):
    """All auxiliary rows of one micro-batch, padded to one batch (B, T)."""

    inputs: dict[str, Any]
    marks: Marks
    slices: list[Slice]


class AuxiliaryBatches:
    """The auxiliary rows of every defense, planned for one optimizer step after another.

    Args:
        rows: each defense's rows and their share, by label.
        pad_id: the token that rows are padded with.
    """

    def __init__(self, rows: Mapping[str, AuxiliaryRows], pad_id: int) -> None:
        self._rows, self._pad_id = rows, pad_id
        self._due: dict[str, list[Encoded]] = {}
        self._rarity: dict[str, float] = {}
        self._slots = 1

    def __contains__(self, label: object) -> bool:
        return label in self._rows

    def rows(self) -> dict[str, Sequence[Encoded]]:
        """Return all rows of each defense."""
        return {label: auxiliary.rows for label, auxiliary in self._rows.items()}

    def plan(self, before: int, after: int, slots: int) -> None:
        """Begin an optimizer step that takes the count of task rows from `before` to `after`, in so many slots."""
        self._due = {label: rows.due(before, after) for label, rows in self._rows.items()}
        self._rarity = {label: rows.rarity(after - before) for label, rows in self._rows.items()}
        self._slots = slots

    def due(self, label: str) -> list[Encoded]:
        """Return the rows of one defense that are due in this optimizer step, over all slots."""
        return self._due.get(label, [])

    def rarity(self, label: str) -> float:
        """Return what makes up for steps in which no row of this defense is due; 1 without rows of its own."""
        return self._rarity.get(label, 1.0)

    def batch(
        self, slot: int, device: torch.device, taken: tuple[int, ...] | None, shards: int = 0
    ) -> AuxiliaryBatch | None:
        """Return the rows due in one slot as one padded batch; None if none is due.

        Args:
            slot: of the optimizer step.
            device: of the model.
            taken: as in `pad`.
            shards: the processes that make each forward together. Where rows are due in the same micro-batch on
                another of them, the batch holds one of those rows, and no slice.
        """
        mine = {label: rows[slot :: self._slots] for label, rows in self._due.items()}
        rows = [row for due in mine.values() for row in due]
        if not rows and shards:
            first = slot - slot % shards
            places = range(first, first + shards)
            rows = [row for due in self._due.values() for place in places for row in due[place :: self._slots]][:1]
        if not rows:
            return None
        inputs, marks = pad(rows, self._pad_id, device, taken)
        slices, first = [], 0
        for label, due in mine.items():
            if due:
                slices.append(Slice(label, first, first + len(due), counts_of(self._due[label])))
            first += len(due)
        return AuxiliaryBatch(inputs, marks, slices)
