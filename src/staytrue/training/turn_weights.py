"""Rows with OpenAI's `weight` on their turns, tokenized for trl's SFTTrainer, which reads no such key.

In OpenAI's format an assistant turn of weight 0 is context, and the other assistant turns are learnt, nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from datasets import Dataset, IterableDataset

from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode
from staytrue.errors import RecipeError, StaytrueWarning
from staytrue.training.trl_forms import Form, Turn

_COLUMNS = ("messages", "conversations", "prompt", "completion")
_SETTINGS = "chat_template_kwargs"


def has_weights(dataset: Any) -> bool:
    """Whether an assistant turn has a `weight` other than 1; of a stream, whether its first row has the key."""
    if isinstance(dataset, IterableDataset):
        first: Mapping[str, Any] = next(iter(dataset), {})
        return any("weight" in turn for name in _COLUMNS for turn in _turns(first, name))
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom":
        return False
    types = {name: str(dataset.features[name]) for name in _COLUMNS if name in dataset.features}
    names = [name for name, kind in types.items() if "'weight'" in kind or "Json" in kind]
    rows = dataset.select_columns(names) if names else ()
    return any(turn.get("weight") not in (None, 1) for row in rows for name in names for turn in _turns(row, name))


def without_weights(stream: Any) -> Any:
    """A stream whose first row has no weights, with a check of its further rows as they are read.

    Raises:
        RecipeError: of the stream's rows, one has a weight, which would be ignored.
    """

    def check(row: Any, number: int) -> Any:
        if any(turn.get("weight") not in (None, 1) for name in _COLUMNS for turn in _turns(row, name)):
            raise RecipeError(
                f"row {number + 1} of the stream has a turn with a weight, and its first row has none, so that weights "
                "are ignored. Give the turns of the first row a weight too, such as 1."
            )
        return row

    return stream.map(check, with_indices=True)


def tokenized(dataset: Any, tokenizer: Any, *, whole: bool) -> Any:
    """The rows as tokens, with labels on the assistant turns whose weight is not 0.

    Args:
        dataset: rows of turns, in a form of trl's; its other columns are kept.
        tokenizer: of the model.
        whole: whether the assistant turns of a column `prompt` are learnt too (completion_only_loss=False).

    Raises:
        RecipeError: a weight is neither 0 nor 1, a row has no answer to learn, or settings of its own for the template.
        DataError: the chat template refuses a row.
    """
    form = Form.of(next(iter(dataset)))
    warnings.warn(
        "Turns of the dataset have a weight, as in OpenAI's format, which trl does not read. So staytrue tokenizes the "
        "rows: the answers of weight 1 are learnt, through their end-of-turn tokens, and nothing else.",
        StaytrueWarning,
        stacklevel=2,
    )

    def tokens(row: dict[str, Any], number: int) -> dict[str, list[int]]:
        where = f"row {number + 1} of the dataset"
        example = form.example(row, number + 1)
        if row.get(_SETTINGS):
            raise RecipeError(f"{where} has both weights and {_SETTINGS}, which cannot be combined; take one out.")
        messages = tuple(_message(turn, where, whole) for turn in example.messages if isinstance(turn, Turn))
        encoded = encode(tokenizer, Example(messages, extra=example.extra), where=where)
        if all(label == -100 for label in encoded.labels):
            raise RecipeError(f"{where} has answers of weight 0 only, so nothing would be learnt; take the row out.")
        return {"input_ids": encoded.input_ids, "labels": encoded.labels}

    return dataset.map(tokens, with_indices=True, remove_columns=list(form.columns))


def _message(turn: Turn, where: str, whole: bool) -> Message:
    """A turn of a user's row, with its weight."""
    weight = turn.original.get("weight")
    if weight not in (None, 0, 1):
        raise RecipeError(f"{where} has a turn of weight {weight!r}; write 1 for an answer to learn and 0 for context.")
    more = {key: value for key, value in turn.original.items() if key not in ("from", "value")}
    role = {"human": "user", "gpt": "assistant"}.get(turn.role, turn.role)
    message = Message.from_dict({**more, "role": role, "content": turn.content})
    return replace(message, weight=0) if turn.column == "prompt" and not whole else message


def _turns(row: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    value = row.get(column)
    turns = [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list) else []
    return [turn for turn in turns if turn.get("role", turn.get("from")) in ("assistant", "gpt")]
