"""`Marked` puts marks in place of a conversation's texts, which show what a chat template renders.

A word in the text of a conversation says little about where it came from; a mark stands at one place only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from staytrue.data.examples import Message, as_object


@dataclass(frozen=True)
class Marked:
    """A conversation with marks.

    Attributes:
        messages: the turns; system, user and tool turns have marks, and so have answers with further keys.
        tools: the tools, each with a mark as its name.
        keys: the marks of every turn by key, and under -1 those of the tools.
    """

    messages: list[Message]
    tools: list[Any]
    keys: dict[int, dict[str, list[str]]]

    def missing(self, text: str, turn: int) -> list[str]:
        """The keys of a turn of which a text lacks a mark."""
        return [key for key, marks in self.keys[turn].items() if not all(mark in text for mark in marks)]


def mark(*place: int) -> str:
    """A text that stands for one place of a conversation, and is no part of another mark."""
    return f"qzx{'x'.join(map(str, place))}xzq"


def marked(messages: Sequence[Message], tools: Sequence[Any] | None, answers: bool = False) -> Marked:
    """Make a conversation with marks, also in its plain answers if asked for."""
    turns, keys = [], {}
    for turn, message in enumerate(messages):
        needs_marks = answers or message.more or message.role != "assistant"
        changed, keys[turn] = _marked_turn(turn, message) if needs_marks else (message, {})
        turns.append(changed)
    marked_tools = [_marked_tool(tool, mark(0, number, 0, 0)) for number, tool in enumerate(tools or ())]
    changed_tools = (i for i, tool in enumerate(tools or ()) if marked_tools[i] != tool)
    keys[-1] = {"tools": [mark(0, number, 0, 0) for number in changed_tools]}
    return Marked(turns, marked_tools, keys)


def content_spans(text: str, marked_text: str, contents: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of every turn's content in a text, which else is the text with marks; empty where it is another."""
    spans: list[tuple[int, int]] = []
    position, rest = 0, marked_text
    for turn, content in enumerate(contents):
        before, separator, rest = rest.partition(mark(turn))
        start = position + len(before)
        shown = content if text.startswith(content, start) else content.strip()
        if not separator or mark(turn) in rest or text[position:start] != before or not text.startswith(shown, start):
            return []
        position = start + len(shown)
        spans.append((start, position))
    return spans if text[position:] == rest else []


def unmarked(messages: Sequence[Message], tools: Sequence[Any] | None) -> Marked:
    """Make a conversation whose marks are the names of its tools, for a template that refuses others."""
    keys: dict[int, dict[str, list[str]]] = {}
    for turn, message in enumerate(messages):
        more = json.loads(message.more) if message.more else {}
        calls = [call["function"]["name"] for call in more.get("tool_calls", ())]
        keys[turn] = {"tool_calls": calls} if calls else {}
    named = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    keys[-1] = {"tools": [str(tool.get("name", "")) for tool in named]}
    return Marked(list(messages), list(tools or ()), keys)


def _marked_turn(turn: int, message: Message) -> tuple[Message, dict[str, list[str]]]:
    more = json.loads(message.more) if message.more else {}
    keys: dict[str, list[str]] = {}
    if message.content.strip():
        keys["content"] = [mark(turn)]
    for number, key in enumerate(more):
        if key == "tool_calls":
            keys[key] = [name for i, call in enumerate(more[key]) for name in _mark_call(call, turn, i)]
        elif message.role == "assistant" and isinstance(more[key], str):
            more[key] = mark(turn, number)
            keys[key] = [more[key]]
    text = json.dumps(more, ensure_ascii=False) if more else ""
    return replace(message, content="".join(keys.get("content", ())), more=text), keys


def _mark_call(call: dict[str, Any], turn: int, number: int) -> list[str]:
    """Mark the name and every argument of a tool call."""
    function, marks = call["function"], [mark(turn, number, 0)]
    function["name"] = marks[0]
    if function.get("arguments") is not None:
        arguments = as_object(function["arguments"])
        function["arguments"] = json.dumps(_marked_value(arguments, (turn, number), marks))
    return marks


def _marked_value(value: Any, place: tuple[int, ...], marks: list[str]) -> Any:
    """A value with a new mark for every leaf, which is appended to `marks`."""
    if isinstance(value, dict):
        return {key: _marked_value(leaf, place, marks) for key, leaf in value.items()}
    if isinstance(value, list):
        return [_marked_value(leaf, place, marks) for leaf in value]
    marks.append(mark(*place, len(marks)))
    return marks[-1]


def _marked_tool(tool: Any, name: str) -> Any:
    if not isinstance(tool, dict):
        return tool
    if isinstance(tool.get("function"), dict):
        return tool | {"function": _marked_tool(tool["function"], name)}
    return tool | {"name": name} if tool.get("name") else tool
