"""TRL's dataset forms: reads a user's rows as examples for a data defense, and writes them back in the same form.

A row keeps its columns, and a turn that no defense edits keeps all its keys (tool calls, names, weights). A form that
a data defense cannot edit or extend is refused, with the conversion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, Value

from staytrue.data.examples import Example, Message
from staytrue.data.row_checks import ROLES
from staytrue.defense import Base
from staytrue.errors import RecipeError
from staytrue.step import SOURCE_COLUMN, SOURCES

Row = dict[str, Any]


@dataclass(frozen=True)
class Turn(Message):
    """One turn of a user's row."""

    given: Mapping[str, Any] = field(default_factory=dict, compare=False)  # the turn as the user's dataset has it
    column: str = ""  # the column that holds it


@dataclass(frozen=True)
class Form:
    """The form of a dataset's rows: which columns hold a conversation, and how.

    Attributes:
        columns: of the conversation, in order: messages; conversations; prompt and completion; prompt.
        plain: whether these columns hold text instead of turns.
        role: a turn's key of its role.
        content: a turn's key of its text.
        parts: whether that text is a list of parts, such as [{"type": "text", "text": ...}].
    """

    columns: tuple[str, ...]
    plain: bool = False
    role: str = "role"
    content: str = "content"
    parts: bool = False

    @classmethod
    def of(cls, row: Row, prompts: bool = False) -> Form:
        """The form of a row; of a prompt to answer with `prompts`.

        Raises:
            RecipeError: a data defense cannot read it; the message shows the conversion.
        """
        both = ("prompt",) if prompts else ("prompt", "completion")
        if all(isinstance(row.get(name), str) for name in both):
            return cls(both, plain=True)
        for columns in [both] if prompts else [both, ("messages",)]:
            if all(_is_turns(row.get(name), "role", "content") for name in columns):
                contents = [turn.get("content") for name in columns for turn in row[name]]
                return cls(columns, parts=any(isinstance(content, list) for content in contents))
        if not prompts and _is_turns(row.get("conversations"), "from", "value"):
            return cls(("conversations",), role="from", content="value")
        raise RecipeError(_unreadable(row, prompts))

    def example(self, row: Row, number: int) -> Example:
        """A row as an example, whose `extra` holds the other columns."""
        extra = {key: value for key, value in row.items() if key not in self.columns}
        messages = [turn for name in self.columns for turn in self._turns(row.get(name), name, number)]
        return Example(tuple(messages), extra=extra)

    def row(self, example: Example) -> Row:
        """An example as a row of this form; of an added one, the last turn is the completion."""
        turns = example.messages
        first = next((i for i, turn in enumerate(turns) if _column(turn) == "completion"), len(turns) - 1)
        parts = (turns[:first], turns[first:]) if len(self.columns) == 2 else (turns,)
        write: Callable[[Sequence[Message]], Any] = self._text if self.plain else self._dicts
        return dict(example.extra) | {name: write(part) for name, part in zip(self.columns, parts, strict=True)}

    def _turns(self, value: Any, column: str, number: int) -> list[Turn]:
        if self.plain:
            _refuse_unless(isinstance(value, str), column, number, value)
            return [Turn("assistant" if column == "completion" else "user", value, column=column)]
        _refuse_unless(_is_turns(value, self.role, self.content), column, number, value)
        return [Turn(turn[self.role], _text_of(turn.get(self.content)), turn, column) for turn in value]

    def _dicts(self, turns: Sequence[Message]) -> list[Row]:
        return [self._dict(turn) for turn in turns]

    def _dict(self, turn: Message) -> Row:
        given = dict(turn.given) if isinstance(turn, Turn) else {}
        if given and (given[self.role], _text_of(given.get(self.content))) == (turn.role, turn.content):
            return given
        if isinstance(given.get(self.content), list) and any(part.get("type") != "text" for part in given["content"]):
            raise RecipeError(
                "A data defense edits the text of a turn that also holds images. Put the text into a turn of its own."
            )
        text = [{"type": "text", "text": turn.content}] if self.parts else turn.content
        further = {} if given else {k: v for k, v in turn.to_dict().items() if k not in ("role", "content")}
        return given | further | {self.role: turn.role, self.content: text}

    def _text(self, turns: Sequence[Message]) -> str:
        return "\n\n".join(turn.content for turn in turns)


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
        """The dataset after the data defenses; an added row's columns are those of its pool's row, else None.

        Raises:
            RecipeError: the form or a column has no place for added rows or parts of them, or a defense lost one.
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
        own = self._by_extra.get(id(example.extra))
        if own is not None and _more_than_text(own):
            raise RecipeError(
                "A data defense wrote a row anew and lost its tool calls or other keys. Let it change a turn by "
                "dataclasses.replace(turn, content=...), which keeps them."
            )
        return own is None

    def _refuse_lost_columns(self, added: Sequence[Row]) -> None:
        """Refuse added rows with tools or template settings, if the dataset has no column for them."""
        for name in ("tools", _SETTINGS):
            if name not in self._dataset.features and any(row.get(name) for row in added):
                raise RecipeError(
                    f"A row that a data defense adds has {name!r}, which its prompt is rendered with, and the dataset "
                    "has no such column. Add the column to the dataset, with None in your own rows, or take such rows "
                    "out of the pool."
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
            {**getattr(turn, "given", {}), "role": turn.role, "content": turn.content} for turn in example.messages
        ]
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return len(base.tokenizer.apply_chat_template(turns, tools=tools, tokenize=True, return_dict=False, **settings))


_SETTINGS = "chat_template_kwargs"


def _column(turn: Message) -> str:
    return turn.column if isinstance(turn, Turn) else ""


def _is_turns(value: Any, role: str, content: str) -> bool:
    """Whether a column's value is a list of turns with these keys; a turn of tool calls may lack its text."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and role in turn and (content in turn or "tool_calls" in turn) for turn in value)


