"""Placeholders in a conversation's texts, which show where a chat template renders each of them.

A word of the text may come from several turns; a placeholder comes from one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from staytrue.data.examples import Message, as_object


@dataclass(frozen=True)
class WithPlaceholders:
    """A conversation with placeholders in place of its texts.

    Attributes:
        messages: the turns; system, user and tool turns have placeholders, and so have answers with further keys.
        tools: the tools, each with a placeholder as its name.
        keys: the placeholders of every turn by key, and under -1 those of the tools.
    """

    messages: list[Message]
    tools: list[Any]
    keys: dict[int, dict[str, list[str]]]

    def missing(self, text: str, turn: int) -> list[str]:
        """The keys of a turn of which a text lacks a placeholder."""
        return [key for key, expected in self.keys[turn].items() if not all(one in text for one in expected)]


def placeholder(*place: int) -> str:
    """A text that stands for one place of a conversation, and is no part of another placeholder."""
    return f"qzx{'x'.join(map(str, place))}xzq"


def with_placeholders(
    messages: Sequence[Message], tools: Sequence[Any] | None, answers: bool = False
) -> WithPlaceholders:
    """Make a conversation with placeholders, also in its plain answers on request."""
    turns, keys = [], {}
    for turn, message in enumerate(messages):
        chosen = answers or message.more or message.role != "assistant"
        changed, keys[turn] = _replaced_turn(turn, message) if chosen else (message, {})
        turns.append(changed)
    renamed_tools = [_renamed_tool(tool, placeholder(0, number, 0, 0)) for number, tool in enumerate(tools or ())]
    changed_tools = (i for i, tool in enumerate(tools or ()) if renamed_tools[i] != tool)
    keys[-1] = {"tools": [placeholder(0, number, 0, 0) for number in changed_tools]}
    return WithPlaceholders(turns, renamed_tools, keys)


def content_spans(text: str, placeholder_text: str, contents: Sequence[str]) -> list[tuple[int, int]]:
    """Start and end of every turn's content in a text; empty if the text with placeholders differs elsewhere too."""
    spans: list[tuple[int, int]] = []
    position, rest = 0, placeholder_text
    for turn, content in enumerate(contents):
        mark = placeholder(turn)
        before, separator, rest = rest.partition(mark)
        start = position + len(before)
        shown = content if text.startswith(content, start) else content.strip()
        if not separator or mark in rest or text[position:start] != before or not text.startswith(shown, start):
            return []
        position = start + len(shown)
        spans.append((start, position))
    return spans if text[position:] == rest else []


def with_own_names(messages: Sequence[Message], tools: Sequence[Any] | None) -> WithPlaceholders:
    """Make a conversation whose placeholders are the names of its tools, for a template that refuses others."""
    keys: dict[int, dict[str, list[str]]] = {}
    for turn, message in enumerate(messages):
        more = json.loads(message.more) if message.more else {}
        calls = [call["function"]["name"] for call in more.get("tool_calls", ())]
        keys[turn] = {"tool_calls": calls} if calls else {}
    named = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    keys[-1] = {"tools": [str(tool.get("name", "")) for tool in named]}
    return WithPlaceholders(list(messages), list(tools or ()), keys)


def _replaced_turn(turn: int, message: Message) -> tuple[Message, dict[str, list[str]]]:
    more = json.loads(message.more) if message.more else {}
    keys: dict[str, list[str]] = {}
    if message.content.strip():
        keys["content"] = [placeholder(turn)]
    for number, key in enumerate(more):
        if key == "tool_calls":
            keys[key] = [name for i, call in enumerate(more[key]) for name in _replace_call(call, turn, i)]
        elif message.role == "assistant" and isinstance(more[key], str):
            more[key] = placeholder(turn, number)
            keys[key] = [more[key]]
    text = json.dumps(more, ensure_ascii=False) if more else ""
    return replace(message, content="".join(keys.get("content", ())), more=text), keys


def _replace_call(call: dict[str, Any], turn: int, number: int) -> list[str]:
    """Put placeholders in place of the name and every argument of a tool call; returns them."""
    function, placeholders = call["function"], [placeholder(turn, number, 0)]
    function["name"] = placeholders[0]
    if function.get("arguments") is not None:
        arguments = as_object(function["arguments"])
        function["arguments"] = json.dumps(_replaced_value(arguments, (turn, number), placeholders))
    return placeholders


def _replaced_value(value: Any, place: tuple[int, ...], placeholders: list[str]) -> Any:
    """A value with a new placeholder for every leaf, which is appended to `placeholders`."""
    if isinstance(value, dict):
        return {key: _replaced_value(leaf, place, placeholders) for key, leaf in value.items()}
    if isinstance(value, list):
        return [_replaced_value(leaf, place, placeholders) for leaf in value]
    placeholders.append(placeholder(*place, len(placeholders)))
    return placeholders[-1]


def _renamed_tool(tool: Any, name: str) -> Any:
    if not isinstance(tool, dict):
        return tool
    if isinstance(tool.get("function"), dict):
        return tool | {"function": _renamed_tool(tool["function"], name)}
    return tool | {"name": name} if tool.get("name") else tool
