"""A user's training dataset under data defenses: read as examples, extended, and written back in the same form.

A row keeps its columns, and a turn that no defense edits keeps all its keys (tool calls, names, weights). A form that
a data defense cannot edit or extend is refused, with the conversion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, Value

from staytrue.data.examples import Example
from staytrue.data.row_checks import ROLES
from staytrue.defense import Base
from staytrue.errors import RecipeError
from staytrue.step import SOURCE_COLUMN, SOURCES
from staytrue.training.trl_forms import Form, Row, Turn


def tokenizer_of(arguments: Mapping[str, Any]) -> Any:
    """What a trainer will read its rows with: the argument `processing_class`, or what trl loads by the model's name.

    None if it cannot be loaded; trl then fails by itself.
    """
    from transformers import AutoProcessor

    if arguments.get("processing_class") is not None:
        return arguments["processing_class"]
    model, config = arguments.get("model"), arguments.get("args")
    name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", None)
    revision = (getattr(config, "model_init_kwargs", None) or {}).get("revision", "main")
    try:
        loaded = AutoProcessor.from_pretrained(name, revision=revision)
    except Exception:  # the hub's client and tokenizers raise anything
        return None
    return getattr(loaded, "tokenizer", loaded)


class TRLRows:
    """A training dataset of TRL's, as a data defense reads and extends it.

    Args:
        dataset: with a form of TRL's.
        prompts: whether its rows are prompts to answer (GRPO).

    Raises:
        RecipeError: a data defense cannot read the dataset; the message shows the conversion.
    """

    def __init__(self, dataset: Any, prompts: bool = False) -> None:
        _refuse_kind(dataset)
        self._dataset = dataset.with_format(None)
        for name, feature in dataset.features.items():
            if getattr(feature, "decode", False):  # images and sounds stay as they are stored
                stored = copy(feature)
                stored.decode = False
                self._dataset = self._dataset.cast_column(name, stored)
        self.form = Form.of(self._dataset[0], prompts)
        self.examples = [self.form.example(row, i) for i, row in enumerate(self._dataset, start=1)]
        self._by_extra = {id(example.extra): example for example in self.examples}

    def base(self, base: Base) -> Base:
        """The untouched model, as it would read rows of this form."""
        known: Any = _AsRows(base, self)
        return base if self._is_common() else known

    def with_examples(self, examples: Sequence[Example]) -> Dataset:
        """The dataset after the data defenses. A column of an added row is None where the pool's row has none.

        Raises:
            RecipeError: the dataset has no place for an added row or for a part of it, or a defense lost a part.
        """
        added = [self._is_added(example) for example in examples]
        if self.form.plain and any(added):
            raise RecipeError(_NO_PLACE.format(source=examples[added.index(True)].source))
        features = self._dataset.features.copy()
        blank = dict.fromkeys(features)
        if any(added):
            features[SOURCE_COLUMN] = Value("int64")
            blank |= self._template_settings()
        rows = [self.form.row(example) | {SOURCE_COLUMN: SOURCES.index(example.source)} for example in examples]
        self._refuse_lost_columns([row for row, new in zip(rows, added, strict=True) if new])
        filled = [blank | row if new else row for row, new in zip(rows, added, strict=True)]
        self._refuse_lost_keys([row for row, new in zip(rows, added, strict=True) if new])
        try:
            return Dataset.from_dict({name: [row[name] for row in filled] for name in features}, features)
        except (TypeError, ValueError) as error:  # as pyarrow raises them
            raise RecipeError(
                f"The rows that a data defense adds do not fit the columns of the dataset: {error}. Give the columns "
                "of its pool the same types."
            ) from error

    def _is_added(self, example: Example) -> bool:
        """Whether a row is not one of the user's, edited."""
        if any(isinstance(turn, Turn) for turn in example.messages):
            return False
        original = self._by_extra.get(id(example.extra))
        if original is not None and _more_than_text(original):
            raise RecipeError(
                "A data defense wrote a row anew and lost its tool calls or other keys. Let it change a turn by "
                "dataclasses.replace(turn, content=...), which keeps them."
            )
        return original is None

    def _refuse_lost_columns(self, added: Sequence[Row]) -> None:
        """Refuse added rows with tools or template settings, if the dataset has no column for them."""
        for name in ("tools", _SETTINGS):
            if name not in self._dataset.features and any(row.get(name) for row in added):
                raise RecipeError(
                    f"A row that a data defense adds has {name!r} for its chat template, and the dataset has no such "
                    "column. Add the column to the dataset, with None in your own rows, or take such rows out of the "
                    "pool."
                )

    def _refuse_lost_keys(self, added: Sequence[Row]) -> None:
        """Refuse added turns with keys, such as tool calls, that the dataset's turns do not have."""
        for name in () if self.form.plain else self.form.columns:
            kind: Any = self._dataset.features[name]
            turn = kind[0] if isinstance(kind, list) else getattr(kind, "feature", kind)
            keys = {key for row in added for turn in row[name] for key in turn}
            lost = sorted(keys - set(turn)) if isinstance(turn, dict) else []
            if lost:
                raise RecipeError(
                    f"A row that a data defense adds has {lost[0]!r} in a turn, and the turns of the dataset's column "
                    f"{name!r} have no such key. Take such rows out of the pool, or add the key to your own turns."
                )

    def _is_common(self) -> bool:
        plain = not self.form.plain and self.form.role == "role"
        return plain and not any(_more_than_text(example) for example in self.examples)

    def _template_settings(self) -> Row:
        """The rows' own settings of the chat template, which added rows share."""
        values = [example.extra.get(_SETTINGS) for example in self.examples]
        if any(value != values[0] for value in values):
            raise RecipeError(
                f"The rows differ in {_SETTINGS!r}, so the rows that a data defense adds would need settings of their "
                f"own. Give all rows the same {_SETTINGS}, or take the defense out."
            )
        return {_SETTINGS: values[0]} if values[0] is not None else {}


