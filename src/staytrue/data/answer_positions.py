"""`Rendering`: a conversation as its chat template renders it, and the positions of its answers.

The position of an answer is found by rendering the conversation a second time with another answer: the part in which
the two renderings differ is the answer. This needs no template markers and no search for the answer's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from os.path import commonprefix
from typing import Any

from staytrue.data.chat_template import render
from staytrue.data.examples import Message
from staytrue.data.placeholders import WithPlaceholders, content_spans, with_own_names, with_placeholders
from staytrue.errors import DataError, ModelError

Span = tuple[int, int, str]  # start and end of an answer in the text, and the generation prompt before it


class Rendering:
    """One conversation as text, which is rendered again with other answers.

    Attributes:
        messages: the turns.
        where: how messages call the row.
        text: the whole conversation.
    """

    def __init__(self, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> None:
        self.messages, self.where = messages, where
        self._tokenizer, self._tools = tokenizer, tools
        self.text = self._render(messages)
        self._prompts: dict[tuple[str, str], tuple[int, str]] = {}  # the end of a prompt, by the text at its question

    def up_to(self, turn: int) -> Rendering:
        """The conversation that ends with a turn."""
        return Rendering(self._tokenizer, self.messages[: turn + 1], self._tools, self.where)

    def before(self, turn: int, *, prompt: bool = False) -> str:
        """The text of the turns before a turn; `prompt`: with the generation prompt after them."""
        return self._render(self.messages[:turn], **({"add_generation_prompt": True} if prompt else {}))

    def span(self, turn: int) -> Span:
        """Start and end of an answer in the text, and the generation prompt of the turns before it.

        The answer begins where the generation prompt ends, if the text starts with that prompt. Text that the template
        adds in between, such as an empty block for reasoning, then belongs to the answer.
        """
        if self.content_spans:
            start, end = self.content_spans[turn]
            return self._from_prompt(start, end, self._prompt(turn))
        if "tool_calls" not in self.messages[turn].more or turn == len(self.messages) - 1:
            return self._span_by_another_answer(turn)
        try:
            span = self._span_by_another_answer(turn)
        except DataError:  # results of tools without a call
            return self._span_of_calls(turn)
        return self._span_of_calls(turn) if span[1] > self._begin_of_result(turn + 1) else span

    @cached_property
    def content_spans(self) -> list[tuple[int, int]]:
        """Start and end of every turn's content, where a rendering with placeholders shows them; else empty."""
        if self._tools or any(message.more for message in self.messages):
            return []
        replaced = with_placeholders(self.messages, None, answers=True)
        try:
            text = self._render(replaced.messages)
        except DataError:
            return []
        return content_spans(self.text, text, [message.content for message in self.messages])

    @cached_property
    def placeholders(self) -> tuple[WithPlaceholders, str]:
        """The conversation with placeholders, and its text; where the template refuses them, with names of its own."""
        replaced = with_placeholders(self.messages, self._tools)
        try:
            return replaced, render(self._tokenizer, replaced.messages, self.where, replaced.tools)
        except DataError:
            return with_own_names(self.messages, self._tools), self.text

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        return render(self._tokenizer, messages, self.where, self._tools, **options)

    def _with(self, turn: int, message: Message) -> str:
        """The text with another turn in the place of one."""
        return self._render([*self.messages[:turn], message, *self.messages[turn + 1 :]])

    def _prompt(self, turn: int) -> str:
        """The generation prompt before an answer; it ends as another one does whose question has the same around it."""
        start, question = self.content_spans[turn][0], self.content_spans[turn - 1]
        before = self.content_spans[turn - 2][1] if turn > 1 else 0
        around = self.text[before : question[0]], self.text[question[1] : start]
        if turn > 1 and around in self._prompts:
            less, added = self._prompts[around]
            return self.text[: start - less] + added
        prompt = self.before(turn, prompt=True)
        same = len(commonprefix([self.text[:start], prompt]))
        if turn > 1 and same >= question[1]:
            self._prompts[around] = start - same, prompt[same:]
        return prompt

    def _from_prompt(self, start: int, end: int, prompt: str) -> Span:
        return (len(prompt) if len(prompt) <= start and self.text.startswith(prompt) else start), end, prompt

    def _span_by_another_answer(self, turn: int) -> Span:
        second = self._with(turn, Message("assistant", _other_answer(self.messages[turn])))
        start = len(commonprefix([self.text, second]))
        end = len(self.text) - len(commonprefix([self.text[start:][::-1], second[start:][::-1]]))
        prompt = self.before(turn, prompt=True)
        if start >= end and not self.messages[turn].more:
            raise ModelError(f"The model's chat template does not render the answer of {self.where} (turn {turn + 1}).")
        return self._from_prompt(start, end, prompt)

    def _begin_of_result(self, turn: int) -> int:
        """The last place in the text at which a tool's result stands; the text's length without one."""
        result = self.messages[turn]
        return len(commonprefix([self.text, self._with(turn, replace(result, content=_other_answer(result)))]))

    def _span_of_calls(self, turn: int) -> Span:
        """As `span`, for tool calls with their results behind them, which fit no other answer."""
        as_last = self.up_to(turn)
        start, end, prompt = as_last.span(turn)
        if not self.text.startswith(as_last.text[:end]):
            raise DataError(
                f"The model's chat template renders the tool calls of {self.where} (turn {turn + 1}) in another way "
                "once their results follow, so they cannot be learnt. Take the row out, or use another model."
            )
        return start, end, prompt


def _other_answer(message: Message) -> str:
    """An answer that differs from a turn's own in its first and last character, in every part of it if possible."""
    text = message.content.strip() + message.more
    letter = next((c for c in "xyz0123456789§¶¤" if c not in text), None)
    return 3 * (letter or next(c for c in "xyz" if c not in (text[0], text[-1])))
