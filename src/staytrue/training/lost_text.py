"""Text that the rows of a script lose on their way into tokens is counted; trl drops it in silence.

A recipe's rows are tokenized by `staytrue.data.tokenize`, which learns every answer whole or refuses the file. A
script's rows are tokenized by trl: here they are compared with their tokens. The first rows are compared closely, which
takes about as long as trl's tokenization. Of every other row the text of each turn is looked up, at a tenth of that.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from pyarrow import compute

from staytrue.errors import RecipeError, StaytrueError, StaytrueWarning
from staytrue.training.row_losses import completion_is_empty, looks_whole, losses, turns_of

_CLOSELY = 100  # the first rows, which are rendered several times each
_MOST = 1000  # rows in all that are, of those that seem to lose text

NOTES = {
    "answers": "The chat template leaves out a part of an earlier answer, such as its reasoning, in {n} of {rows}; that"
    " part is not learnt",
    "prompt": "In {n} of {rows} the last answer follows another text than the chat template's generation prompt, which "
    "may open a block for reasoning; so the model is used in another context than it is trained in",
    "tools": "The chat template does not render the tools of {n} of {rows}, so the model does not read them",
    "unseen": "The chat template leaves out a system, user or tool turn of {n} of {rows}",
    "endless": "No token that ends generation is learnt after the last answer of {n} of {rows}, so the model does not "
    "learn to stop there",
    "unanswered": "The last turn of {n} of {rows} is no answer, so what is learnt there is another role's text",
    "empty": "An answer is empty in {n} of {rows}, so the model learns to say nothing there",
    "asked": "The completion of {n} of {rows} holds a user or system turn, which is learnt too; put what stands before "
    "the last answer into the prompt, or set assistant_only_loss=True",
    "roles": "Turns have roles that prompts at inference do not have, such as 'gpt', in {n} of {rows}; name them user "
    "and assistant",
}


def cut_rows(rows: Dataset, left: int | None, max_length: int | None) -> list[str]:
    """Sentences about rows that were cut at `max_length`, or left out since no token to learn was left.

    Args:
        rows: with all of their tokens, `input_ids`.
        left: number of rows after trl cut them and left some out; None for rows that are packed.
        max_length: of the trainer; None cuts nothing.

    Raises:
        RecipeError: no row is left.
    """
    if left == 0:
        raise RecipeError(
            f"None of the {len(rows)} rows of train_dataset has a token to learn within max_length={max_length}. Raise "
            "max_length, give shorter rows, or check their labels."
        )
    left_out = 0 if left is None else len(rows) - left
    tables = rows.select_columns(["input_ids"]).with_format("arrow").iter(batch_size=1000)
    lengths = (compute.list_value_length(table["input_ids"]) for table in tables)
    cut = 0 if max_length is None else sum(compute.sum(compute.greater(n, max_length)).as_py() or 0 for n in lengths)
    notes = [cut_note(cut, len(rows), "train_dataset", max_length)] if cut else []
    if left_out:
        notes.append(
            f"{left_out} of {len(rows)} rows of train_dataset are left out: no token of them that is learnt is within "
            "max_length."
        )
    return notes


def cut_note(cut: int, rows: int, name: str, max_length: int | None) -> str:
    """A sentence about rows that are cut."""
    return f"{cut} of {rows} rows of {name} are longer than max_length={max_length}, and are cut there."


def lost_text(rows: Any, tokenizer: Any) -> list[str]:
    """Sentences about the text of rows that is not in their tokens, or not learnt.

    Args:
        rows: a dataset with turns, and with the tokens and labels that trl made of them; prompts of GRPO have neither.
        tokenizer: with the chat template that trl renders them by.

    Raises:
        RecipeError: the chat template leaves out a part of a last answer, which is the one to learn.
    """
    check = RowCheck(tokenizer)
    for row in rows:
        check.add(row)
        if check.without_turns:
            break
    return check.notes()


class RowCheck:
    """Counts the rows that lose text, one row after the other.

    Args:
        tokenizer: with the chat template that trl renders the rows by.

    Attributes:
        number: of rows so far.
        without_turns: whether the first row has neither turns nor a completion, so that there is nothing to compare.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._counts: Counter[str] = Counter()  # of rows, by keys of `NOTES`
        self._closely = self._passed_over = 0  # rows compared closely, and those that seem to lose text and were not
        self.number, self.without_turns = 0, False

    def add(self, row: Mapping[str, Any]) -> set[str]:
        """Compare a row with its tokens; return what it loses, as keys of `NOTES`.

        Raises:
            RecipeError: the chat template leaves out a part of a last answer.
        """
        if self.without_turns:
            return set()
        self.number += 1
        turns = turns_of(row)
        if turns is None:
            return self._add_text(row)
        first = self.number <= _CLOSELY
        if not first and looks_whole(row, turns, self._tokenizer):
            return set()
        if self._closely >= _MOST:
            self._passed_over += 1
            return set()
        self._closely += 1
        lost: set[str] = set()
        try:
            for key in losses(row, turns, self._tokenizer, f"row {self.number} of the dataset"):
                lost.add(key)
        except RecipeError:
            raise
        except StaytrueError:  # trl renders the row once, and here it is rendered in several ways
            pass  # what was found before that counts
        lost -= set() if first else {"prompt"}  # which is looked at in the first rows alone
        self._counts.update(lost)
        return lost

    def _add_text(self, row: Mapping[str, Any]) -> set[str]:
        """As `add`, for a row of text; of the whole of it, or of a prompt and a completion."""
        self.without_turns = self.number == 1 and not isinstance(row.get("completion"), str)
        lost = {"empty"} if completion_is_empty(row, self._tokenizer) else set()
        self._counts.update(lost)
        return lost

    @property
    def passed_over(self) -> int:
        """The number of rows that seem to lose text, and were too many to be compared closely."""
        return self._passed_over

    def notes(self) -> list[str]:
        """A sentence for each kind of loss, with the number of rows."""
        return notes_of(self._counts, self.number, self._passed_over)


def notes_of(counted: Mapping[str, int], number: int, passed_over: int) -> list[str]:
    """A sentence for each kind of loss, with the number of rows.

    Args:
        counted: rows by keys of `NOTES`.
        number: of all rows.
        passed_over: see `RowCheck`.
    """
    most = "at least " if passed_over else ""
    first = f"the first {_CLOSELY} rows" if number > _CLOSELY else f"{number} rows"
    rows = dict.fromkeys(NOTES, f"{number} rows") | {"prompt": first}
    counts = {key: f"{'' if key == 'prompt' else most}{count}" for key, count in counted.items() if count}
    return [f"{NOTES[key].format(n=counts[key], rows=rows[key])}." for key in NOTES if key in counts]


def warn_of(notes: Sequence[str]) -> None:
    """Warn of each note, in one process."""
    if PartialState().is_main_process:
        for note in notes:
            warnings.warn(note, StaytrueWarning, stacklevel=3)
