"""`whole_answer` puts an answer back whole of which a chat template leaves out a part, such as its reasoning."""

from __future__ import annotations

import json
import re

from staytrue.data.answer_positions import Rendering, Span
from staytrue.data.examples import Message
from staytrue.errors import DataError

_CLOSING = re.compile(r"</[^<>/\s]+>|\[/[A-Z]+\]")
_OPENING = re.compile(r"(<[^<>/]+>|\[[A-Z]+\])\s*$")  # such as <think>, at the end of a generation prompt


def missing_keys(row: Rendering, turn: int, answer: str, prompt: str) -> list[str]:
    """The keys of a turn, such as `content`, which its rendered answer does not hold whole."""
    message = row.messages[turn]
    missing = _missing_texts(answer, message, prompt)
    if message.more:
        replaced, text = row.placeholders
        missing += [key for key in replaced.missing(text, turn) if key not in missing]
    return missing


def whole_answer(row: Rendering, turn: int, prompt: str, start: int) -> tuple[int, str, str]:
    """The whole answer, which the text has in part, with its start in the text and the prompt before it.

    Raises:
        DataError: the answer has reasoning or tool calls under keys that the template does not render.
    """
    message = row.messages[turn]
    if turn < len(row.messages) - 1:
        as_last = row.up_to(turn)
        first, last, last_prompt = as_last.span(turn)
        same = as_last.text.startswith(row.text[:start])
        first = start if same else before_opening(as_last, turn, (first, last, last_prompt))
        answer = as_last.text[first:last]
        missing = missing_keys(as_last, turn, answer, last_prompt)
        if not missing:
            return (start, answer, prompt) if same else _moved(row, turn, start, last_prompt, first, answer)
    else:
        missing = missing_keys(row, turn, row.text[start:], prompt)
    if message.more:
        raise DataError(_not_rendered(row.where, turn, missing))
    return start, _put_back(message.content.strip(), prompt, row.text[:start]), prompt


def before_opening(row: Rendering, turn: int, span: Span) -> int:
    """The beginning of an answer that is put back whole: before the block for reasoning that the prompt opens.

    The text may have an empty block there. A tag that the answer does not close, such as <|assistant|>, is the header.
    """
    start, end, prompt = span
    opening = _OPENING.search(prompt)
    if opening is None or not row.text.startswith(prompt[: opening.start()]):
        return start
    closing = f"{opening[1][0]}/{opening[1][1:]}"
    return opening.start() if closing in row.text[start:end] + row.messages[turn].content else start


def squeezed(text: str) -> str:
    """The text without blanks."""
    return "".join(text.split())


def _moved(row: Rendering, turn: int, start: int, prompt: str, first: int, answer: str) -> tuple[int, str, str]:
    """An answer from a text that renders the turns before it in another way, behind its header in this text."""
    header, opened = prompt.removeprefix(row.before(turn)), prompt[first:]
    for known in (header, header.removesuffix(opened)):
        place = row.text.rfind(known, 0, start) if known else -1
        if place >= 0:
            start = place + len(known) - (len(opened) if known == header else 0)
            break
    return start, answer, row.text[:start] + opened


def _not_rendered(where: str, turn: int, keys: list[str]) -> str:
    way_out = "Write it into the content, as the model is meant to write it"
    if keys == ["content"]:
        way_out = "Take the row out"
    return (
        f"The model's chat template does not render {' and '.join(keys)} of {where} (turn {turn + 1}), so it "
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
    return added + answer.removeprefix(opening).removeprefix(added[len(added.rstrip()) :])


def _missing_texts(answer: str, message: Message, prompt: str) -> list[str]:
    """The keys of the turn's content and reasoning whose text is not in the answer; blanks do not count."""
    more = json.loads(message.more) if message.more else {}
    rendered, opening = squeezed(answer), _OPENING.search(prompt)
    content = message.content.strip()
    if opening and content.startswith(opening[1]):
        content = content.removeprefix(opening[1])
        if not rendered.startswith((squeezed(content), squeezed(opening[1] + content))):
            return ["content"]  # an empty block for reasoning stands before the answer's own
    if _closes_nothing(content, opening[1] if opening else "") and content not in answer:
        return ["content"]  # the template takes what stands before the tag for reasoning
    parts = {"content": content} | {key: value for key, value in more.items() if isinstance(value, str)}
    return [key for key, part in parts.items() if squeezed(part) not in rendered]


def _closes_nothing(content: str, opened: str) -> bool:
    """Whether a text has a closing tag, such as a </think> that it quotes, without the opening one before it."""
    for tag in _CLOSING.finditer(content):
        opening = tag[0].replace("/", "", 1)
        if opening != opened and opening not in content[: tag.start()]:
            return True
    return False
