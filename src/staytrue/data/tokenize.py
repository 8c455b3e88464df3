"""Tokenizes conversations, with labels on the answers only, for any chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from staytrue.data.chat_template import RenderedRow, render, render_row
from staytrue.data.examples import Example, Message
from staytrue.data.special_tokens import (
    added_tokens,
    closing_tokens,
    end_place,
    kept,
    outside_tokens,
    special_tokens,
    template_tokens,
    through_closing,
)
from staytrue.errors import DataError, ModelError, StaytrueError

IGNORED = -100  # label of a token without a loss
_COMPARED = 8  # rows whose tokens are compared with those of their prompt
_Tokens = tuple[list[int], list[tuple[int, int]]]  # ids, and the position of each in the text


@dataclass(frozen=True)
class Encoded:
    """One row as tokens: `labels` are -100 outside the answers and their end-of-turn tokens."""

    input_ids: list[int]
    labels: list[int]
    source: str
    truncated: bool = False


@dataclass(frozen=True)
class EncodingReport:
    """What happened to the rows of a data set on their way into tokens.

    Attributes:
        rows: number of rows.
        truncated: rows that were cut at the maximum length.
        dropped: rows that were left out because no answer token remained.
        restored: answers of which the chat template leaves out a part, mostly reasoning, and which are learnt whole.
        other_prompt: rows with an answer that follows another text than the generation prompt.
        unseen: rows with a system, user or tool turn that the chat template leaves out.
        other_tokens: rows whose last answer follows other tokens than those of its prompt, among those compared.
        compared: rows whose tokens were compared with those of their prompt: the first ones.
        answers: answers that are learnt.
        endless: answers among them without a token after them that ends generation.
    """

    rows: int
    truncated: int
    dropped: int
    restored: int = 0
    other_prompt: int = 0
    unseen: int = 0
    other_tokens: int = 0
    compared: int = 0
    answers: int = 0
    endless: int = 0

    def notes(self) -> list[str]:
        """A sentence for everything that a user would not expect."""
        counts = {
            "{n} of {rows} rows are longer than max_length and were cut": self.truncated,
            "{n} of {rows} rows were left out: no token of an answer is within max_length": self.dropped,
            "The chat template leaves out a part of {n} answers, such as reasoning; they are learnt whole, as the rows "
            "have them, but at inference a prompt does not show what the template leaves out of earlier turns": (
                self.restored
            ),
            "In {n} of {rows} rows an answer follows another text than the chat template's generation prompt, which "
            "may open a block for reasoning; so the model is used in another context than it is trained in": (
                self.other_prompt
            ),
            "In {n} of the first {compared} rows, which alone were compared, the tokens before the last answer are "
            "others than those of the prompt at inference, since the tokenizer joins them": self.other_tokens,
            "The chat template leaves out a system, user or tool turn of {n} of {rows} rows": self.unseen,
            "The chat template writes no token that ends generation after {n} of {answers} answers, so the model does "
            "not learn to stop there": self.endless,
        }
        return [f"{line.format(n=n, **vars(self))}." for line, n in counts.items() if n]


def encode_all(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None
) -> tuple[list[Encoded], EncodingReport]:
    """Tokenize rows; rows without a scored token are dropped and counted.

    Raises:
        DataError: the template refuses a row, such as a system turn for a model without system turns; or an answer
            holds an end-of-turn token in its text; or no answer is followed by a token that ends generation.
        ModelError: a token spans the edge of an answer.
    """
    parts = [_encode(tokenizer, example, f"row {i}") for i, example in enumerate(examples, start=1)]
    _refuse_endless(parts)
    first = [*zip(examples, parts, strict=True)][:_COMPARED]
    rows = [part.cut(max_length) for part in parts]
    kept_rows = [row for row in rows if any(label != IGNORED for label in row.labels[1:])]
    report = EncodingReport(
        len(rows),
        sum(row.truncated for row in rows),
        len(rows) - len(kept_rows),
        restored=sum(part.row.restored for part in parts),
        other_prompt=sum(part.row.other_prompt for part in parts),
        unseen=sum(part.row.unseen for part in parts),
        other_tokens=sum(not _begins_with_its_prompt(tokenizer, *pair) for pair in first),
        compared=len(first),
        answers=sum(len(part.row.answers) for part in parts),
        endless=sum(part.endless for part in parts),
    )
    return kept_rows, report


def _refuse_endless(parts: Sequence[_Part]) -> None:
    """Refuse rows of a kind (task, interleaved, ...) of which no answer ends."""
    kinds = {part.source: False for part in parts if part.row.answers}
    for part in parts:
        if part.endless < len(part.row.answers):
            kinds[part.source] = True
    for source, ends in kinds.items():
        if not ends:
            rows = "these rows" if len(kinds) == 1 else f"the rows of the kind {source!r}"
            raise DataError(
                f"No answer of {rows} ends with a token that ends generation, so the model would not learn to stop: "
                "the chat template writes no special token after an answer. Use a tokenizer whose chat template ends "
                "each answer with its end token (eos_token)."
            )


def encode(tokenizer: Any, example: Example, max_length: int | None = None, where: str = "a row") -> Encoded:
    """Tokenize one conversation; assistant turns and their end-of-turn tokens are scored, their headers are not.

    Raises:
        DataError: the template refuses the row, or an answer holds an end-of-turn token in its text.
        ModelError: a token spans the edge of an answer.
    """
    return _encode(tokenizer, example, where).cut(max_length)


def encode_prompt(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
    """Token ids of a conversation up to the model's answer, with the assistant's header."""
    return _tokens(tokenizer, render(tokenizer, messages, "the prompt", tools, add_generation_prompt=True))[0]


@kept
def end_of_turn(tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer by the chat template, which training teaches and generation stops at.

    It is the first special token after an answer; blanks before it do not count. Some templates write another one after
    the last answer, or after a tool call. Where the template writes none after the last answer, it is the special token
    with which the next turn begins. A token that the template also writes inside of an answer, such as one that ends
    its reasoning, ends none. Empty if there is none, or no template.
    """
    ends: set[int] = set()
    inside: set[int] = set()
    for messages in (_TURNS[:2], _TURNS, _CALL[:2], _CALL, *_THOUGHTS):
        own, within = _probe(tokenizer, messages)
        ends |= {end for end in own if end is not None}
        inside |= within
    return frozenset(ends - inside or ends)


