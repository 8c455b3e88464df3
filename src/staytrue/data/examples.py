"""`Message` and `Example`: one row of a conversation data set; the reader and the writer of chat JSONL files.

`read_examples` returns rows or raises one `DataError` with line numbers. No other library reads the file before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import Fault, objects, refuse, shown
from staytrue.errors import DataError
from staytrue.utils.files import write_atomic

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


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
    def answer(self) -> str:
        """The last answer ("" when the row is a bare prompt)."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else ""


def read_examples(path: Path | str, *, source: str = "task", prompts_only: bool = False) -> list[Example]:
    """Read the rows of a chat JSONL file: `{"messages": [{"role": ..., "content": ...}, ...]}`, other columns kept.

    Args:
        path: the file; strict UTF-8, one JSON object a line.
        source: the `source` of the rows.
        prompts_only: rows may be `{"question": ...}` and need not end with an answer.

    Raises:
        DataError: lists the first hundred faults, each with line, JSON pointer and remedy, and counts the rest.
    """
    path = Path(path)
    examples: list[Example] = []
    faults: list[Fault] = []
    for line, value in objects(path, faults):
        own = list(_faults(value, prompts_only))
        faults += [Fault(line, pointer, what) for pointer, what in own]
        if not own:
            examples.append(_example(value, source))
    refuse(path, faults)
    if not examples:
        raise DataError(f"{path} has no rows. Each line is an object such as {_SHAPE}.")
    return examples


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write rows as a chat JSONL file, atomically."""
    rows = (
        dict(row.extra) | {"messages": [{"role": m.role, "content": m.content} for m in row.messages]}
        for row in examples
    )
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


_SHAPE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'


def _example(value: dict[str, Any], source: str) -> Example:
    if "messages" not in value:
        extra = {k: v for k, v in value.items() if k != "question"}
        return Example((Message("user", value["question"]),), source, extra)
    messages = tuple(Message(m["role"], m["content"]) for m in value["messages"])
    return Example(messages, source, {k: v for k, v in value.items() if k != "messages"})


def _faults(value: dict[str, Any], prompts_only: bool) -> Iterator[tuple[str, str]]:
    """Every fault of one row: its JSON pointer, and a description with the remedy."""
    if "messages" not in value and prompts_only and "question" in value:
        if fault := _text_fault(value["question"]):
            yield "/question", fault
        return
    if "messages" not in value:
        yield "", f"no key 'messages' among {shown(list(value))}; a row is {_SHAPE}"
        return
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        yield "/messages", f"is {shown(messages)}, not a list of turns; a row is {_SHAPE}"
        return
    roles = [m.get("role", "") if isinstance(m, dict) else "" for m in messages]
    for i, message in enumerate(messages):
        yield from ((f"/messages/{i}{pointer}", what) for pointer, what in _message_faults(message))
    if all(role in ROLES for role in roles):
        yield from _order_faults(roles, prompts_only)


def _message_faults(message: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(message, dict):
        yield "", f'is {shown(message)}; a turn is {{"role": "user", "content": "..."}}'
        return
    others = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if others:
        yield f"/{others[0]}", "is a key that staytrue would not train on; a turn has role and content, take it out"
    if message.get("role") not in ROLES:
        yield "/role", f"is {shown(message.get('role'))}; use system, user or assistant"
    if fault := _text_fault(message.get("content")):
        yield "/content", fault


def _text_fault(text: Any) -> str | None:
    if not isinstance(text, str):
        return f"is {shown(text)}, not text; write a string"
    if not text.strip():
        return f"is empty ({shown(text)}); write something or take the row out"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "holds half of a surrogate pair, which no tokenizer can read; write the whole character"
    return None


def _order_faults(roles: list[str], prompts_only: bool) -> Iterator[tuple[str, str]]:
    """One optional system turn, then user and assistant in turn; a training row ends with an answer."""
    turns = roles[1:] if roles[0] == "system" else roles
    first = len(roles) - len(turns)
    for i, role in enumerate(turns):
        expected = "assistant" if i % 2 else "user"
        if role != expected:
            yield (
                f"/messages/{first + i}/role",
                f"is {shown(role)} where {expected} belongs; turns alternate after an optional system turn",
            )
            return
    if not turns:
        yield "/messages", "has a system turn only; add a user turn"
    elif turns[-1] != "assistant" and not prompts_only:
        yield (
            f"/messages/{len(roles) - 1}",
            "is the last turn, and the row ends without an answer; add an assistant turn",
        )
