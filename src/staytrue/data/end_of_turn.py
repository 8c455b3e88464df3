"""The special tokens that end an answer by a chat template, and their places in a row; `tokenize` labels them."""

from __future__ import annotations

from collections.abc import Container
from itertools import takewhile
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.data.rendered_row import RenderedRow, render_row
from staytrue.data.special_tokens import added_tokens, cached_for_tokenizer
from staytrue.data.token_offsets import Tokens
from staytrue.errors import StaytrueError

TURNS = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
_CALL = (
    Message("user", "a"),
    Message(
        "assistant",
        "",
        more='{"tool_calls": [{"id": "callcall1", "type": "function", "function": '
        '{"name": "look", "arguments": "{\\"at\\": \\"b\\"}"}}]}',
    ),
    Message("tool", "c", more='{"tool_call_id": "callcall1", "name": "look"}'),
    Message("assistant", "d"),
)
_THOUGHTS = tuple(
    (Message("user", "a"), Message("assistant", "b", more=f'{{"{key}": "c"}}'))
    for key in ("reasoning_content", "thinking")
)


@cached_for_tokenizer
def end_of_turn(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer by the chat template, which training teaches and generation stops at.

    It is the first special token after an answer; blanks before it do not count. Some templates write another one after
    the last answer, or after a tool call. Where the template writes none after the last answer, it is the special token
    with which the next turn begins. A token that the template also writes inside of an answer, such as one that ends
    its reasoning, ends none. Empty if there is none, or no template.
    """
    ends: set[int] = set()
    inside: set[int] = set()
    for messages in (TURNS[:2], TURNS, _CALL[:2], _CALL, *_THOUGHTS):
        answer_ends, answer_tokens = _probe(tokenizer, messages)
        ends |= {end for end in answer_ends if end is not None}
        inside |= answer_tokens
    return frozenset(ends - inside or ends)


def next_turn(tokenizer: Any, *, called: bool) -> list[int]:
    """The token with which a turn after an answer, or after a tool call, begins; empty if it is no special one."""
    for messages in (_CALL[:3], TURNS[:3]) if called else (TURNS[:3],):
        for end in _probe(tokenizer, messages)[0][:1]:
            if end is not None:
                return [end]
    return []


def end_places(tokenizer: Any, row: RenderedRow, tokens: Tokens, final: bool) -> list[int | None]:
    """The place of the token that ends each answer; None where there is none. `final`: the last turn is an answer.

    Text between an answer and its end, such as a closing tag, is known from the last answer.
    """
    special = added_tokens(tokenizer)
    if not row.answers:
        return []
    last_end = row.answers[-1][1]
    closing = _closing(tokens, special, last_end) if final else []
    after_last = _end_place(tokens, special, tokens.outside(last_end), last=True) if final else None
    closing_text = "" if after_last is None else row.text[last_end : tokens.offsets[after_last][1]]
    places = []
    for number, (_, end) in enumerate(row.answers, start=1):
        last = final and number == len(row.answers)
        place = _end_place(tokens, special, tokens.outside(end), last)
        if place is None and closing_text and row.text.startswith(closing_text, end):
            place = next((i for i, (_, b) in enumerate(tokens.offsets) if b == end + len(closing_text)), None)
        elif place is not None and not last and closing and tokens.ids[place : place + len(closing)] == closing:
            place += len(closing) - 1
        places.append(place)
    return places


def _probe(tokenizer: Any, messages: tuple[Message, ...]) -> tuple[list[int | None], set[int]]:
    """The token that ends each answer of a conversation, and the tokens inside of its answers."""
    try:
        row = render_row(tokenizer, Example(messages), "a conversation")
        tokens = Tokens.of(tokenizer, row.text)
    except StaytrueError:
        return [], set()
    places = end_places(tokenizer, row, tokens, final=messages[-1].role == "assistant")
    inside = {
        token
        for token, (a, b) in zip(tokens.ids, tokens.offsets, strict=True)
        if any(a >= start and b <= end for start, end in row.answers)
    }
    return [None if place is None else tokens.ids[place] for place in places], inside


def _end_place(tokens: Tokens, special: Container[int], end: int, last: bool) -> int | None:
    """The place of the special token that ends an answer, whose end in the text is given; None if there is none.

    Blanks may stand between, and after the last answer any text that the template closes it with. Where several special
    tokens close the last answer without a blank between them, it is the last of these.
    """
    after = [i for i, (a, _) in enumerate(tokens.offsets) if a >= end]
    for i in after:
        if not tokens.is_blank(i) and (tokens.ids[i] in special or not last):
            closing = takewhile(lambda j: tokens.ids[j] in special and not tokens.is_blank(j), after[i - after[0] :])
            places = [*closing]
            return (places[-1] if last else places[0]) if places else None
    return None


def _closing(tokens: Tokens, special: Container[int], end: int) -> list[int]:
    """The tokens from the first special one after the last answer to the last one; some templates write several."""
    first = _end_place(tokens, special, end, last=False)
    last = _end_place(tokens, special, end, last=True)
    return [] if first is None or last is None else tokens.ids[first : last + 1]
