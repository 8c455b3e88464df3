"""`Message` and `Example`: one row of a conversation data set; the reader and the writer of chat JSONL files.

`read_examples` returns rows or raises one `DataError` with line numbers. No other library reads the file before.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from staytrue.data import tables
from staytrue.data.jsonl import Fault, objects, refuse, shown
from staytrue.data.row_forms import ChatRow, chat_row
from staytrue.errors import DataError
from staytrue.utils.files import write_atomic

ROLES = ("system", "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking")  # keys of an assistant turn that chat templates render
_FURTHER = {"assistant": (*_REASONING, "tool_calls", "weight"), "tool": ("tool_call_id", "name")}


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

    def to_request(self) -> dict[str, Any]:
        """The turn for a chat server: as `to_dict`, without `weight` and without reasoning, which servers refuse."""
        return {key: value for key, value in self.to_dict().items() if key not in ("weight", *_REASONING)}

    def to_template(self) -> dict[str, Any]:
        """The turn for a chat template: as `to_dict`, without `weight`, with the arguments of tool calls as objects."""
        turn = self.to_dict()
        turn.pop("weight", None)
        for call in turn.get("tool_calls", ()):
            call["function"]["arguments"] = as_object(call["function"].get("arguments"))
        return turn


@dataclass(frozen=True)
class Example:
    """One conversation and where it came from.

    `source` names the kind of row ("task" for the user's own data, "interleaved" for safe rows mixed in, ...);
    a defense changes only the sources that it is meant for. `extra` holds the row's other columns.
    """

    messages: tuple[Message, ...]
    source: str = "task"
    extra: Mapping[str, Any] = field(default_factory=dict)

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
        prompts_only: rows may be `{"question": ...}` and need not end with an answer.
        split: of a data set with several; None is "train".
        columns: names of the data's own columns for "messages", "prompt", "completion" and "system".

    Raises:
        DataError: lists the first hundred faults, each with line, JSON pointer and remedy, and counts the rest.
    """
    path = Path(path)
    examples: list[Example] = []
    faults: list[Fault] = []
    table = tables.is_table(path)
    if split is not None and path.is_file():
        raise DataError(f"{path} is one file without splits; take `split:` out.")
    for line, value in tables.rows(path, split, faults) if table else objects(path, faults):
        if absent := [own for own in (columns or {}).values() if own not in value]:
            raise DataError(_NO_COLUMN.format(path=path, row=line, absent=absent[0], known=", ".join(map(repr, value))))
        bare = prompts_only and "question" in value and "messages" not in value
        row = ChatRow(value) if bare and not columns else chat_row(value, columns)
        if table and not bare and not {"messages", "history"} & row.value.keys():
            raise DataError(_NO_FORM.format(path=path, row=line, known=", ".join(map(repr, value))))
        own = list(_faults(row.value, prompts_only))
        faults += [Fault(line, row.original(pointer), what) for pointer, what in own]
        if not own:
            examples.append(_example(row.value, source))
    refuse(path, faults, "row" if table else "line")
    if not examples:
        way = "Give data with rows." if table else f"Each line is an object such as {_SHAPE}."
        raise DataError(f"{path} has no rows. {way}")
    return examples


def is_blank(text: str) -> bool:
    """Whether a text has blanks and invisible characters only, such as U+200B and U+FEFF."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write rows as a chat JSONL file, atomically."""
    rows = (dict(row.extra) | {"messages": [message.to_dict() for message in row.messages]} for row in examples)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


_NO_COLUMN = "{path}: row {row} has no column {absent!r}, which `columns:` names; it has {known}."
_NO_FORM = (
    "{path}: row {row} has the columns {known}, which are no known form of a conversation. Name them in the "
    "recipe: `columns: {{prompt: ..., completion: ...}}` or `columns: {{messages: ...}}`."
)
_SHAPE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


_CALL = '{"type": "function", "function": {"name": "...", "arguments": "..."}}'


def _example(value: dict[str, Any], source: str) -> Example:
    if "messages" not in value:
        extra = {k: v for k, v in value.items() if k != "question"}
        return Example((Message("user", value["question"]),), source, extra)
    messages = tuple(map(Message.from_dict, value["messages"]))
    return Example(messages, source, {k: v for k, v in value.items() if k != "messages"})


def _faults(value: dict[str, Any], prompts_only: bool) -> Iterator[tuple[str, str]]:
    """Every fault of one row: its JSON pointer, and a description with the remedy."""
    if "messages" not in value and prompts_only and "question" in value:
        if fault := _text_fault(value["question"]):
            yield "/question", fault
        return
    if "messages" not in value:
        yield _without_messages(value)
        return
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        yield "/messages", f"is {shown(messages)}, not a list of turns; a row is {_SHAPE}"
        return
    faults = [(f"/messages/{i}{at}", what) for i, turn in enumerate(messages) for at, what in _message_faults(turn)]
    yield from faults
    yield from _tools_faults(value.get("tools"))
    if all(isinstance(m, dict) and m.get("role") in ROLES for m in messages):
        yield from _order_faults(messages, prompts_only)
        if not faults and messages[-1]["role"] == "assistant" and not any(_learnt(m) for m in messages):
            yield "/messages", "has answers of weight 0 only, so nothing would be learnt; take the row out"


def _without_messages(value: dict[str, Any]) -> tuple[str, str]:
    """Describe the fault of a row that has no known form."""
    if {"instruction", "output", "history"} <= value.keys():
        return "/history", f"is {shown(value['history'])}, not a list of [question, answer]; write [] for none"
    for key, entry in value.items():
        if isinstance(entry, list) and entry and all(isinstance(row, dict) for row in entry):
            return f"/{key}", "is a list of objects; if they are rows, write that list alone, or one object a line"
    return "", f"no key 'messages' among {shown(list(value))}; a row is {_SHAPE}"


def _learnt(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("weight") != 0


def _message_faults(message: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(message, dict):
        yield "", f'is {shown(message)}; a turn is {{"role": "user", "content": "..."}}'
        return
    role, calls = message.get("role"), message.get("tool_calls")
    further = _FURTHER.get(role, ()) if isinstance(role, str) else ()
    others = [key for key, value in message.items() if key not in ("role", "content", *further) and value is not None]
    if others:
        yield f"/{others[0]}", "is a key that staytrue would not train on; a turn has role and content, take it out"
    if role not in ROLES:
        yield "/role", f"is {shown(role)}; use system, user, assistant or tool"
    empty = message.get("content") in (None, "") and (role == "tool" or (role == "assistant" and calls))
    if not empty and (fault := _text_fault(message.get("content"), what="turn" if role == "system" else "row")):
        yield "/content", fault
    for key in (*_REASONING, "tool_call_id", "name"):
        if key in further and message.get(key) is not None and (fault := _text_fault(message[key], what="key")):
            yield f"/{key}", fault
    if "weight" in further and message.get("weight") not in (None, 0, 1):
        yield "/weight", f"is {shown(message['weight'])}; write 1 for an answer to learn and 0 for context"
    if "tool_calls" in further and calls is not None and not _are_calls(calls):
        yield "/tool_calls", f"is {shown(calls)}; write a list of {_CALL}"


def _are_calls(calls: Any) -> bool:
    """Whether a value is a list of function calls in OpenAI's form."""
    if not isinstance(calls, list) or not calls or _surrogate(json.dumps(calls, ensure_ascii=False)):
        return False
    functions = [call.get("function") if isinstance(call, dict) else None for call in calls]
    return all(isinstance(f, dict) and isinstance(f.get("name"), str) and f["name"].strip() for f in functions)


def _tools_faults(tools: Any) -> Iterator[tuple[str, str]]:
    """A row's tools: OpenAI's list of functions, or the same as JSON text."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError:
            yield "/tools", f"is {shown(tools)}, which is not JSON; write a list of tools"
            return
    if tools and (not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)):
        yield "/tools", f"is {shown(tools)}; write a list of tools, each an object, or give the column another name"


def _text_fault(text: Any, what: str = "row") -> str | None:
    if not isinstance(text, str):
        return f"is {shown(text)}, not text; write a string"
    if _surrogate(text):
        return "holds half of a surrogate pair, which no tokenizer can read; write the whole character"
    if is_blank(text):
        return f"is empty ({shown(text)}); write something or take the {what} out"
    return None


def _surrogate(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def as_object(arguments: Any) -> Any:
    """The arguments of a tool call as an object; OpenAI's format has them as JSON text."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _order_faults(messages: list[dict[str, Any]], prompts_only: bool) -> Iterator[tuple[str, str]]:
    """One optional system turn, then user and assistant in turn; a training row ends with an answer.

    Results of tools follow an answer with tool calls, and an answer follows them.
    """
    first = 1 if messages[0]["role"] == "system" else 0
    allowed: tuple[str, ...] = ("user",)
    for i, message in enumerate(messages[first:], start=first):
        role = message["role"]
        if role not in allowed:
            yield (
                f"/messages/{i}/role",
                f"is {shown(role)} where {' or '.join(allowed)} belongs; turns alternate after an optional system turn",
            )
            return
        calls = role == "assistant" and message.get("tool_calls")
        after = {"user": ("assistant",), "assistant": ("tool",) if calls else ("user",), "tool": ("assistant", "tool")}
        allowed = after[role]
    if len(messages) == first:
        yield "/messages", "has a system turn only; add a user turn"
    elif messages[-1]["role"] != "assistant" and not prompts_only:
        yield (
            f"/messages/{len(messages) - 1}",
            "is the last turn, and the row ends without an answer; add an assistant turn",
        )
