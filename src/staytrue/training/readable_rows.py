"""Refuses rows of a script's dataset at which trl would fail in a traceback, or which it would train on as "None"."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, IterableDataset
from jinja2.exceptions import TemplateError

from staytrue.errors import RecipeError
from staytrue.training.known_tokens import refuse_unreadable_tokens

_BESIDE = ("role", "from", "name", "weight")  # keys of a turn that hold nothing to read


def readable(arguments: Mapping[str, Any], *, prompts: bool, curated: bool) -> dict[str, Any]:
    """The datasets among a trainer's arguments; a stream's rows are checked as they are read.

    Args:
        arguments: of the trainer, by name.
        prompts: whether rows are prompts to answer (GRPO).
        curated: whether data defenses read the training rows, which refuse other columns by themselves.

    Raises:
        RecipeError: the first row that cannot be read, or the columns that trl does not know.
    """
    config = arguments.get("args")
    if (getattr(config, "dataset_kwargs", None) or {}).get("skip_prepare_dataset"):
        return {}
    formatted = bool(arguments.get("formatting_func"))
    text = getattr(config, "dataset_text_field", "text")
    checked: dict[str, Any] = {}
    for name in ("train_dataset", "eval_dataset"):
        value: Any = arguments.get(name)
        others = formatted or (curated and name == "train_dataset")
        if isinstance(value, dict):
            parts = {k: _readable(part, f"{name}[{k!r}]", prompts, text, others) for k, part in value.items()}
            checked[name] = type(value)(parts)
        elif name in arguments:
            checked[name] = _readable(value, name, prompts, text, others)
    return checked


def without_effect(columns: Sequence[str], formatting_func: Any, config: Any) -> Iterator[str]:
    """Sentences about arguments of a trainer that do nothing with rows of these columns."""
    if config.completion_only_loss and not {"prompt", "labels"} & {*columns}:
        yield (
            "completion_only_loss is True, and the rows have no column 'completion', so every token is learnt, prompts "
            "too. Write rows with 'prompt' and 'completion', or set assistant_only_loss."
        )
    read = next((column for column in ("prompt", "messages") if column in columns), None)
    if formatting_func and read:
        yield (
            f"formatting_func is not used, since trl reads the column {read!r} of the rows. Rename it, or take "
            "formatting_func out."
        )


@contextmanager
def naming_template(name: str) -> Iterator[None]:
    """Around trl's tokenization: an error of the chat template becomes a sentence.

    Raises:
        RecipeError: the chat template cannot render a row of a dataset, whose name is given.
    """
    try:
        yield
    except Exception as error:  # a template's own code raises anything
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        absent = "chat_template is not set" in str(error)
        if not isinstance(error, TemplateError) and where != "<template>" and not absent:
            raise
        if absent:
            raise RecipeError(
                f"The rows of {name} are turns, and the tokenizer has no chat template to write them with. Set "
                "tokenizer.chat_template, use the instruct version of the model, or give rows of text."
            ) from error
        raise RecipeError(
            f"The chat template refuses a row of {name}: {error}. Change its turns, such as a system turn or a content "
            "in parts, or use another model."
        ) from error


def _readable(dataset: Any, name: str, prompts: bool, text: str, others: bool) -> Any:
    """The dataset, once its rows are checked; of another type than a dataset's it is left to trl.

    `others`: other columns are read by a data defense or a formatting function.
    """
    if not isinstance(dataset, Dataset | IterableDataset):
        return dataset
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        return dataset
    first = next(iter(dataset), None)
    if first is None and not others:
        raise RecipeError(f"{name} has no rows, so there is nothing to train on; check its filter.")
    columns = _columns(first or {}, prompts, text)
    if columns is None and not (others and "prompt" not in (first or {})):
        raise RecipeError(_unknown_columns(first or {}, name, prompts, text))
    if not columns:
        refuse_unreadable_tokens(dataset, name)
        return dataset
    if isinstance(dataset, IterableDataset) and prompts and name != "train_dataset":
        return dataset  # the trainer keeps the user's own object; its batches are checked, see `check_prompts`
    if isinstance(dataset, IterableDataset):
        return dataset.map(lambda row, number: _checked(row, columns, name, number, prompts), with_indices=True)
    for number, row in enumerate(dataset.select_columns([*columns])):
        _checked(row, columns, name, number, prompts)
    return dataset


def _columns(row: Mapping[str, Any], prompts: bool, text: str) -> tuple[str, ...] | None:
    """The columns that trl reads of each row; () for rows that are tokens, None if it knows none."""
    if "input_ids" in row:
        return ()
    both = ("prompt",) if prompts else ("prompt", "completion")
    tools = ("tools",) if "tools" in row else ()
    for columns in [both] if prompts else [both, ("messages",), ("conversations",), (text,)]:
        if "prompt" in row and columns != both:
            return None
        if all(column in row for column in columns):
            turns = row[columns[0]] or [{"from": "", "value": ""}]
            is_known = columns != ("conversations",) or (isinstance(turns, list) and {"from", "value"} <= {*turns[0]})
            return (*columns, *tools) if is_known else None
    return None


def _unknown_columns(row: Mapping[str, Any], name: str, prompts: bool, text: str) -> str:
    known = ", ".join(repr(column) for column in row)
    if prompts:
        return f"{name} has the columns {known}, and GRPO reads prompts from a column 'prompt'. Rename one."
    way_out = "Rename them, or pass a formatting_func."
    if "conversations" in row:
        way_out = 'Rename it: dataset.rename_column("conversations", "messages").'
    elif "prompt" in row:
        way_out = "A 'prompt' needs a 'completion' beside it: rename the column of answers, or remove 'prompt'."
    return (
        f"{name} has the columns {known}, and trl reads 'messages', 'prompt' with 'completion', 'conversations' of "
        f"turns with 'from' and 'value', or {text!r}. {way_out}"
    )


def check_prompts(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check a batch of prompts (GRPO), which may come from a stream or be computed as it is read.

    Raises:
        RecipeError: a prompt of the batch holds nothing that can be read.
    """
    for row in rows:
        if not isinstance(row, Mapping) or "prompt" not in row:
            raise RecipeError(f"A row of a batch is {str(row)[:60]!r}, and GRPO reads prompts from a column 'prompt'.")
        for fault in _faults(row["prompt"], prompts=True):
            raise RecipeError(f"A row of a batch has prompt{fault}. Mend the row, or filter it out.")


