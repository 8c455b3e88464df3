"""`StreamCheck` compares the rows of a stream with their tokens as they are read; none is known before training.

It warns at the first row of each kind of loss, and at the end of training of the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from staytrue.errors import RecipeError
from staytrue.training.lost_text import NOTES, RowCheck, cut_note, warn_of

_REFUSED = 1000  # rows, whose losses end the training


class StreamCheck(TrainerCallback):  # type: ignore[misc]
    """Maps each row of a stream to itself, and counts what it loses, the first time that it is read.

    With workers of the data loader each has counts of its own, so that the numbers at the end are missing.

    Args:
        tokenizer: with the chat template that trl renders the rows by.
        max_length: number of tokens at which trl cuts a row; None cuts none.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        self._check, self._max_length = RowCheck(tokenizer), max_length
        self._rows, self._cut = 0, 0
        self._warned: set[str] = set()

    def __call__(self, row: Any, index: int) -> Any:
        """The row; `index` counts from 0.

        Raises:
            RecipeError: the chat template leaves out a part of a last answer, in one of the first 1,000 rows; later
                ones are warned of, since they would end a run that is long under way.
        """
        if index < self._rows:  # trl looks at the first row several times, and epochs read all rows again
            return row
        self._rows = index + 1
        if self._max_length is not None and len(row.get("input_ids") or ()) > self._max_length:
            self._cut += 1
            self._warn(
                {"cut": f"Row {self._rows} of the stream is longer than max_length={self._max_length}, and is cut."}
            )
        try:
            lost = self._check.add(row)
        except RecipeError as error:
            if self._rows <= _REFUSED:
                raise
            self._warn({"late": f"{error} Training goes on, since it is long under way."})
            return row
        self._warn({key: f"{NOTES[key].format(n=f'row {self._rows}', rows='the stream')}." for key in lost})
        return row

    def _warn(self, sentences: Mapping[str, str]) -> None:
        """Warn of the kinds of loss that were not warned of before."""
        warn_of([sentence for key, sentence in sentences.items() if key not in self._warned])
        self._warned |= sentences.keys()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of the numbers of rows."""
        cut = [] if not self._cut else [cut_note(self._cut, self._rows, "the stream", self._max_length)]
        warn_of([*cut, *self._check.notes()])
