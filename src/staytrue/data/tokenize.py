"""Conversations as token ids and labels, answers only, for any chat template.

No template markers and no search for the answer's text: where an answer stands is found by rendering the conversation
again with another answer in its place. What the two renderings do not share is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.errors import DataError, ModelError

IGNORED = -100  # the label of a position whose token nobody learns


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: `labels` are -100 outside the answers and their end-of-turn tokens."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool = False


@dataclass(frozen=True)
class EncodingReport:
    """What happened to the rows: how many were cut, and how many had nothing left to score and were left out."""

    rows: int
    truncated: int
    dropped: int


def encode_all(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None
) -> tuple[list[Encoded], EncodingReport]:
    """Every row as tokens; rows with nothing left to score are left out and counted.

    Raises:
        DataError: a row that the template refuses, such as a system turn for a model that has none.
        ModelError: a tokenizer whose tokens cannot be told apart at an answer's edge.
    """
    rows = [encode(tokenizer, example, max_length, f"row {i}") for i, example in enumerate(examples, start=1)]
    kept = [row for row in rows if any(label != IGNORED for label in row.labels[1:])]
    return kept, EncodingReport(len(rows), sum(row.truncated for row in rows), len(rows) - len(kept))


def encode(tokenizer: Any, example: Example, max_length: int | None = None, where: str = "a row") -> Encoded:
    """One conversation as tokens; every assistant turn is scored, its end-of-turn token too, its header not."""
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
    """A conversation up to where the model is to answer, the assistant's header included."""
    text = _render(tokenizer, messages, "the prompt", add_generation_prompt=True)
    return _tokens(tokenizer, text)[0]


def takes_system(tokenizer: Any) -> bool:
    """Whether a system turn comes out of the chat template as written; some refuse one, some drop it."""
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
        raise ModelError("The tokenizer cannot say where its tokens stand in the text; use the model's fast tokenizer.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _span(tokenizer: Any, messages: Sequence[Message], turn: int, text: str, where: str) -> tuple[int, int]:
    """Where an answer stands in the rendered text: what changes when another answer is put in its place.

    The answer begins where the generation prompt ends, if the rendering agrees with it: what a template writes between
    (an empty block for reasoning) is then the model's to write.
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
                "prompt and answer cannot be told apart; use a model whose template separates them."
            )
    after = inside[-1] + 1
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ends = after < len(ids) and ids[after] in special and not text[end : offsets[after][0]].strip()
    return [*inside, after] if ends else inside