def _checked(row: Any, columns: tuple[str, ...], name: str, number: int, prompts: bool) -> Any:
    """The row.

    Raises:
        RecipeError: a column of the row holds nothing that can be read.
    """
    for column in columns:
        for fault in _tools_faults(row[column]) if column == "tools" else _faults(row[column], prompts):
            raise RecipeError(f"{name}: row {number + 1} has {column}{fault}. Mend the row, or filter it out.")
    return row


def _faults(value: Any, prompts: bool) -> Iterator[str]:
    if not isinstance(value, str | list | tuple) or (not len(value) and (prompts or value != "")):
        yield f"={value!r}, which is no text and no list of turns"
    for place, turn in enumerate(value if isinstance(value, list) else ()):
        if not isinstance(turn, Mapping):
            yield f"[{place}]={str(turn)[:60]!r}, which is no turn with a role and a content"
        elif all(turn[key] is None for key in turn if key not in _BESIDE):
            yield f"[{place}], a turn of {turn.get('role', turn.get('from'))!r} without content (it is None)"


def _tools_faults(value: Any) -> Iterator[str]:
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        yield f"={value[:60]!r}, which is not JSON ({error})"
        return
    if tools is not None and not isinstance(tools, list):
        yield f"={str(value)[:60]!r}, which is no list of tools"


def refuse_unread_columns(dataset: Any, columns: Sequence[str], tools: Any, chat_template_kwargs: Any) -> None:
    """Refuse columns that trl's other trainers render prompts with, and its GRPOTrainer does not read.

    Raises:
        RecipeError: there is such a column, and the trainer was not given its content otherwise.
    """
    ways_out = {
        "tools": (tools, "pass tools=[...], a list of functions, to the trainer"),
        "chat_template_kwargs": (chat_template_kwargs, "set chat_template_kwargs in GRPOConfig"),
    }
    for name, (passed, way_out) in ways_out.items():
        if name in columns and not passed and (isinstance(dataset, IterableDataset) or any(dataset[name])):
            raise RecipeError(
                f"train_dataset has a column {name!r}, and trl's GRPOTrainer renders prompts without it. To render "
                f"it, {way_out}; otherwise remove or rename the column."
            )
