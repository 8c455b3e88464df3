"""Tokenizes conversations, with labels on the answers only, for any chat template.

The position of an answer is found by rendering the conversation a second time with another answer: the part in which
the two renderings differ is the answer. This needs no template markers and no search for the answer's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.errors import DataError, ModelError

IGNORED = -100  # label of a token without a loss


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: `labels` are -100 outside the answers and their end-of-turn tokens."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool = False


@dataclass(frozen=True)
class EncodingReport:
    """Number of rows, of truncated ones, and of ones dropped because no answer token was left."""

    rows: int
    truncated: int
    dropped: int


def encode_all(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None
) -> tuple[list[Encoded], EncodingReport]:
    """Tokenize rows; rows without a scored token are dropped and counted.

    Raises:
        DataError: the template refuses a row, such as a system turn for a model without system turns.
        ModelError: a token spans the edge of an answer.
    """
    rows = [encode(tokenizer, example, max_length, f"row {i}") for i, example in enumerate(examples, start=1)]
    kept = [row for row in rows if any(label != IGNORED for label in row.labels[1:])]
    return kept, EncodingReport(len(rows), sum(row.truncated for row in rows), len(rows) - len(kept))


def encode(tokenizer: Any, example: Example, max_length: int | None = None, where: str = "a row") -> Encoded:
    """Tokenize one conversation; assistant turns and their end-of-turn tokens are scored, their headers are not."""
    text = _render(tokenizer, example.messages, where)
    ids, offsets = _tokens(tokenizer, text)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(example.messages):
        if message.role == "assistant":
            start, end = _span(tokenizer, example.messages, turn, text, where)
            for i in _scored(tokenizer, text, ids, offsets, start, end, where):
                labels[i] = ids[i]
    cut = max_length is not None and len(ids) > max_length
    return Encoded(ids[:max_length], labels[:max_length], example.source, cut)


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to the model's answer, with the assistant's header."""
    text = _render(tokenizer, messages, "the prompt", add_generation_prompt=True)
    return _tokens(tokenizer, text)[0]


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template renders a system turn; some templates refuse it, some drop it."""
    turns = (Message("system", "qzx"), Message("user", "a"), Message("assistant", "b"))
    try:
        return "qzx" in _render(tokenizer, turns, "a row")
    except DataError:
        return False


def _render(tokenizer: Any, messages: Sequence[Message], where: str, **options: Any) -> str:
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise ModelError("The tokenizer has no chat template; use the instruct version of the model.")
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except TemplateError as error:
        roles = ", ".join(m.role for m in messages)
        raise DataError(
            f"The model's chat template refuses {where} ({roles}): {error}. Change the turns, or use another model."
        ) from None


def _tokens(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        raise ModelError("The tokenizer has no character offsets; use the model's fast tokenizer.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str, where: str) -> tuple[int, int]:
    """Start and end of an answer in the rendered text: the part that changes with another answer.

    The answer begins where the generation prompt ends, if the rendering starts with that prompt. Text that the template
    adds in between, such as an empty block for reasoning, then belongs to the answer.
    """
    answer = messages[turn].content.strip()
    other = "".join(next(c for c in "xyz" if c not in (answer[0], answer[-1])) for _ in range(3))
    changed = [*messages]
    changed[turn] = replace(messages[turn], content=other)
    second = _render(tokenizer, changed, where)
    start = len(commonprefix([text, second]))
    end = len(text) - len(commonprefix([text[start:][::-1], second[start:][::-1]]))
    if start >= end:
        raise ModelError(f"The model's chat template does not render the answer of {where} (turn {turn + 1}).")
    prompt = _render(tokenizer, messages[:turn], where, add_generation_prompt=True)
    return (len(prompt) if len(prompt) <= start and text.startswith(prompt) else start), end


def _scored(
    tokenizer: Any, text: str, ids: list[int], offsets: list[tuple[int, int]], start: int, end: int, where: str
) -> list[int]:
    """The tokens of the span, and the end-of-turn token that follows it."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > start]
    for i in inside:
        a, b = offsets[i]
        if text[a:start].strip() or text[end:b].strip():
            raise ModelError(
                f"The tokenizer joins the answer of {where} with its surroundings in one token ({text[a:b]!r}), so "
                "prompt and answer cannot be separated; use a model whose template separates them."
            )
    after = inside[-1] + 1
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = after < len(ids) and ids[after] in special and not text[end : offsets[after][0]].strip()
    return [*inside, after] if ends else inside
