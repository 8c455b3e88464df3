"""Refuses answers whose text holds a special token of the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from staytrue.data.end_of_turn import TURNS, end_of_turn
from staytrue.data.examples import Example
from staytrue.data.rendered_row import render_row
from staytrue.data.special_tokens import cached_for_tokenizer, special_tokens, template_tokens
from staytrue.data.token_offsets import Tokens
from staytrue.errors import DataError


def refuse_special_tokens(tokenizer: Any, example: Example, where: str) -> None:
    """Refuse an answer whose text holds a token of the template's own, which would be learnt in its middle.

    Raises:
        DataError: the sentence names the row, the turn and the token.
    """
    found = special_token_in(tokenizer, example)
    if found is not None:
        turn, token = found
        raise DataError(
            f"The answer of {where} (turn {turn + 1}) holds {token!r}, which the tokenizer reads as a token of its "
            "own, so the model would learn it in the middle of an answer. Write it otherwise, or take the row out."
        )


def special_token_in(tokenizer: Any, example: Example) -> tuple[int, str] | None:
    """The first turn, from 0, whose answer holds a special token of the template as text, and the token."""
    special = special_tokens(tokenizer)
    for turn, message in enumerate(example.messages):
        learnt = message.role == "assistant" and message.weight
        texts = [*_texts(message.to_template())] if learnt else []
        if not any(token in text for token in special for text in texts):
            continue  # cheap: the special tokens of the template are found by rendering, and are some of all
        for token in _template_special_tokens(tokenizer):
            if any(token in text for text in texts):
                return turn, token
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every text of a turn: content, reasoning, names and arguments of tool calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


@cached_for_tokenizer
def _template_special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens that the chat template names or writes outside of answers, and the end and padding tokens."""
    row = render_row(tokenizer, Example(TURNS), "a conversation")
    tokens = Tokens.of(tokenizer, row.text)
    outside = {
        token
        for token, (a, b) in zip(tokens.ids, tokens.offsets, strict=True)
        if not any(a < end and b > start for start, end in row.answers)
    }
    named = {tokenizer.eos_token_id, tokenizer.pad_token_id, *end_of_turn(tokenizer)}
    texts = {str(tokenizer.convert_ids_to_tokens(i)) for i in outside | named if i is not None}
    return tuple(sorted(texts & special_tokens(tokenizer) | template_tokens(tokenizer)))