def _probe(tokenizer: Any, messages: tuple[Message, ...]) -> tuple[list[int | None], set[int]]:
    """The token that ends each answer of a conversation, and the tokens inside of its answers."""
    try:
        row = render_row(tokenizer, Example(messages), "a conversation")
        ids, offsets = _tokens(tokenizer, row.text)
    except StaytrueError:
        return [], set()
    places = _end_places(tokenizer, row, ids, offsets, final=messages[-1].role == "assistant")
    inside = {ids[i] for i, (a, b) in enumerate(offsets) if any(a >= start and b <= end for start, end in row.answers)}
    return [None if place is None else ids[place] for place in places], inside


def _next_turn(tokenizer: Any, called: bool) -> list[int]:
    """The token with which a turn after an answer, or after a tool call, begins; empty if it is no special one."""
    for messages in (_CALL[:3], _TURNS[:3]) if called else (_TURNS[:3],):
        for end in _probe(tokenizer, messages)[0][:1]:
            if end is not None:
                return [end]
    return []


def padding_id(tokenizer: Any) -> int:
    """The token id that fills a batch: the padding token, else the end token, else 0; every use of it is masked."""
    chosen = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in chosen if token is not None))


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template renders a system turn; some templates refuse it, some drop it."""
    turns = (Message("system", "qzx"), Message("user", "a"), Message("assistant", "b"))
    try:
        return "qzx" in render(tokenizer, turns, "a row")
    except DataError:
        return False


_TURNS = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d"))
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


@dataclass(frozen=True)
class _Part:
    """One row before it is cut."""

    row: RenderedRow
    ids: list[int]
    labels: list[int]
    source: str
    endless: int  # answers to learn that no token follows which ends generation

    def cut(self, length: int | None) -> Encoded:
        longer = length is not None and len(self.ids) > length
        return Encoded(self.ids[:length], self.labels[:length], self.source, longer)


def _encode(tokenizer: Any, example: Example, where: str) -> _Part:
    _refuse_structure(tokenizer, example, where)
    row = render_row(tokenizer, example, where)
    ids, offsets = _tokens_by_answer(tokenizer, row)
    labels = [IGNORED] * len(ids)
    final = bool(example.messages[-1].role == "assistant" and example.messages[-1].weight)
    places = _end_places(tokenizer, row, ids, offsets, final)
    edges = _added_spans(tokenizer, ids, offsets)
    for (start, end), place in zip(row.answers, places, strict=True):
        inside = _inside(row.text, offsets, outside_tokens(edges, start), outside_tokens(edges, end), where)
        for i in [*inside, *(range(inside[-1] + 1, place + 1) if place is not None else ())]:
            labels[i] = ids[i]
    if final and places[-1] is None and not row.text[row.answers[-1][1] :].strip():
        ends = _next_turn(tokenizer, called="tool_calls" in example.messages[-1].more)
        after = [i for i, (a, _) in enumerate(offsets) if a >= row.answers[-1][1]]
        labels = [*(ids[i] if i in after and ends else label for i, label in enumerate(labels)), *ends]
        ids, places = [*ids, *ends], [*places[:-1], len(ids) if ends else None]
    return _Part(row, ids, labels, example.source, places.count(None))


def _end_places(
    tokenizer: Any, row: RenderedRow, ids: list[int], offsets: list[tuple[int, int]], final: bool
) -> list[int | None]:
    """The place of the token that ends each answer; None where there is none. `final`: the last turn is an answer."""
    edges, places = _added_spans(tokenizer, ids, offsets), []
    closing = closing_tokens(tokenizer, row.text, ids, offsets, row.answers[-1][1]) if final else []
    for number, (_, end) in enumerate(row.answers, start=1):
        last = final and number == len(row.answers)
        place = end_place(tokenizer, row.text, ids, offsets, outside_tokens(edges, end), last)
        places.append(place if place is None or last else through_closing(ids, place, closing))
    return places


def _added_spans(tokenizer: Any, ids: list[int], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
    added = added_tokens(tokenizer)
    return [span for i, span in enumerate(offsets) if ids[i] in added]


def _tokens(tokenizer: Any, text: str) -> _Tokens:
    if not tokenizer.is_fast:
        raise ModelError("The tokenizer has no character offsets; use the model's fast tokenizer.")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _tokens_by_answer(tokenizer: Any, row: RenderedRow) -> _Tokens:
    """The tokens of a row; none holds the end of a prompt and the beginning of its answer.

    At inference a prompt is tokenized by itself. If a token spans the edge, the two sides are therefore tokenized
    apart, unless the tokenizer would write another text then (because it begins every text with a blank).
    """
    ids, offsets = _tokens(tokenizer, row.text)
    edges = {start for start, _ in row.answers if any(a < start < b for a, b in offsets)}
    if not edges or row.other_prompt:
        return ids, offsets
    apart: list[int] = []
    places: list[tuple[int, int]] = []
    for first, after in pairwise([0, *sorted(edges), len(row.text)]):
        own, where = _tokens(tokenizer, row.text[first:after])
        apart += own
        places += [(a + first, b + first) for a, b in where]
    return (apart, places) if tokenizer.decode(apart) == tokenizer.decode(ids) else (ids, offsets)


def _inside(text: str, offsets: list[tuple[int, int]], start: int, end: int, where: str) -> list[int]:
    """The tokens of an answer."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < end and b > start]
    for i in inside:
        a, b = offsets[i]
        if text[a:start].strip() or text[end:b].strip():
            raise ModelError(
                f"The tokenizer joins the answer of {where} with its surroundings in one token ({text[a:b]!r}), so "
                "prompt and answer cannot be separated; use a model whose template separates them."
            )
    return inside


