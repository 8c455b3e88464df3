"""Converts rows of other fine-tuning formats into chat rows: prompt and completion, Alpaca, ShareGPT, named columns.

Where a prompt is enough, its column alone is: `question`, `prompt`, or Alpaca's `instruction`. A row that may hold a
second part of the prompt in another column is returned as it is, or with that column's name in `unread`.

A conversion loses nothing: columns that it does not read stay beside `messages`, and a row of no known form is returned
as it is, so that the reader refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_PARTS = ("context", "instruction", "input")  # columns that may hold a part of the prompt
_TURNS = ("/messages/", "/conversations/", "/prompt/")  # pointers to turns in one column
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class ChatRow:
    """A row with `messages`, and the JSON pointer of each message in the row that it was converted from.

    Attributes:
        value: the row; without `messages` where it has no known form.
        pointers: of the messages in the original row.
        unread: a column that may hold another part of the prompt and is not read; "" for none.
    """

    value: dict[str, Any]
    pointers: tuple[str, ...] = ()
    unread: str = ""

    def original(self, pointer: str) -> str:
        """The pointer of a fault in the original row: `/messages/1/content` may be `/completion` there."""
        _, _, rest = pointer.partition("/messages/")
        number = rest.partition("/")[0]
        return self.pointers[int(number)] if number.isdecimal() and int(number) < len(self.pointers) else pointer


def chat_row(
    row: Mapping[str, Any], columns: Mapping[str, str] | None = None, *, prompts_only: bool = False
) -> ChatRow:
    """A row as a chat row.

    Args:
        row: column names and values.
        columns: names of the row's own columns for "messages", "prompt", "completion" and "system".
        prompts_only: a row need not have an answer, and an empty last one is left out; of "question" and "answer" only
            the question is a turn.

    >>> chat_row({"prompt": "Hi?", "completion": "Hello.", "id": 7}).value
    {'id': 7, 'messages': [{'role': 'user', 'content': 'Hi?'}, {'role': 'assistant', 'content': 'Hello.'}]}
    >>> chat_row({"question": "1 + 1?", "answer": "2"}, prompts_only=True).value
    {'answer': '2', 'messages': [{'role': 'user', 'content': '1 + 1?'}]}
    >>> chat_row({"instruction": "Hi?", "output": ""}, prompts_only=True).value
    {'messages': [{'role': 'user', 'content': 'Hi?'}]}
    """
    converted = _converted(row, columns, prompts_only)
    converted = replace(converted, unread=_unread(converted, {*(columns or ())}))
    messages = converted.value.get("messages")
    if not (prompts_only and isinstance(messages, list) and messages and _is_empty_answer(messages[-1])):
        return converted
    return replace(converted, value={**converted.value, "messages": messages[:-1]})


def _is_empty_answer(turn: Any) -> bool:
    """Whether a turn is an answer of nothing: no text, and no calls or reasoning either."""
    if not isinstance(turn, dict) or turn.get("role") != "assistant":
        return False
    text = turn.get("content")
    others = [key for key, value in turn.items() if key not in ("role", "content", "weight") and value is not None]
    return not others and (text in (None, []) or (isinstance(text, str) and not text.strip()))


def _converted(row: Mapping[str, Any], columns: Mapping[str, str] | None, prompts_only: bool) -> ChatRow:
    named = {column: part for part, column in (columns or {}).items()}
    row = {named.get(key, key): value for key, value in row.items() if key in named or key not in (columns or {})}
    if {"prompt", "completion"} & set(named.values()):
        return _named_parts(row, prompts_only)
    if prompts_only and "question" in row and "messages" not in row:
        return _prompt(row, "question")
    if isinstance(row.get("messages"), list):
        converted = _has_from(row["messages"]) or (row.get("system") if "system" in named.values() else _system(row))
        return _share_gpt(row, "messages") if converted else ChatRow(row)
    if isinstance(row.get("conversations"), list):
        return _share_gpt(row, "conversations")
    if "prompt" in row and "completion" in row:
        return _from_parts(row, [("prompt", "user"), ("completion", "assistant")])
    if "instruction" in row and "output" in row and not row.get("context"):
        return _alpaca(row)
    if "messages" in row or _second_part(row):
        return ChatRow(row)
    if prompts_only:
        return _prompt(row, "prompt" if "prompt" in row else "instruction")
    if "question" in row and "answer" in row:
        return _from_parts(row, [("question", "user"), ("answer", "assistant")])
    return ChatRow(row)


def _unread(converted: ChatRow, named: set[str]) -> str:
    """A column that may hold another part of the prompt, and whose text is in no turn; "" for none.

    Turns in one column are a whole prompt, and so is a column that the user named. An `instruction` beside a
    `question` is another form of it.

    Args:
        converted: the row.
        named: the parts whose columns the user named.
    """
    row, places = converted.value, converted.pointers
    if "messages" not in row:
        return _second_part(row)
    turns = row["messages"] if isinstance(row["messages"], list) else []
    texts = [_words(turn.get("content")) for turn in turns if isinstance(turn, dict)]
    whole = not places or any(place.startswith(_TURNS) for place in places) or {"prompt", "completion"} & named
    for column in ("system", "system_prompt") if whole else ("system", "system_prompt", *_PARTS):
        text = "" if column == "instruction" and "/question" in places else row.get(column)
        if isinstance(text, str) and text.strip() and not any(_words(text) in turn for turn in texts):
            return column
    return ""


def _words(text: Any) -> str:
    return " ".join(str(text).split())


def _second_part(row: Mapping[str, Any]) -> str:
    """The column for which a row without `messages` has no known form; "" for none."""
    if row.get("context") and not {"question", "prompt", "instruction"}.isdisjoint(row):
        return "context"
    return "instruction" if "prompt" in row and row.get("instruction") else ""


def _named_parts(row: dict[str, Any], prompts_only: bool) -> ChatRow:
    """A row whose prompt or completion the user named; they count, whatever else the row has."""
    prompt = next((name for name in ("prompt", "question") if name in row), None)
    if prompt is None or not ("completion" in row or prompts_only):
        return ChatRow({key: value for key, value in row.items() if key != "messages"})
    answer = [("completion", "assistant")] if "completion" in row else []
    return _from_parts(row, [(prompt, "user"), *answer])


def _prompt(row: dict[str, Any], column: str) -> ChatRow:
    """A row with the column of a prompt; the others are kept."""
    if column not in row or _second_part(row):
        return ChatRow(row)
    return _alpaca(row) if column == "instruction" else _from_parts(row, [(column, "user")])


def _from_parts(row: dict[str, Any], parts: list[tuple[str, str]]) -> ChatRow:
    """Columns that hold a text, or turns (trl's conversational prompt and completion)."""
    parts = [("system", "system"), *parts] if row.get("system") else parts
    messages: list[Any] = []
    pointers: list[str] = []
    for column, role in parts:
        value = row[column]
        listed = isinstance(value, list) and bool(value)  # the reader refuses an empty list as no text
        turns = value if listed else [{"role": role, "content": value}]
        messages += turns
        pointers += [f"/{column}/{i}" if listed else f"/{column}" for i in range(len(turns))]
    return _replaced(row, {"system", *(column for column, _ in parts)}, messages, pointers)


def _alpaca(row: dict[str, Any]) -> ChatRow:
    """Alpaca's instruction, input and output, with LLaMA-Factory's system and history."""
    request, pointer = row["instruction"], "/instruction"
    if row.get("input") not in (None, "") and (request == "" or not isinstance(row["input"], str)):
        request, pointer = row["input"], "/input"  # the reader refuses a value that is not text
    elif row.get("input") and isinstance(request, str):
        request = f"{request}\n{row['input']}"
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    pointers = ["/system"] if messages else []
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        return ChatRow(row)
    for i, (question, answer) in enumerate(history):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        pointers += [f"/history/{i}/0", f"/history/{i}/1"]
    messages.append({"role": "user", "content": request})
    if "output" in row:
        messages.append({"role": "assistant", "content": row["output"]})
    return _replaced(
        row, {"system", "history", "instruction", "input", "output"}, messages, [*pointers, pointer, "/output"]
    )


def _share_gpt(row: dict[str, Any], column: str) -> ChatRow:
    """ShareGPT's turns of `from` and `value`; other roles and keys are kept, and the reader refuses them."""
    turns: list[Any] = []
    for turn in row[column]:
        if isinstance(turn, dict) and "from" in turn and "value" in turn:
            others = {key: value for key, value in turn.items() if key not in ("from", "value")}
            role = turn["from"]
            named = _ROLES.get(role, role) if isinstance(role, str) else role
            turns.append({"role": named, "content": turn["value"], **others})
        else:
            turns.append(turn)
    pointers = [f"/{column}/{i}" for i in range(len(turns))]
    if turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        is_same = _words(row.get("system")) == _words(turns[0].get("content"))
        return _replaced(row, {"system", column} if is_same else {column}, turns, pointers)
    if row.get("system"):
        turns, pointers = [{"role": "system", "content": row["system"]}, *turns], ["/system", *pointers]
    return _replaced(row, {"system", column}, turns, pointers)


def _system(row: Mapping[str, Any]) -> bool:
    """Whether a row has a text in a column `system`."""
    return isinstance(row.get("system"), str) and bool(row["system"].strip())


def _has_from(turns: list[Any]) -> bool:
    return bool(turns) and all(isinstance(turn, dict) and "from" in turn and "value" in turn for turn in turns)


def _replaced(row: dict[str, Any], read: set[str], messages: list[Any], pointers: list[str]) -> ChatRow:
    others = {key: value for key, value in row.items() if key not in read}
    return ChatRow({**others, "messages": messages}, tuple(pointers))
