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
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
_BARE = ("analysis", "assistantfinal")  # the channels of gpt-oss, without their special tokens
_AROUND_ANSWER = re.compile(  # what some templates put around the answer after thoughts
    r"^\s*<\|begin_of_solution\|>\s*|\s*(<\|end_of_solution\|>|\[END FINAL RESPONSE\])", re.I
)


def opens_thoughts(prompt: str) -> bool:
    """Whether a generation prompt ends with an opening marker, so that the model begins with its thoughts."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in MARKERS))


def split_thoughts(text: str, opened: bool | None = None) -> tuple[str, str]:
    """Split a model's text into thoughts and answer.

    Thoughts stand at the beginning. A closing marker without an opening one ends thoughts if the prompt opened them,
    as many templates do. Where the prompt is not known, it does so only before a line break or alone on its line,
    because an answer may quote a marker, or at the very beginning. A marker inside an answer is part of the answer. An
    opening in words, such as gpt-oss's `analysis` without special tokens, counts only together with its closing.

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
    return "\n\n".join(filter(None, thoughts)), _AROUND_ANSWER.sub("", text) if thoughts else text


def _first_thoughts(text: str, opened: bool | None) -> tuple[str, str] | None:
    """The first thoughts and the rest; None if the text begins with its answer."""
    body = text.lstrip()
    for opening, closing in (*MARKERS, _BARE):
        begun = _opening(opening).match(body)
        rest = body[begun.end() :] if begun else body
        end = re.search(_closing(closing, known=bool(begun or opened)), rest, re.M | re.I)
        if begun and end is None and not opening[0].isalpha():
            return rest.strip(), ""
        may_end = begun or opened is not False or closing.startswith("<|") or (end is not None and end.start() == 0)
        if end is not None and may_end and (begun or opened or opening not in rest[: end.start()]):
            return rest[: end.start()].strip(), rest[end.end() :].lstrip()
    return (text.strip(), "") if opened else None


def _opening(marker: str) -> re.Pattern[str]:
    """The pattern of an opening marker; a tag may have attributes, as in `<think time=1>`."""
    tag = marker.startswith("<") and marker[1:-1].isalpha()
    return re.compile(rf"{re.escape(marker[:-1])}(\s+[\w-]+\s*=[^<>]*)?>" if tag else re.escape(marker), re.I)


def _closing(marker: str, known: bool) -> str:
    """The pattern of a closing marker; unless thoughts are known to be open, first, before a line break or alone.

    A marker of control tokens counts anywhere.
    """
    exact = re.escape(marker)
    anywhere = known or marker.startswith("<|")
    return exact if anywhere else rf"\A{exact}|^[ \t]*{exact}[ \t]*$|{exact}[ \t]*\r?\n"
