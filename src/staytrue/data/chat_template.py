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
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from staytrue.data.examples import Example, Message
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
    except (TemplateError, TypeError) as error:
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
        if not _holds(answer, message, prompt):
            restored += 1
            start = _before_opening(prompt, row.text, start)
            answer = row.whole(turn, prompt, start)
        if start < position:
            raise DataError(
                f"The model's chat template joins the answers of {where} (up to turn {turn + 1}), so they cannot be "
                "told apart. Take the row out, or use another model."
            )
        text += row.text[position:start]
        position = end
        own = _after_prompt(prompt, row.text[:start], answer)
        same = same and own is not None
        spans.append((len(text) + (own or 0), len(text) + len(answer)))
        text += answer
    unseen = not all(_shows(row.text, m) for m in example.messages if m.role != "assistant")
    if example.tools and not all(_tool_name(tool) in row.text for tool in example.tools):
        raise DataError(f"The model's chat template does not render the tools of {where}. Use a model with tools.")
    return RenderedRow(text + row.text[position:], tuple(spans), restored, not same, unseen)


class _Row:
    """One conversation, which is rendered again with other answers."""

    def __init__(self, tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any] | None, where: str) -> None:
        self._tokenizer, self._messages, self._tools, self._where = tokenizer, messages, tools, where
        self.text = render(tokenizer, messages, where, tools)

    def span(self, turn: int) -> tuple[int, int, str]:
        """Start and end of an answer in the text, and the generation prompt of the turns before it.

        The answer begins where the generation prompt ends, if the text starts with that prompt. Text that the template
        adds in between, such as an empty block for reasoning, then belongs to the answer.
        """
        if "tool_calls" in self._messages[turn].more and turn < len(self._messages) - 1:
            try:
                start, end, prompt = self._span(turn)
            except DataError:  # results of tools without a call
                return self._span_of_calls(turn)
            results = [m for m in self._messages[turn:] if m.role == "tool"]
            swallowed = any(_shows(self.text[start:end], m) for m in results if m.content.strip())
            return self._span_of_calls(turn) if swallowed else (start, end, prompt)
        return self._span(turn)

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

    def whole(self, turn: int, prompt: str, start: int) -> str:
        """The whole answer, which the text has in part.

        Raises:
            DataError: the answer has reasoning or tool calls under keys that the template does not render.
        """
        message = self._messages[turn]
        if turn < len(self._messages) - 1:
            as_last = _Row(self._tokenizer, self._messages[: turn + 1], self._tools, self._where)
            answer = as_last.text[start : as_last.span(turn)[1]]
            if as_last.text.startswith(self.text[:start]) and _holds(answer, message, prompt):
                return answer
        if message.more:
            keys = " and ".join(json.loads(message.more))
            raise DataError(
                f"The model's chat template does not render {keys} of {self._where} (turn {turn + 1}), so it would not "
                "be learnt. Write it into the content, as the model is meant to write it, or use another model."
            )
        answer, added = message.content.strip(), prompt.removeprefix(self.text[:start])
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


def _holds(text: str, message: Message, prompt: str) -> bool:
    """Whether the text of an answer holds the turn's whole content, reasoning and tool calls; blanks do not count."""
    more = json.loads(message.more) if message.more else {}
    opening = _OPENING.search(prompt)
    content = message.content.strip()
    if opening and content.startswith(opening[1]):
        content = content.removeprefix(opening[1])
        if not _squeezed(text).startswith(_squeezed(content)) and not _squeezed(text).startswith(
            _squeezed(opening[1] + content)
        ):
            return False  # an empty block for reasoning stands before the answer's own
    parts = [content, *(value for value in more.values() if isinstance(value, str))]
    parts += [call["function"]["name"] for call in more.get("tool_calls", ())]
    squeezed = _squeezed(text)
    return all(_squeezed(part) in squeezed for part in parts)


def _shows(text: str, message: Message) -> bool:
    """Whether a text holds a turn without an answer; the results of tools may be rendered as JSON."""
    if message.role == "tool":
        return max(re.findall(r"\w+", message.content), key=len, default="") in text
    return message.content.strip() in text or _squeezed(message.content) in _squeezed(text)


def _tool_name(tool: Any) -> str:
    return str(tool.get("function", tool).get("name", "")) if isinstance(tool, dict) else ""


def _squeezed(text: str) -> str:
    return "".join(text.split())
