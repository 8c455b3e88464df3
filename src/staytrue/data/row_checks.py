"""Every fault of one chat row, each with its JSON pointer and a remedy."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from staytrue.data.jsonl import pointer_to, shown
from staytrue.data.row_forms import ChatRow

ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking")  # keys of an assistant turn that chat templates render
PROMPT_SHAPE = '{"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}'
ROW_SHAPE = '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
_CALL = '{"type": "function", "function": {"name": "...", "arguments": "..."}}'
LONE_SURROGATE = "holds half of a surrogate pair, which no tokenizer can read; write the whole character"
_SECOND_PART = "may be a part of the prompt and would be lost; join the columns or remove one, or {way}"
_OTHER_SYSTEM = "differs from the row's system turn; remove one of them, or rename the column if it is no system prompt"
_WAYS = {  # by whether it is a system prompt: where no recipe names columns, and where one may
    False: (
        "write the row as `messages`",
        "name the prompt in the recipe: `columns: {prompt: ...}`",
    ),
    True: ("rename it to `system`", "name it in the recipe: `columns: {system: system_prompt}`"),
}
_FURTHER = {"assistant": (*REASONING, "tool_calls", "weight"), "tool": ("tool_call_id", "name")}


def row_faults(row: ChatRow, prompts_only: bool, *, named: bool = False) -> Iterator[tuple[str, str]]:
    """Every fault of one row: its JSON pointer, and a description with the remedy.

    Args:
        row: as a chat row where it has a known form.
        prompts_only: whether it need not end with an answer.
        named: whether a recipe may name the file's columns.
    """
    value = row.value
    yield from _other_faults(value)
    if row.unread:
        way = _SECOND_PART.format(way=_WAYS[row.unread == "system_prompt"][named])
        yield pointer_to(row.unread), _OTHER_SYSTEM if row.unread == "system" else way
    shape = PROMPT_SHAPE if prompts_only else ROW_SHAPE
    if "messages" not in value:
        yield from [] if row.unread else [_without_messages(value, shape)]
        return
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        yield "/messages", f"is {shown(messages)}, not a list of turns; a row is {shape}"
        return
    whole = True
    for i, turn in enumerate(messages):
        for at, what in _message_faults(turn):
            whole = False
            yield f"/messages/{i}{at}", what
    yield from _tools_faults(value.get("tools"))
    if all(isinstance(m, dict) and m.get("role") in ROLES for m in messages):
        yield from _order_faults(messages, prompts_only)
        if whole and messages[-1]["role"] == "assistant" and not any(_learnt(m) for m in messages):
            yield "/messages", "has answers of weight 0 only, so nothing would be learnt; take the row out"


def is_blank(text: str) -> bool:
    """Whether a text has blanks and invisible characters only, such as U+200B and U+FEFF."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)


def _other_faults(value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Columns that are kept beside the turns, and could not be written again."""
    for key, entry in value.items():
        if key != "messages" and has_lone_surrogate(json.dumps({key: entry}, ensure_ascii=False)):
            yield pointer_to(key), LONE_SURROGATE


def _without_messages(value: dict[str, Any], shape: str) -> tuple[str, str]:
    """Describe the fault of a row that has no known form."""
    if {"instruction", "history"} <= value.keys():
        return "/history", f"is {shown(value['history'])}, not a list of [question, answer]; write [] for none"
    for key, entry in value.items():
        if isinstance(entry, list) and entry and all(isinstance(row, dict) for row in entry):
            return pointer_to(
                key
            ), "is a list of objects; if they are rows, write that list alone, or one object a line"
    return "", f"no key 'messages' among {shown(list(value))}; a row is {shape}"


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
        yield (
            pointer_to(others[0]),
            "is a key that staytrue would not train on; a turn has role and content, take it out",
        )
    if role not in ROLES:
        yield "/role", f"is {shown(role)}; use system, user, assistant or tool"
    empty = message.get("content") in (None, "") and (role == "tool" or (role == "assistant" and calls))
    if not empty and (fault := _text_fault(message.get("content"), what="turn" if role == "system" else "row")):
        yield "/content", fault
    for key in (*REASONING, "tool_call_id", "name"):
        if key in further and message.get(key) is not None and (fault := _text_fault(message[key], what="key")):
            yield f"/{key}", fault
    if "weight" in further and message.get("weight") not in (None, 0, 1):
        yield "/weight", f"is {shown(message['weight'])}; write 1 for an answer to learn and 0 for context"
    if "tool_calls" in further and calls is not None and not _are_calls(calls):
        yield "/tool_calls", f"is {shown(calls)}; write a list of {_CALL}"


def _are_calls(calls: Any) -> bool:
    """Whether a value is a list of function calls in OpenAI's form."""
    if not isinstance(calls, list) or not calls or has_lone_surrogate(json.dumps(calls, ensure_ascii=False)):
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
    if has_lone_surrogate(text):
        return LONE_SURROGATE
    if is_blank(text):
        return f"is empty ({shown(text)}); write something or take the {what} out"
    return None


def has_lone_surrogate(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, so that it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


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
