"""The forms of TRL's dataset rows: which columns hold a conversation, and how; read as examples and written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.errors import RecipeError

Row = dict[str, Any]


@dataclass(frozen=True)
class Turn(Message):
    """One turn of a user's row."""

    original: Mapping[str, Any] = field(default_factory=dict, compare=False)  # the turn as the user's dataset has it
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
        """An example as a row of this form. The last turn of an added example is the completion."""
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
        original = dict(turn.original) if isinstance(turn, Turn) else {}
        if original and (original[self.role], _text_of(original.get(self.content))) == (turn.role, turn.content):
            return original
        parts = original.get(self.content)
        if isinstance(parts, list) and any(part.get("type") != "text" for part in parts):
            raise RecipeError(
                "A data defense edits the text of a turn that also holds images. Put the text into a turn of its own."
            )
        text = [{"type": "text", "text": turn.content}] if self.parts else turn.content
        further = {} if original else {k: v for k, v in turn.to_dict().items() if k not in ("role", "content")}
        return original | further | {self.role: turn.role, self.content: text}

    def _text(self, turns: Sequence[Message]) -> str:
        return "\n\n".join(turn.content for turn in turns)


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


def _unreadable(row: Row, prompts: bool) -> str:
    """The reason why a data defense cannot read such rows, and the conversion."""
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
