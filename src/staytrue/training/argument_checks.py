"""What a script hands to a guarded trainer: settings that may not be guarded, rows as examples, the padding token."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from staytrue.config.refused_settings import UNGUARDED
from staytrue.data.examples import Example, Message
from staytrue.errors import ModelError, RecipeError


def refuse_settings(args: Any) -> None:
    """Refuse what would guard the wrong thing in silence.

    Raises:
        RecipeError: the setting, and why.
    """
    for key, why in UNGUARDED.items():
        if getattr(args, key, None):
            raise RecipeError(f"{key}={getattr(args, key)!r} cannot be guarded: {why}. Turn it off, or the defenses.")


def examples_of(rows: Any, turns: str) -> list[Example]:
    """A dataset's rows, whose conversations stand in the column `turns`.

    Raises:
        RecipeError: rows of another form, or with something that a data defense would lose in silence.
    """
    if rows is None:
        raise RecipeError("A data defense edits the train_dataset, and the trainer got none; pass train_dataset=...")
    if isinstance(rows, Dataset) and "input_ids" in rows.column_names:
        raise RecipeError("Rows are tokenized already, so a data defense cannot read them; pass messages instead.")
    if not isinstance(rows, Dataset) or not isinstance(rows[:1].get(turns, [""])[0], list):
        raise RecipeError(f"A data defense needs a map-style train_dataset with a {turns!r} column of turns.")
    return [_example(dict(row), turns) for row in rows]


def pad_id(tokenizer: Any) -> int:
    """The token that fills a batch.

    Raises:
        ModelError: there is none, and no end to use instead.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ModelError("The tokenizer has neither a padding nor an end token; set tokenizer.pad_token.")
    return int(pad)


def _example(row: dict[str, Any], turns: str) -> Example:
    lost = next((key for key in ("tools", "chat_template_kwargs") if row.get(key)), None)
    for message in row[turns]:
        lost = lost or next((k for k, v in message.items() if k not in ("role", "content") and v is not None), None)
    if lost is not None:
        raise RecipeError(f"A row has {lost!r}, which a data defense would lose; take it out, or those defenses.")
    return Example(tuple(Message(m["role"], m["content"]) for m in row.pop(turns)), extra=row)