class _AsRows:
    """The untouched model's view of rows that are more than turns of text."""

    def __init__(self, base: Base, rows: TRLRows) -> None:
        self._base, self._rows = base, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def takes_system(self) -> bool:
        """Text without a chat template has no system turn."""
        return not self._rows.form.plain and self._base.takes_system()

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """The number of tokens of each row, with its tools and tool calls."""
        return [self._length(row) if _more_than_text(row) else self._base.lengths([row])[0] for row in examples]

    def _length(self, example: Example) -> int:
        base: Any = self._base
        tools, settings = example.extra.get("tools"), example.extra.get(_SETTINGS) or {}
        turns = [
            {**getattr(turn, "original", {}), "role": turn.role, "content": turn.content} for turn in example.messages
        ]
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return len(base.tokenizer.apply_chat_template(turns, tools=tools, tokenize=True, return_dict=False, **settings))


_SETTINGS = "chat_template_kwargs"


def _more_than_text(example: Example) -> bool:
    """Whether a row is more than text of a system, a user and an assistant."""
    originals = [turn.original for turn in example.messages if isinstance(turn, Turn)]
    keys = {key for turn in originals for key, value in turn.items() if value is not None}
    further = any(turn.role not in ROLES for turn in example.messages) or keys - {"role", "content", "from", "value"}
    return bool(further or example.extra.get("tools") or example.extra.get(_SETTINGS))


def _refuse_kind(dataset: Any) -> None:
    """Refuse a dataset whose rows cannot all be read before training.

    Raises:
        RecipeError: which kind it is, and what to pass instead.
    """
    if dataset is None:
        raise RecipeError("A data defense edits the train_dataset, and the trainer has none; pass train_dataset=...")
    if isinstance(dataset, IterableDataset):
        raise RecipeError(
            "A data defense reads all training rows before training, and train_dataset is a stream (IterableDataset). "
            "Take as many rows as the run needs:\n"
            "    from datasets import Dataset\n"
            "    train_dataset = Dataset.from_list(list(stream.take(10_000)))"
        )
    if isinstance(dataset, DatasetDict):
        raise RecipeError(
            f"train_dataset is a DatasetDict of {', '.join(dataset)}. Pass one of them:\n"
            f"    train_dataset = dataset[{next(iter(dataset), 'train')!r}]"
        )
    if not isinstance(dataset, Dataset):
        raise RecipeError(
            f"A data defense needs a datasets.Dataset, and train_dataset is a {type(dataset).__name__}. Make one:\n"
            "    from datasets import Dataset\n"
            "    train_dataset = Dataset.from_list([dict(row) for row in rows])"
        )
    if "input_ids" in dataset.column_names:
        raise RecipeError(
            "Rows are tokenized already, so a data defense cannot read them; pass messages instead. The trainer "
            "tokenizes them:\n"
            '    train_dataset = Dataset.from_list([{"messages": [{"role": "user", "content": question},\n'
            '                                                     {"role": "assistant", "content": answer}]}])'
        )
    if dataset.format["type"] == "custom":
        raise RecipeError(
            "A data defense reads each row once, and train_dataset computes its rows by with_transform. Compute them "
            "before:\n    train_dataset = dataset.map(your_transform, batched=True)"
        )
    if len(dataset) == 0:
        raise RecipeError("train_dataset has no rows, so a data defense has nothing to edit; check its filter.")


_NO_PLACE = (
    "The rows are plain text ('prompt' and 'completion' strings), and a data defense adds {source} conversations, for "
    "which plain text has no chat template. Write your rows as turns:\n"
    '    dataset = dataset.map(lambda row: {{"prompt": [{{"role": "user", "content": row["prompt"]}}],\n'
    '                                       "completion": [{{"role": "assistant", "content": row["completion"]}}]}})'
)
