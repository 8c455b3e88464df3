"""`render_row` renders a conversation by the tokenizer's chat template and locates its answers in the text.

The position of an answer is found by rendering the conversation a second time with another answer: the part in which
the two renderings differ is the answer. This needs no template markers and no search for the answer's text.

Some templates leave out parts of an answer, such as its reasoning. An answer that is to be learnt is put back whole: as
the template renders it where it is the last turn, and otherwise as the row has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from os.path import commonprefix
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.data.marks import Marked, marked, places, unmarked
from staytrue.errors import DataError, ModelError

_OPENING = re.compile(r"(<[^<>/]+>|\[[A-Z]+\])\s*$")  # such as <think>, at the end of a generation prompt


@dataclass(frozen=True)
class RenderedRow:
    """A conversation as text.

    Attributes:
        text: the whole conversation.
        answers: (start, end) in the text of every answer that is to be learnt, without its end-of-turn token.
        restored: number of answers of which the template leaves out a part, and which were put back whole.
        other_prompt: whether an answer follows another text than the generation prompt of the turns before it.
        unseen: whether a system, user or tool turn is not in the text.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    restored: int = 0
    other_prompt: bool = False
    unseen: bool = False


def render(
    tokenizer: Any, messages: Sequence[Message], where: str, tools: Sequence[Any] | None = None, **options: Any
) -> str:
    """The text of a conversation.

    Raises:
        DataError: the template refuses the conversation.
        ModelError: the tokenizer has no chat template.
    """
    from jinja2.exceptions import TemplateError

    if not tokenizer.chat_template:
        raise ModelError("The tokenizer has no chat template; use the instruct version of the model.")
    if tools:
        options["tools"] = tools
    try:
        turns = [message.to_template() for message in messages]
        try:
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
        except TypeError:  # a template that joins the arguments of tool calls to text reads them as JSON text
            turns = [message.to_request() for message in messages]
            return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        roles = ", ".join(m.role for m in messages)
        raise DataError(
            f"The model's chat template refuses {where} ({roles}): {error}. Change the turns, or use another model."
        ) from None


def render_row(tokenizer: Any, example: Example, where: str) -> RenderedRow:
    """The text of a row, with the positions of its answers.

    Raises:
        DataError: the template refuses the row, or does not render its reasoning, tools or tool calls.
        ModelError: the template does not render an answer at all.
    """
    row = _Row(tokenizer, example.messages, example.tools, where)
    text, position, spans, restored, same = "", 0, [], 0, True
    for turn, message in enumerate(example.messages):
        if message.role != "assistant" or not message.weight:
            continue
        start, end, prompt = row.span(turn)
        answer = row.text[start:end]
        if row.missing(turn, answer, prompt):
            restored += 1
            start, answer, own_prompt = row.whole(turn, prompt, _before_opening(prompt, row.text, start))
        else:
            own_prompt = prompt
        if start < position:
            raise DataError(
                f"The model's chat template joins the answers of {where} (up to turn {turn + 1}), so they cannot be "
                "separated. Take the row out, or use another model."
            )
        text += row.text[position:start]
        position = end
        own = _after_prompt(own_prompt, row.text[:start], answer)
        same = same and own is not None and own_prompt == prompt
        spans.append((len(text) + (own or 0), len(text) + len(answer)))
        text += answer
    return RenderedRow(text + row.text[position:], tuple(spans), restored, not same, row.leaves_out_a_turn())


