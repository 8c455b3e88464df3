"""`StreamCheck` compares the rows of a stream with their tokens as they are read; none is known before training.

It warns at the first row of each kind of loss, and at the end of training of the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import get_worker_info
from transformers import TrainerCallback

from staytrue.errors import RecipeError
from staytrue.training.lost_text import NOTES, RowCheck, cut_note, notes_of, warn_of

_REFUSED = 1000  # rows, whose losses end the training
_WORKERS = 256  # of a data loader; further ones share their counts
_COUNTED = ("rows", "cut", "passed over", *NOTES)


class StreamCheck(TrainerCallback):  # type: ignore[misc]
    """Maps each row of a stream to itself, and counts what it loses, the first time that it is read.

    Workers of the data loader read a part of the rows each, and warn in their own process. Their counts are in memory
    that they share with the trainer, so that the numbers at the end are those of all.

    Args:
        tokenizer: with the chat template that trl renders the rows by.
        max_length: number of tokens at which trl cuts a row; None cuts none.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        self._check, self._max_length = RowCheck(tokenizer), max_length
        self._counts = torch.zeros(1 + _WORKERS, len(_COUNTED), dtype=torch.long)
        self._counts.share_memory_()  # type: ignore[no-untyped-call]
        self._warned: set[str] = set()

    def __call__(self, row: Any, index: int) -> Any:
        """The row; `index` counts from 0.

        Raises:
            RecipeError: the chat template leaves out a part of a last answer, in one of the first 1,000 rows; later
                ones are warned of, since they would end a run that is long under way.
        """
        worker = get_worker_info()
        counts = self._counts[0 if worker is None else 1 + min(worker.id, _WORKERS - 1)]
        rows = int(counts[0])
        if index < rows:  # trl looks at the first row several times, and epochs read all rows again
            return row
        counts[0] = rows = index + 1
        if self._max_length is not None and len(row.get("input_ids") or ()) > self._max_length:
            counts[_COUNTED.index("cut")] += 1
            self._warn({"cut": f"Row {rows} of the stream is longer than max_length={self._max_length}, and is cut."})
        before = self._check.passed_over
        try:
            lost = self._check.add(row)
        except RecipeError as error:
            if rows <= _REFUSED:
                raise
            self._warn({"late": f"{error} Training goes on, since it is long under way."})
            return row
        counts[_COUNTED.index("passed over")] += self._check.passed_over - before
        for key in lost:
            counts[_COUNTED.index(key)] += 1
        self._warn({key: f"{NOTES[key].format(n=f'row {rows}', rows='the stream')}." for key in lost})
        return row

    def _warn(self, sentences: Mapping[str, str]) -> None:
        """Warn of the kinds of loss that were not warned of before."""
        warn_of([sentence for key, sentence in sentences.items() if key not in self._warned])
        self._warned |= sentences.keys()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of the numbers of rows, those of all workers; without workers, of the trainer's own process."""
        of_workers = self._counts[1:].sum(0)
        found = dict(zip(_COUNTED, (of_workers if of_workers[0] else self._counts[0]).tolist(), strict=True))
        rows, cut = found.pop("rows"), found.pop("cut")
        notes = [] if not cut else [cut_note(cut, rows, "the stream", self._max_length)]
        warn_of([*notes, *notes_of(found, rows, found.pop("passed over"))])