def _text_of(content: Any) -> str:
    """A turn's text, which may be absent, or come in parts."""
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return "" if content is None else str(content)


def _more_than_text(example: Example) -> bool:
    """Whether a row is more than text of a system, a user and an assistant."""
    given = [turn.given for turn in example.messages if isinstance(turn, Turn)]
    keys = {key for turn in given for key, value in turn.items() if value is not None}
    own = any(turn.role not in ROLES for turn in example.messages) or keys - {"role", "content", "from", "value"}
    return bool(own or example.extra.get("tools") or example.extra.get(_SETTINGS))


def _refuse_kind(dataset: Any) -> None:
    """Refuse a dataset whose rows cannot all be read before training.

    Raises:
        RecipeError: which kind it is, and what to pass instead.
    """
    if dataset is None:
        raise RecipeError("A data defense edits the train_dataset, and the trainer got none; pass train_dataset=...")
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


def _unreadable(row: Row, prompts: bool) -> str:
    """Why a data defense cannot read such rows, and the conversion."""
    columns = ", ".join(repr(name) for name in row)
    if prompts:
        return (
            f"A data defense needs a 'prompt' column of turns or of text, and the columns are {columns}. Add one:\n"
            '    dataset = dataset.map(lambda row: {"prompt": [{"role": "user", "content": row["question"]}]})'
        )
    if _is_turns(row.get("conversations"), "role", "content"):
        return (
            "A data defense reads turns of role and content from the column 'messages', as trl does, and here they "
            'are in \'conversations\'. Rename it:\n    dataset = dataset.rename_column("conversations", "messages")'
        )
    texts = [name for name, value in row.items() if isinstance(value, str)]
    one = "text" if "text" in texts else texts[0] if len(row) == len(texts) == 1 else None
    if one is not None:
        what = f"a row is one text ({one!r}), which does not separate the question from the answer"
        question, answer = (f'row[{one!r}].split("### Answer:")[{i}]' for i in (0, 1))
    else:
        what = f"the columns are {columns}"
        first, second = texts[:2] if len(texts) > 1 else ("question", "answer")
        question, answer = f"row[{first!r}]", f"row[{second!r}]"
    return (
        f"A data defense edits and adds conversations, and {what}. Write each row as turns:\n"
        f'    dataset = dataset.map(lambda row: {{"messages": [{{"role": "user", "content": {question}}},\n'
        f'                                                   {{"role": "assistant", "content": {answer}}}]}})'
    )


def _refuse_unless(readable: bool, column: str, number: int, value: Any) -> None:
    if not readable:
        raise RecipeError(
            f"train_dataset: row {number} has {column}={str(value)[:60]!r}, which is of another form than the first "
            "row's. A data defense needs one form for all rows; write this row like the first, or take it out."
        )


_NO_PLACE = (
    "The rows are plain text ('prompt' and 'completion' strings), and a data defense adds {source} conversations, for "
    "which plain text has no chat template. Write your rows as turns:\n"
    '    dataset = dataset.map(lambda row: {{"prompt": [{{"role": "user", "content": row["prompt"]}}],\n'
    '                                       "completion": [{{"role": "assistant", "content": row["completion"]}}]}})'
)
