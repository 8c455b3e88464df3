"""`Message` and `Example`: one row of a conversation data set; the reader and the writer of chat JSONL files.

`read_examples` returns rows or raises one `DataError` with line numbers. No other library reads the file before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from staytrue.data import tables
from staytrue.data.jsonl import Faults, objects, refuse, shown
from staytrue.data.row_checks import ROW_SHAPE, row_faults
from staytrue.data.row_forms import chat_row
from staytrue.errors import DataError
from staytrue.utils.files import write_atomic


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool" (the result of a tool call).
        content: the text; "" for an answer of tool calls alone.
        weight: 0 for an answer that is context and not learnt, as in OpenAI's format; else 1.
        more: the turn's further keys as a JSON object, such as `reasoning_content` and `tool_calls`; "" for none.
    """

    role: str
    content: str
    weight: int = field(default=1, kw_only=True)
    more: str = field(default="", kw_only=True)

    @classmethod
    def from_dict(cls, turn: Mapping[str, Any]) -> Message:
        """The turn of a chat row, as `to_dict` writes it; keys that are null are left out."""
        more = {k: v for k, v in turn.items() if k not in ("role", "content", "weight") and v is not None}
        text = json.dumps(more, ensure_ascii=False) if more else ""
        weight = 1 if turn.get("weight") is None else int(turn["weight"])
        return cls(turn["role"], turn.get("content") or "", weight=weight, more=text)

    def to_dict(self) -> dict[str, Any]:
        """The turn as a chat row has it."""
        more = json.loads(self.more) if self.more else {}
        return {"role": self.role, "content": self.content, **more} | ({} if self.weight else {"weight": 0})

    def to_template(self, *, arguments_as_text: bool = False) -> dict[str, Any]:
        """The turn for a chat template: as `to_dict`, without `weight`; arguments of tool calls as objects or JSON."""
        turn = self.to_dict()
        turn.pop("weight", None)
        for call in turn.get("tool_calls", ()):
            arguments = call["function"].get("arguments")
            as_text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            call["function"]["arguments"] = as_text if arguments_as_text else as_object(arguments)
        return turn


@dataclass(frozen=True)
class Example:
    """One conversation and where it came from.

    Attributes:
        messages: its turns; the last one is an assistant's, except in prompts.
        source: the kind of row: "task" for the user's own data, "interleaved" for safe rows mixed in, and others. A
            defense changes only the sources that it is meant for.
        extra: the row's other columns.
        place: names it in messages, such as "line 8 of rows.jsonl"; "" for a row of no file.
    """

    messages: tuple[Message, ...]
    source: str = "task"
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", kw_only=True, compare=False)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns before the last answer."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def question(self) -> str:
        """The last user turn."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")

    @property
    def tools(self) -> list[Any]:
        """The tools that the model may call, from the column `tools`: a list, or the same as JSON text."""
        tools = self.extra.get("tools") or []
        return list(json.loads(tools)) if isinstance(tools, str) else list(tools)

    @property
    def identity(self) -> str:
        """What a model reads and learns of the row, as text: its turns, weights of 0, and tools."""
        turns = [[m.role, m.content, *filter(None, [m.more]), *([] if m.weight else [0])] for m in self.messages]
        return json.dumps([*turns, {"tools": self.tools}] if self.tools else turns)

    @property
    def answer(self) -> str:
        """The last answer ("" when the row is a bare prompt)."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else ""


def read_examples(
    path: Path | str,
    *,
    source: str = "task",
    prompts_only: bool = False,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Example]:
    """Read the rows of a chat JSONL file: `{"messages": [{"role": ..., "content": ...}, ...]}`, other columns kept.

    Rows of other formats (`row_forms`) and from other files (`tables`) are converted.

    Args:
        path: the file; strict UTF-8, one JSON object a line. Or another file, a saved data set, or a hub name.
        source: the `source` of the rows.
        prompts_only: rows need not end with an answer, and may be `{"prompt": ...}` or `{"question": ...}`. An empty
            last answer is left out.
        split: of a data set with several; None is "train".
        columns: names of the data's own columns for "messages", "prompt", "completion" and "system"; None for a file
            whose columns no recipe can name.

    Raises:
        DataError: lists up to a hundred different faults, each with lines, JSON pointer and remedy, and counts the
            rest, up to ten thousand.
    """
    path = Path(path)
    examples: list[Example] = []
    faults = Faults()
    table = tables.is_table(path)
    unit = "row" if table else "line"
    if split is not None and path.is_file():
        raise DataError(f"{path} is one file without splits; take `split:` out.")
    for line, value in tables.rows(path, split, faults) if table else objects(path, faults):
        if absent := [column for column in (columns or {}).values() if column not in value]:
            raise DataError(_NO_COLUMN.format(path=path, row=line, absent=absent[0], known=shown(list(value))[1:-1]))
        row = chat_row(value, columns, prompts_only=prompts_only)
        if table and not {"messages", "history"} & row.value.keys():
            way = _NAMED if columns is not None else _RENAMED_PROMPT if prompts_only else _RENAMED
            raise DataError(_NO_FORM.format(path=path, row=line, known=shown(list(value))[1:-1], way=way))
        for pointer, what in row_faults(row, prompts_only, named=columns is not None):
            faults.append(line, row.original(pointer), what)
            if faults.full:
                break
        if not faults.count:
            examples.append(_example(row.value, source, f"{unit} {line} of {path}"))
    refuse(path, faults, unit)
    if not examples:
        way = "Give data with rows." if table else f"Each line is an object such as {ROW_SHAPE}."
        raise DataError(f"{path} has no rows. {way}")
    return examples


def hash_of_rows(rows: Iterable[Example]) -> str:
    """SHA-256 of rows, for data that do not come from one file."""
    whole = hashlib.sha256()
    for row in rows:
        turns = [(turn.role, turn.content) for turn in row.messages]
        whole.update(json.dumps([turns, dict(row.extra)], sort_keys=True).encode() + b"\n")
    return whole.hexdigest()


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write rows as a chat JSONL file, atomically."""
    rows = (dict(row.extra) | {"messages": [message.to_dict() for message in row.messages]} for row in examples)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


_NO_COLUMN = "{path}: row {row} has no column {absent!r}, which `columns:` names; it has {known}."
_NO_FORM = "{path}: row {row} has the columns {known}, which are no known form of a conversation. {way}"
_NAMED = "Name them in the recipe: `columns: {prompt: ..., completion: ...}` or `columns: {messages: ...}`."
_RENAMED = "Rename them to `prompt` and `completion`, or to `messages`."
_RENAMED_PROMPT = "Rename the prompt's column to `prompt`, or write `messages`."


def _example(value: dict[str, Any], source: str, place: str) -> Example:
    messages = tuple(map(Message.from_dict, value["messages"]))
    return Example(messages, source, {k: v for k, v in value.items() if k != "messages"}, place=place)


def as_object(arguments: Any) -> Any:
    """The arguments of a tool call as an object; OpenAI's format has them as JSON text."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments
