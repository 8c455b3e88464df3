"""`render_row` renders a conversation by the tokenizer's chat template and locates its answers in the text.

Some templates leave out parts of an answer, such as its reasoning. An answer that is to be learnt is put back whole: as
the template renders it where it is the last turn, and otherwise as the row has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from staytrue.data.answer_positions import Rendering
from staytrue.data.examples import Example
from staytrue.data.whole_answers import before_opening, missing_keys, squeezed, whole_answer
from staytrue.errors import DataError


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


def render_row(tokenizer: Any, example: Example, where: str) -> RenderedRow:
    """The text of a row, with the positions of its answers.

    Raises:
        DataError: the template refuses the row, or does not render its reasoning, tools or tool calls.
        ModelError: the template does not render an answer at all.
    """
    row = Rendering(tokenizer, example.messages, example.tools, where)
    text, position, spans, restored, same_prompts = "", 0, [], 0, True
    for turn, message in enumerate(example.messages):
        if message.role != "assistant" or not message.weight:
            continue
        start, end, prompt = row.span(turn)
        answer, answer_prompt = row.text[start:end], prompt
        if missing_keys(row, turn, answer, prompt):
            restored += 1
            start, answer, answer_prompt = whole_answer(
                row, turn, prompt, before_opening(row, turn, (start, end, prompt))
            )
        if start < position:
            raise DataError(
                f"The model's chat template joins the answers of {where} (up to turn {turn + 1}), so they cannot be "
                "separated. Take the row out, or use another model."
            )
        text += row.text[position:start]
        position = end
        opened = _opened_by_prompt(answer_prompt, row.text[:start], answer)
        same_prompts = same_prompts and opened is not None and answer_prompt == prompt
        spans.append((len(text) + (opened or 0), len(text) + len(answer)))
        text += answer
    if leaves_out_tools(row):
        raise DataError(f"The model's chat template does not render the tools of {where}. Use a model with tools.")
    return RenderedRow(text + row.text[position:], tuple(spans), restored, not same_prompts, leaves_out_a_turn(row))


def _opened_by_prompt(prompt: str, header: str, answer: str) -> int | None:
    """How many characters of the answer the generation prompt holds; None if it is another prompt."""
    added = prompt.removeprefix(header)
    return len(added) if prompt.startswith(header) and answer.startswith(added) else None


def leaves_out_tools(row: Rendering) -> bool:
    """Whether the row's tools are not in the text."""
    if row.content_spans:
        return False
    replaced, text = row.placeholders
    return bool(replaced.missing(text, -1))


def leaves_out_a_turn(row: Rendering) -> bool:
    """Whether a system, user or tool turn is not in the text."""
    if row.content_spans:
        return False
    replaced, text = row.placeholders
    turns = [turn for turn, message in enumerate(row.messages) if message.role != "assistant"]
    return any(replaced.missing(text, turn) or not _shows(row, turn) for turn in turns)


def _shows(row: Rendering, turn: int) -> bool:
    """Whether the text holds a turn without an answer; the results of tools may be rendered in another way."""
    message = row.messages[turn]
    return message.role == "tool" or squeezed(message.content) in squeezed(row.text)
