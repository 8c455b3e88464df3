"""`losses` compares one row of a script with the text and tokens that trl makes of it.

Each loss is a key of `lost_text.NOTES`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from staytrue.data.answer_positions import Rendering
from staytrue.data.chat_template import render
from staytrue.data.end_of_turn import end_of_turn, end_places
from staytrue.data.examples import Message
from staytrue.data.rendered_row import RenderedRow, leaves_out_a_turn, leaves_out_tools
from staytrue.data.row_checks import REASONING, is_blank
from staytrue.data.token_offsets import Tokens
from staytrue.data.whole_answers import missing_keys, squeezed
from staytrue.errors import DataError, ModelError, RecipeError, StaytrueError

_ENDING = 8  # tokens at the end of a row, of which one ends the last answer
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_READ = (*REASONING, "tool_calls", "tool_call_id", "name")  # keys of a turn that templates read; others are a user's


def turns_of(row: Mapping[str, Any]) -> list[Message] | None:
    """The turns of a row; None if it has none, or settings of its own for the template."""
    turns = _own_turns(row)
    if (
        not turns
        or any(not isinstance(turn, Mapping) or "role" not in turn for turn in turns)
        or row.get("chat_template_kwargs")
    ):
        return None
    return [
        Message.from_dict(
            {key: turn[key] for key in _READ if turn.get(key)}
            | {"role": turn["role"], "content": _text_of(turn.get("content"))}
        )
        for turn in turns
    ]


def completion_is_empty(row: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether a completion of text, to which trl has appended its end, is blank and learnt."""
    completion = row.get("completion")
    learnt = isinstance(completion, str) and row.get("input_ids")
    return bool(learnt) and is_blank(str(completion).removesuffix(tokenizer.eos_token or ""))


def losses(row: Mapping[str, Any], messages: list[Message], tokenizer: Any, where: str) -> Iterator[str]:
    """The parts that a row loses, and what is learnt beside answers: keys of `NOTES`.

    Raises:
        RecipeError: the chat template leaves out a part of the last answer, or writes a list for a turn's text.
        DataError: the chat template refuses the row in the way in which it is rendered here.
    """
    tools = _tools(row)
    whole = Rendering(tokenizer, messages, tools, where)
    _refuse_written_lists(row, tokenizer, tools, where)
    if any(message.role not in _ROLES for message in messages):
        yield "roles"
        return
    if leaves_out_tools(whole):
        yield "tools"
    if leaves_out_a_turn(whole):
        yield "unseen"
    if row.get("input_ids") and messages[-1].role != "assistant":
        yield "unanswered"
    if any(map(_is_empty, messages[_first_learnt(row) :])):
        yield "empty"
    for turn, message in enumerate(messages):
        if message.role != "assistant" or (_is_empty(message) and not message.more):
            continue
        try:
            yield from _losses_of_answer(row, whole, turn, tokenizer)
        except (DataError, ModelError):  # trl renders the row once, and here it is rendered in several ways
            continue
    if _asks(row, messages) and _learns_a_question(row, whole, tokenizer):
        yield "asked"


def looks_whole(row: Mapping[str, Any], messages: list[Message], tokenizer: Any) -> bool:
    """Whether the text of each turn is in the row's own, in order, and a token to learn ends the last answer.

    This is quick, and right for most rows: those that do not look whole are compared closely.
    """
    if any(message.role not in _ROLES or "tool_calls" in message.more for message in messages):
        return False
    if any(map(_is_empty, messages)) or _asks(row, messages):
        return False
    tools = _tools(row)
    try:
        text = squeezed(render(tokenizer, messages, "", tools))
    except StaytrueError:
        return True  # a close comparison would fail as well
    if any(_name(tool) not in text for tool in tools or ()):
        return False
    place = 0
    for message in messages:
        more = json.loads(message.more) if message.more else {}
        if any(squeezed(part) not in text for part in more.values() if isinstance(part, str)):
            return False
        part = "" if message.role == "tool" else squeezed(message.content)
        if (place := text.find(part, place)) < 0:
            return False
        place += len(part)
    ids, labels = (row.get(column) for column in ("input_ids", "labels"))
    if not ids or not labels:
        return True
    if messages[-1].role != "assistant":
        return False
    ends = {*end_of_turn(tokenizer), tokenizer.eos_token_id}
    ending = zip(ids[-_ENDING:], labels[-_ENDING:], strict=True)
    return any(token in ends and label != -100 for token, label in ending)