class _Row:
    """One conversation, which is rendered again with other answers."""

    def __init__(self, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> None:
        self._tokenizer, self._messages, self._tools, self._where = tokenizer, messages, tools, where
        self.text = render(tokenizer, messages, where, tools)
        self._prompts: dict[
            tuple[str, str], tuple[int, str]
        ] = {}  # what ends a prompt, by the text around its question

    def span(self, turn: int) -> tuple[int, int, str]:
        """Start and end of an answer in the text, and the generation prompt of the turns before it.

        The answer begins where the generation prompt ends, if the text starts with that prompt. Text that the template
        adds in between, such as an empty block for reasoning, then belongs to the answer.
        """
        if self._places:
            start, end = self._places[turn]
            prompt = self._prompt(turn)
            return (len(prompt) if len(prompt) <= start and self.text.startswith(prompt) else start), end, prompt
        if "tool_calls" not in self._messages[turn].more or turn == len(self._messages) - 1:
            return self._span(turn)
        try:
            start, end, prompt = self._span(turn)
        except DataError:  # results of tools without a call
            return self._span_of_calls(turn)
        return self._span_of_calls(turn) if end > self._begin_of_result(turn + 1) else (start, end, prompt)

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Start and end of every turn's content, where one text with marks shows them; else empty."""
        if self._tools or any(message.more for message in self._messages):
            return []
        own = marked(self._messages, None, answers=True)
        try:
            text = render(self._tokenizer, own.messages, self._where)
        except DataError:
            return []
        return places(self.text, text, [message.content for message in self._messages])

    def _prompt(self, turn: int) -> str:
        """The generation prompt before an answer; it ends as another one does whose question has the same around it."""
        start, before = self._places[turn][0], self._places[turn - 1]
        around = self.text[self._places[turn - 2][1] if turn > 1 else 0 : before[0]], self.text[before[1] : start]
        if turn > 1 and around in self._prompts:
            less, added = self._prompts[around]
            return self.text[: start - less] + added
        prompt = render(self._tokenizer, self._messages[:turn], self._where, self._tools, add_generation_prompt=True)
        same = len(commonprefix([self.text[:start], prompt]))
        if turn > 1 and same >= before[1]:
            self._prompts[around] = start - same, prompt[same:]
        return prompt

    def _begin_of_result(self, turn: int) -> int:
        """Where the text holds the result of a tool, at the latest; its length if it does not."""
        result = self._messages[turn]
        changed = [*self._messages]
        changed[turn] = replace(result, content=_other_answer(result))
        second = render(self._tokenizer, changed, self._where, self._tools)
        return len(commonprefix([self.text, second]))

    def missing(self, turn: int, answer: str, prompt: str) -> list[str]:
        """The keys of an answer which the template does not render whole."""
        message = self._messages[turn]
        absent = _missing(answer, message, prompt)
        if message.more:
            own, text = self._marked
            absent += [key for key in own.missing(text, turn) if key not in absent]
        return absent

    def leaves_out_a_turn(self) -> bool:
        """Whether a system, user or tool turn is not in the text.

        Raises:
            DataError: the row's tools are not in the text.
        """
        if self._places:
            return False
        own, text = self._marked
        if own.missing(text, -1):
            raise DataError(
                f"The model's chat template does not render the tools of {self._where}. Use a model with tools."
            )
        turns = [(turn, m) for turn, m in enumerate(self._messages) if m.role != "assistant"]
        return any(own.missing(text, turn) or not _shows(self.text, m) for turn, m in turns)

    @cached_property
    def _marked(self) -> tuple[Marked, str]:
        """The conversation with marks, and its text; where the template refuses the marks, its own words are these."""
        own = marked(self._messages, self._tools)
        try:
            return own, render(self._tokenizer, own.messages, self._where, own.tools)
        except DataError:
            return unmarked(self._messages, self._tools), self.text

    def _span(self, turn: int) -> tuple[int, int, str]:
        changed = [*self._messages]
        changed[turn] = Message("assistant", _other_answer(self._messages[turn]))
        second = render(self._tokenizer, changed, self._where, self._tools)
        start = len(commonprefix([self.text, second]))
        end = len(self.text) - len(commonprefix([self.text[start:][::-1], second[start:][::-1]]))
        prompt = render(self._tokenizer, self._messages[:turn], self._where, self._tools, add_generation_prompt=True)
        if start >= end and not self._messages[turn].more:
            raise ModelError(
                f"The model's chat template does not render the answer of {self._where} (turn {turn + 1})."
            )
        return (len(prompt) if len(prompt) <= start and self.text.startswith(prompt) else start), end, prompt

    def _span_of_calls(self, turn: int) -> tuple[int, int, str]:
        """As `span`, for tool calls with their results behind them, which fit no other answer."""
        as_last = _Row(self._tokenizer, self._messages[: turn + 1], self._tools, self._where)
        start, end, prompt = as_last.span(turn)
        if not self.text.startswith(as_last.text[:end]):
            raise DataError(
                f"The model's chat template renders the tool calls of {self._where} (turn {turn + 1}) in another way "
                "once their results follow, so they cannot be learnt. Take the row out, or use another model."
            )
        return start, end, prompt

    def whole(self, turn: int, prompt: str, start: int) -> tuple[int, str, str]:
        """The whole answer, which the text has in part, with its start in the text and the prompt before it.

        Raises:
            DataError: the answer has reasoning or tool calls under keys that the template does not render.
        """
        message = self._messages[turn]
        if turn < len(self._messages) - 1:
            as_last = _Row(self._tokenizer, self._messages[: turn + 1], self._tools, self._where)
            first, last, own = as_last.span(turn)
            same = as_last.text.startswith(self.text[:start])
            first = start if same else _before_opening(own, as_last.text, first)
            answer = as_last.text[first:last]
            if not (absent := as_last.missing(turn, answer, own)):
                return (start, answer, prompt) if same else self._moved(turn, start, own, first, answer)
        else:
            absent = self.missing(turn, self.text[start:], prompt)
        if message.more:
            raise DataError(self._not_rendered(turn, absent))
        return start, _put_back(message.content.strip(), prompt, self.text[:start]), prompt

    def _moved(self, turn: int, start: int, own: str, first: int, answer: str) -> tuple[int, str, str]:
        """An answer from a text that renders the turns before it in another way, behind its header in this text."""
        before = render(self._tokenizer, self._messages[:turn], self._where, self._tools)
        header, opened = own.removeprefix(before), own[first:]
        for known in (header, header.removesuffix(opened)):
            place = self.text.rfind(known, 0, start) if known else -1
            if place >= 0:
                start = place + len(known) - (len(opened) if known == header else 0)
                break
        return start, answer, self.text[:start] + opened

    def _not_rendered(self, turn: int, keys: list[str]) -> str:
        way_out = "Write it into the content, as the model is meant to write it"
        if keys == ["content"]:
            way_out = "Take the row out"
        return (
            f"The model's chat template does not render {' and '.join(keys)} of {self._where} (turn {turn + 1}), so it "
            f"would not be learnt. {way_out}, or use another model."
        )


def _put_back(answer: str, prompt: str, header: str) -> str:
    """An answer as the row has it, behind a header; the prompt may open it."""
    added = prompt.removeprefix(header)
    opening = added.strip()
    if opening and not answer.startswith(opening) and f"</{opening[1:]}" in answer:
        return added + answer  # reasoning as it was generated, after a prompt that opened it
    if added == prompt or not answer.startswith(opening):
        return answer
    return added + answer.removeprefix(added.strip()).removeprefix(added[len(added.rstrip()) :])


def _other_answer(message: Message) -> str:
    """An answer that differs from a turn's own in its first and last character, in every part of it if possible."""
    own = message.content.strip() + message.more
    letter = next((c for c in "xyz0123456789§¶¤" if c not in own), None)
    return 3 * (letter or next(c for c in "xyz" if c not in (own[0], own[-1])))


def _before_opening(prompt: str, text: str, start: int) -> int:
    """Where an answer begins that is put back whole: before the block for reasoning that the prompt opens.

    The text may have an empty block there.
    """
    opening = _OPENING.search(prompt)
    return opening.start() if opening and text.startswith(prompt[: opening.start()]) else start


def _after_prompt(prompt: str, header: str, answer: str) -> int | None:
    """How many characters of the answer the generation prompt holds; None if it is another prompt."""
    added = prompt.removeprefix(header)
    return len(added) if prompt.startswith(header) and answer.startswith(added) else None


def _missing(text: str, message: Message, prompt: str) -> list[str]:
    """The keys whose text is not in an answer's, of the turn's content and reasoning; blanks do not count."""
    more = json.loads(message.more) if message.more else {}
    squeezed, opening = _squeezed(text), _OPENING.search(prompt)
    content = message.content.strip()
    if opening and content.startswith(opening[1]):
        content = content.removeprefix(opening[1])
        if not squeezed.startswith((_squeezed(content), _squeezed(opening[1] + content))):
            return ["content"]  # an empty block for reasoning stands before the answer's own
    parts = {"content": content} | {key: value for key, value in more.items() if isinstance(value, str)}
    return [key for key, part in parts.items() if _squeezed(part) not in squeezed]


def _shows(text: str, message: Message) -> bool:
    """Whether a text holds a turn without an answer; the results of tools may be rendered in another way."""
    return message.role == "tool" or _squeezed(message.content) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(text.split())
