"""Tokenizes conversations, with labels on the answers only, for any chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from staytrue.data.chat_template import render
from staytrue.data.encoding_report import EncodingReport
from staytrue.data.end_of_turn import end_places, next_turn
from staytrue.data.examples import Example, Message
from staytrue.data.rendered_row import RenderedRow, render_row
from staytrue.data.sampled_tokens import COLUMN, sampled_tokens
from staytrue.data.special_in_answers import refuse_special_tokens
from staytrue.data.token_offsets import Tokens
from staytrue.errors import DataError

IGNORED = -100  # label of a token without a loss
_COMPARED = 8  # rows whose tokens are compared with those of their prompt


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: `labels` are -100 outside the answers and their end-of-turn tokens."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool = False


def encode_all(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None
) -> tuple[list[Encoded], EncodingReport]:
    """Tokenize rows; rows without a scored token are dropped and counted.

    Raises:
        DataError: the template refuses a row, such as a system turn for a model without system turns; or an answer
            holds an end-of-turn token in its text; or no answer is followed by a token that ends generation.
        ModelError: a token spans the edge of an answer.
    """
    uncut = [_encode(tokenizer, example, example.place or f"row {i}") for i, example in enumerate(examples, start=1)]
    _refuse_endless(uncut)
    first = [*zip(examples, uncut, strict=True)][:_COMPARED]
    rows = [row.cut(max_length) for row in uncut]
    learnt = [row for row in rows if any(label != IGNORED for label in row.labels[1:])]
    report = EncodingReport(
        len(rows),
        sum(row.truncated for row in rows),
        len(rows) - len(learnt),
        restored=sum(row.rendered.restored for row in uncut),
        other_prompt=sum(row.rendered.other_prompt for row in uncut),
        unseen=sum(row.rendered.unseen for row in uncut),
        other_tokens=sum(not _begins_with_its_prompt(tokenizer, *pair) for pair in first),
        compared=len(first),
        answers=sum(len(row.rendered.answers) for row in uncut),
        endless=sum(row.endless for row in uncut),
    )
    return learnt, report


def encode(tokenizer: Any, example: Example, max_length: int | None = None, where: str = "") -> Encoded:
    """Tokenize one conversation; assistant turns and their end-of-turn tokens are scored, their headers are not.

    Raises:
        DataError: the template refuses the row, or an answer holds an end-of-turn token in its text.
        ModelError: a token spans the edge of an answer.
    """
    return _encode(tokenizer, example, where or example.place or "a row").cut(max_length)


def encode_prompt(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
    """Token ids of a conversation up to the model's answer, with the assistant's header."""
    return Tokens.of(tokenizer, render(tokenizer, messages, "the prompt", tools, add_generation_prompt=True)).ids


def padding_id(tokenizer: Any) -> int:
    """The token id that fills a batch: the padding token, else the end token, else 0; every use of it is masked."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in candidates if token is not None))


@dataclass(frozen=True)
class _Uncut:
    """One row before it is cut."""

    rendered: RenderedRow
    ids: list[int]
    labels: list[int]
    source: str
    endless: int  # answers to learn that no token follows which ends generation

    def cut(self, length: int | None) -> Encoded:
        longer = length is not None and len(self.ids) > length
        return Encoded(self.ids[:length], self.labels[:length], self.source, longer)


def _encode(tokenizer: Any, example: Example, where: str) -> _Uncut:
    if COLUMN in example.extra:
        asked = encode_prompt(tokenizer, example.prompt, example.tools)
        prompt, answer = sampled_tokens(tokenizer, example, asked, where)
        return _Uncut(RenderedRow("", ((0, 0),)), prompt + answer, [IGNORED] * len(prompt) + answer, example.source, 0)
    refuse_special_tokens(tokenizer, example, where)
    row = render_row(tokenizer, example, where)
    tokens = Tokens.of_row(tokenizer, row)
    ids, labels = tokens.ids, [IGNORED] * len(tokens.ids)
    final = bool(example.messages[-1].role == "assistant" and example.messages[-1].weight)
    places = end_places(tokenizer, row, tokens, final)
    for (start, end), place in zip(row.answers, places, strict=True):
        inside = tokens.within(tokens.outside(start), tokens.outside(end), where)
        for i in [*inside, *(range(inside[-1] + 1, place + 1) if place is not None else ())]:
            labels[i] = ids[i]
    if final and places[-1] is None and not row.text[row.answers[-1][1] :].strip():
        ends = next_turn(tokenizer, called="tool_calls" in example.messages[-1].more)
        after = [i for i, (a, _) in enumerate(tokens.offsets) if a >= row.answers[-1][1]]
        labels = [*(ids[i] if i in after and ends else label for i, label in enumerate(labels)), *ends]
        ids, places = [*ids, *ends], [*places[:-1], len(ids) if ends else None]
    return _Uncut(row, ids, labels, example.source, places.count(None))


def _refuse_endless(rows: Sequence[_Uncut]) -> None:
    """Refuse rows of a kind (task, interleaved, ...) of which no answer ends."""
    ends = {row.source: False for row in rows if row.rendered.answers}
    for row in rows:
        if row.endless < len(row.rendered.answers):
            ends[row.source] = True
    for source in (source for source, some in ends.items() if not some):
        kind = "these rows" if len(ends) == 1 else f"the rows of the kind {source!r}"
        raise DataError(
            f"No answer of {kind} ends with a token that ends generation, so the model would not learn to stop: "
            "the chat template writes no special token after an answer. Use a tokenizer whose chat template ends "
            "each answer with its end token (eos_token)."
        )


def _begins_with_its_prompt(tokenizer: Any, example: Example, row: _Uncut) -> bool:
    """Whether a row's tokens begin with its prompt's; True where its text does not, which is known without them."""
    if row.rendered.restored or row.rendered.other_prompt:
        return True
    prompt = encode_prompt(tokenizer, example.prompt, example.tools)
    return row.ids[: len(prompt)] == prompt