def _refuse_structure(tokenizer: Any, example: Example, where: str) -> None:
    """Refuse an answer whose text holds a token of the template's own, which would be learnt in its middle."""
    special = special_tokens(tokenizer)
    for turn, message in enumerate(example.messages):
        learnt = message.role == "assistant" and message.weight
        texts = [*_strings(message.to_template())] if learnt else []
        if any(token in text for token in special for text in texts):
            for token in _structure(tokenizer):
                if any(token in text for text in texts):
                    raise DataError(
                        f"The answer of {where} (turn {turn + 1}) holds {token!r}, which the tokenizer reads as a "
                        "token of its own, so the model would learn it in the middle of an answer. Write it otherwise, "
                        "or take the row out."
                    )


def _strings(value: Any) -> Iterator[str]:
    """Every text of a turn: content, reasoning, names and arguments of tool calls."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for own in value.values() if isinstance(value, dict) else value:
            yield from _strings(own)


@kept
def _structure(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens that the chat template names or writes outside of answers, and the end and padding tokens."""
    row = render_row(tokenizer, Example(_TURNS), "a conversation")
    ids, offsets = _tokens(tokenizer, row.text)
    outside = {
        token
        for token, (a, b) in zip(ids, offsets, strict=True)
        if not any(a < end and b > start for start, end in row.answers)
    }
    named = {tokenizer.eos_token_id, tokenizer.pad_token_id, *end_of_turn(tokenizer)}
    chosen = {str(tokenizer.convert_ids_to_tokens(i)) for i in outside | named if i is not None}
    return tuple(sorted(chosen & special_tokens(tokenizer) | template_tokens(tokenizer)))


def _begins_with_its_prompt(tokenizer: Any, example: Example, part: _Part) -> bool:
    """Whether a row's tokens begin with its prompt's; True where its text does not, which is known without them."""
    if part.row.restored or part.row.other_prompt:
        return True
    prompt = encode_prompt(tokenizer, example.prompt, example.tools)
    return part.ids[: len(prompt)] == prompt
