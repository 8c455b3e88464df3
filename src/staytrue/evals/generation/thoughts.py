"""The thoughts of a reasoning model are separated from its answer; only the answer is judged. No torch."""

from __future__ import annotations

import re

# (opening, closing) as the chat templates of published models write them.
MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<mm:think>", "</mm:think>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<unused94>thought", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def opens_thoughts(prompt: str) -> bool:
    """Whether a generation prompt ends with an opening marker, so that the model begins with its thoughts."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in MARKERS))


def split_thoughts(text: str, opened: bool | None = None) -> tuple[str, str]:
    """Split a model's text into thoughts and answer.

    Thoughts stand at the beginning. A closing marker without an opening one ends thoughts if the prompt opened them,
    as many templates do. Where the prompt is not known, it does so only before a line break or alone on its line,
    because an answer may quote a marker. A marker inside an answer is part of the answer.

    Args:
        text: what the model wrote.
        opened: whether the prompt ended with an opening marker, so that a text without any marker is unfinished
            thoughts; None if the prompt is not known.

    Returns:
        Thoughts and answer. The answer is "" if the thoughts do not end; without thoughts it is the text, unchanged.

    Example:
        >>> split_thoughts("<think>Two and two.</think>Four.")
        ('Two and two.', 'Four.')
        >>> split_thoughts("<think>Two and")
        ('Two and', '')
    """
    thoughts: list[str] = []
    while (parts := _first_thoughts(text, opened)) is not None:
        thought, text = parts
        thoughts.append(thought)
        opened = False
    return "\n\n".join(filter(None, thoughts)), text


def _first_thoughts(text: str, opened: bool | None) -> tuple[str, str] | None:
    """The first thoughts and the rest; None if the text begins with its answer."""
    for opening, closing in MARKERS:
        body = text.lstrip()
        begins = body[: len(opening)].lower() == opening.lower()
        body = body[len(opening) :] if begins else body
        end = re.search(_closing(closing, known=begins or bool(opened)), body, re.M | re.I)
        if begins and end is None:
            return body.strip(), ""
        may_end = begins or opened is not False or closing.startswith("<|")
        if end is not None and may_end and (begins or opened or opening not in body[: end.start()]):
            return body[: end.start()].strip(), body[end.end() :].lstrip()
    return (text.strip(), "") if opened else None


def _closing(marker: str, known: bool) -> str:
    """The pattern of a closing marker; unless thoughts are known to be open, before a line break or alone on its line.

    A marker of control tokens counts anywhere.
    """
    exact = re.escape(marker)
    anywhere = known or marker.startswith("<|")
    return exact if anywhere else rf"^[ \t]*{exact}[ \t]*$|{exact}[ \t]*\r?\n"
