"""Text that the rows of a script lose on their way into tokens is counted; trl drops it in silence.

A recipe's rows are tokenized by `staytrue.data.tokenize`, which learns every answer whole or refuses the file. A
script's rows are tokenized by trl: here they are compared with their tokens. The first rows are compared closely, which
takes about as long as trl's tokenization. Of every other row the text of each turn is looked up, at a tenth of that.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from pyarrow import compute

from staytrue.data.answer_positions import Rendering
from staytrue.data.chat_template import render
from staytrue.data.end_of_turn import end_of_turn, end_places
from staytrue.data.examples import Message
from staytrue.data.rendered_row import RenderedRow, leaves_out_a_turn
from staytrue.data.row_checks import REASONING
from staytrue.data.token_offsets import Tokens
from staytrue.data.whole_answers import missing_keys, squeezed
from staytrue.errors import RecipeError, StaytrueError, StaytrueWarning

_CLOSELY = 100  # the first rows, which are rendered several times each
_MOST = 1000  # rows in all that are, of those that seem to lose text
_ENDING = 8  # tokens at the end of a row, of which one ends the last answer
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

_READ = (*REASONING, "tool_calls", "tool_call_id", "name")  # keys of a turn that templates read; others are a user's

NOTES = {
    "answers": "The chat template leaves out a part of an earlier answer, such as its reasoning, in {n} of {rows}; that"
    " part is not learnt",
    "prompt": "In {n} of {rows} the last answer follows another text than the chat template's generation prompt, which "
    "may open a block for reasoning; so the model is used in another context than it is trained in",
    "unseen": "The chat template leaves out a system, user or tool turn of {n} of {rows}",
    "endless": "No token that ends generation is learnt after the last answer of {n} of {rows}, so the model does not "
    "learn to stop there",
    "unanswered": "The last turn of {n} of {rows} is no answer, so what is learnt there is another role's text",
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
        without_turns: whether the first row has no turns, so that there is nothing to compare.
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
        turns = _turns(row)
        if turns is None:
            self.without_turns = self.number == 1
            return set()
        first = self.number <= _CLOSELY
        if not first and _looks_whole(row, turns, self._tokenizer):
            return set()
        if self._closely >= _MOST:
            self._passed_over += 1
            return set()
        self._closely += 1
        try:
            lost = set(_losses(row, turns, self._tokenizer, f"row {self.number} of the dataset"))
        except RecipeError:
            raise
        except StaytrueError:  # trl renders the row once, and here it is rendered in several ways
            return set()
        lost -= set() if first else {"prompt"}  # which is looked at in the first rows alone
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


def _turns(row: Mapping[str, Any]) -> list[Message] | None:
    """The turns of a row; None if it has none, or settings of its own for the template."""
    columns = ("messages",) if "messages" in row else ("prompt", "completion")
    turns = [turn for column in columns for turn in row.get(column) or ()]
    if (
        not turns
        or any(not isinstance(turn, Mapping) or "role" not in turn for turn in turns)
        or row.get("chat_template_kwargs")
    ):
        return None
    return [
        Message.from_dict(
            {key: turn[key] for key in _READ if turn.get(key)}
            | {"role": turn["role"], "content": _text_of(turn.get("content"))}
        )
        for turn in turns
    ]


def _text_of(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))


def _losses(row: Mapping[str, Any], messages: list[Message], tokenizer: Any, where: str) -> Iterator[str]:
    """The parts that a row loses: keys of `NOTES`."""
    tools = row.get("tools")
    whole = Rendering(tokenizer, messages, json.loads(tools) if isinstance(tools, str) else tools, where)
    if any(message.role not in _ROLES for message in messages):
        yield "roles"
        return
    if leaves_out_a_turn(whole):
        yield "unseen"
    if row.get("input_ids") and messages[-1].role != "assistant":
        yield "unanswered"
    for turn, message in enumerate(messages):
        if message.role != "assistant":
            continue
        start, end, prompt = whole.span(turn)
        missing = missing_keys(whole, turn, whole.text[start:end], prompt)
        if turn < len(messages) - 1:
            yield from ["answers"] if missing else []
            continue
        if missing:
            raise RecipeError(
                f"The chat template leaves out a part of the last answer of {where} ({' and '.join(missing)}), such as "
                "its reasoning, so it would not be learnt. Take that part out of the rows, use a chat template that "
                "renders it, or train with a recipe, which learns answers whole."
            )
        if not whole.text.startswith(prompt):
            yield "prompt"
        if _is_endless(row, RenderedRow(whole.text, ((start, end),)), tokenizer):
            yield "endless"


def _looks_whole(row: Mapping[str, Any], messages: list[Message], tokenizer: Any) -> bool:
    """Whether the text of each turn is in the row's own, in order, and a token to learn ends the last answer.

    This is quick, and right for most rows: those that do not look whole are compared closely.
    """
    if any(message.role not in _ROLES or "tool_calls" in message.more for message in messages):
        return False
    tools = row.get("tools")
    try:
        text = squeezed(render(tokenizer, messages, "", json.loads(tools) if isinstance(tools, str) else tools))
    except StaytrueError:
        return True  # as above
    place = 0
    for message in messages:
        more = json.loads(message.more) if message.more else {}
        if any(squeezed(part) not in text for part in more.values() if isinstance(part, str)):
            return False
        part = "" if message.role == "tool" else squeezed(message.content)
        if (place := text.find(part, place)) < 0:
            return False
        place += len(part)
    ids, labels = (row.get(column) for column in ("input_ids", "labels"))
    if not ids or not labels:
        return True
    if messages[-1].role != "assistant":
        return False
    ends = {*end_of_turn(tokenizer), tokenizer.eos_token_id}
    ending = zip(ids[-_ENDING:], labels[-_ENDING:], strict=True)
    return any(token in ends and label != -100 for token, label in ending)


def _is_endless(row: Mapping[str, Any], rendered: RenderedRow, tokenizer: Any) -> bool:
    """Whether the last answer ends without a token to learn that ends generation; False of a row that was cut."""
    tokens, ids = Tokens.of(tokenizer, rendered.text), row.get("input_ids")
    if ids is not None and len(ids) < len(tokens.ids):
        return False
    place = end_places(tokenizer, rendered, tokens, final=True)[-1]
    if place is None or tokens.ids[place] not in {*end_of_turn(tokenizer), tokenizer.eos_token_id}:
        return True
    return bool(ids is not None and ids == tokens.ids and row["labels"][place] == -100)
