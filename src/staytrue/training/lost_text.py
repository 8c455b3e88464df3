"""Text that the rows of a script lose on their way into tokens is counted; trl drops it in silence.

A recipe's rows are tokenized by `staytrue.data.tokenize`, which learns every answer whole or refuses the file. A
script's rows are tokenized by trl: here they are compared with their tokens.
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
from staytrue.data.end_of_turn import end_of_turn, end_places
from staytrue.data.examples import Message
from staytrue.data.rendered_row import RenderedRow, leaves_out_a_turn
from staytrue.data.row_checks import REASONING
from staytrue.data.token_offsets import Tokens
from staytrue.data.whole_answers import missing_keys
from staytrue.errors import RecipeError, StaytrueError

_CHECKED = 100  # rows that are rendered again, several times each
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

_READ = (*REASONING, "tool_calls", "tool_call_id", "name")  # keys of a turn that templates read; others are a user's

_NOTES = {
    "answers": "The chat template leaves out a part of an earlier answer, such as its reasoning, in {n} of {rows}; that"
    " part is not learnt",
    "prompt": "In {n} of {rows} the last answer follows another text than the chat template's generation prompt, which "
    "may open a block for reasoning; so the model is used in another context than it is trained in",
    "unseen": "The chat template leaves out a system, user or tool turn of {n} of {rows}",
    "endless": "No token that ends generation is learnt after the last answer of {n} of {rows}, so the model does not "
    "learn to stop there",
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
    notes = {
        f"are longer than max_length={max_length}, and are cut there": cut,
        "are left out: no token of them that is learnt is within max_length": left_out,
    }
    return [f"{n} of {len(rows)} rows of train_dataset {what}." for what, n in notes.items() if n]


def lost_text(rows: Any, tokenizer: Any) -> list[str]:
    """Sentences about the text of the first rows that is not in their tokens, or not learnt.

    Args:
        rows: with turns, and with the tokens and labels that trl made of them; prompts of GRPO have neither.
        tokenizer: with the chat template that trl renders them by.

    Raises:
        RecipeError: the chat template leaves out a part of a last answer, which is the one to learn.
    """
    counts: Counter[str] = Counter()
    number = 0
    for number, row in enumerate(rows.take(_CHECKED) if hasattr(rows, "take") else rows, start=1):
        turns = _turns(row)
        if turns is None:
            return []
        try:
            counts.update(set(_losses(row, turns, tokenizer, f"row {number} of the dataset")))
        except RecipeError:
            raise
        except StaytrueError:  # trl renders the row once, and here it is rendered in several ways
            continue
    rows_checked = f"the first {number} rows" if number == _CHECKED else f"{number} rows"
    return [f"{_NOTES[key].format(n=counts[key], rows=rows_checked)}." for key in _NOTES if counts[key]]


def warn_of(notes: Sequence[str]) -> None:
    """Warn of each note, in one process."""
    if PartialState().is_main_process:
        for note in notes:
            warnings.warn(note, UserWarning, stacklevel=3)


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
    """The parts that a row loses: keys of `_NOTES`."""
    tools = row.get("tools")
    whole = Rendering(tokenizer, messages, json.loads(tools) if isinstance(tools, str) else tools, where)
    if any(message.role not in _ROLES for message in messages):
        yield "roles"
        return
    if leaves_out_a_turn(whole):
        yield "unseen"
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


def _is_endless(row: Mapping[str, Any], rendered: RenderedRow, tokenizer: Any) -> bool:
    """Whether the last answer ends without a token to learn that ends generation; False of a row that was cut."""
    tokens, ids = Tokens.of(tokenizer, rendered.text), row.get("input_ids")
    if ids is not None and len(ids) < len(tokens.ids):
        return False
    place = end_places(tokenizer, rendered, tokens, final=True)[-1]
    if place is None or tokens.ids[place] not in {*end_of_turn(tokenizer), tokenizer.eos_token_id}:
        return True
    return bool(ids is not None and ids == tokens.ids and row["labels"][place] == -100)