def _own_turns(row: Mapping[str, Any]) -> list[Any]:
    """The turns as the dataset has them."""
    columns = ("messages",) if "messages" in row else ("prompt", "completion")
    return [turn for column in columns for turn in row.get(column) or ()]


def _text_of(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    return "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))


def _tools(row: Mapping[str, Any]) -> Sequence[Any] | None:
    tools = row.get("tools")
    return json.loads(tools) if isinstance(tools, str) else tools


def _name(tool: Any) -> str:
    function = tool.get("function") or tool if isinstance(tool, Mapping) else {}
    return squeezed(str(function.get("name") or ""))


def _is_empty(message: Message) -> bool:
    """Whether a turn is an answer without text and without tool calls."""
    return message.role == "assistant" and is_blank(message.content) and "tool_calls" not in message.more


def _first_learnt(row: Mapping[str, Any]) -> int:
    """The number of a row's first turn that may be learnt: the first of its completion."""
    return 0 if "messages" in row else len(row.get("prompt") or ())


def _asks(row: Mapping[str, Any], messages: Sequence[Message]) -> bool:
    """Whether a completion holds a user or system turn."""
    later = () if "messages" in row else messages[_first_learnt(row) :]
    return any(message.role in ("user", "system", "developer") for message in later)


def _refuse_written_lists(row: Mapping[str, Any], tokenizer: Any, tools: Any, where: str) -> None:
    """Refuse a content in parts that the chat template writes as Python or JSON does.

    Raises:
        RecipeError: there is such a content.
    """
    turns = _own_turns(row)
    lists = [turn["content"] for turn in turns if isinstance(turn.get("content"), list)]
    if not lists:
        return
    try:
        text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    except Exception:  # a template's own code raises anything, and trl's rendering meets it too
        return
    written = next((part for part in lists if str(part) in text or json.dumps(part, ensure_ascii=False) in text), None)
    if written is not None:
        raise RecipeError(
            f"The chat template writes the content in parts of {where} as it stands, {str(written)[:60]!r}, and the "
            "model would learn that. Write each turn's content as one text, or use a chat template that reads parts."
        )


def _losses_of_answer(row: Mapping[str, Any], whole: Rendering, turn: int, tokenizer: Any) -> Iterator[str]:
    """The parts that an answer loses: keys of `NOTES`."""
    last = turn == len(whole.messages) - 1
    try:
        start, end, prompt = whole.span(turn)
        missing = missing_keys(whole, turn, whole.text[start:end], prompt)
    except ModelError:  # it is not rendered at all
        missing = ["content"]
    if not last:
        yield from ["answers"] if missing else []
        return
    if missing:
        raise RecipeError(
            f"The chat template leaves out a part of the last answer of {whole.where} ({' and '.join(missing)}), such "
            "as its reasoning, so it would not be learnt. Take that part out of the rows, use a chat template that "
            "renders it, or train with a recipe, which learns answers whole."
        )
    if not whole.text.startswith(prompt):
        yield "prompt"
    if _is_endless(row, RenderedRow(whole.text, ((start, end),)), tokenizer):
        yield "endless"


def _learns_a_question(row: Mapping[str, Any], whole: Rendering, tokenizer: Any) -> bool:
    """Whether the completion's user and system turns are among the tokens to learn, as far as that can be seen."""
    tokens = Tokens.of(tokenizer, whole.text)
    if tokens.ids != row.get("input_ids"):
        return False
    spans = [whole.content_spans[i] for i in range(_first_learnt(row), len(whole.content_spans))]
    roles = [message.role for message in whole.messages[_first_learnt(row) :]]
    asked = [span for span, role in zip(spans, roles, strict=False) if role not in ("assistant", "tool")]
    learnt = [place for place, label in zip(tokens.offsets, row["labels"], strict=True) if label != -100]
    return any(start <= a < b <= end for start, end in asked for a, b in learnt)


def _is_endless(row: Mapping[str, Any], rendered: RenderedRow, tokenizer: Any) -> bool:
    """Whether the last answer ends without a token to learn that ends generation; False of a row that was cut."""
    tokens, ids = Tokens.of(tokenizer, rendered.text), row.get("input_ids")
    if ids is not None and len(ids) < len(tokens.ids):
        return False
    place = end_places(tokenizer, rendered, tokens, final=True)[-1]
    if place is None or tokens.ids[place] not in {*end_of_turn(tokenizer), tokenizer.eos_token_id}:
        return True
    return bool(ids is not None and ids == tokens.ids and row["labels"][place] == -100)
