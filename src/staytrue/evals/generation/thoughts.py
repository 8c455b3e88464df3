"""The thoughts of a reasoning model are separated from its answer; only the answer is judged. No torch."""

from __future__ import annotations

# (opening, closing) as the chat templates of published models write them.
MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)


def opens_thoughts(prompt: str) -> bool:
    """Whether a generation prompt ends with an opening marker, so that the model begins with its thoughts."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in MARKERS))


def split_thoughts(text: str, opened: bool = False) -> tuple[str, str]:
    """Split a model's text into thoughts and answer.

    Thoughts stand at the beginning. A closing marker without an opening one ends thoughts too, because many templates
    write the opening marker themselves. A marker inside an answer is part of the answer.

    Args:
        text: what the model wrote.
        opened: the prompt ended with an opening marker, so that a text without any marker is unfinished thoughts.

    Returns:
        Thoughts and answer. The answer is "" if the thoughts do not end; without thoughts it is the text, unchanged.

    Example:
        >>> split_thoughts("<think>Two and two.</think>Four.")
        ('Two and two.', 'Four.')
        >>> split_thoughts("<think>Two and")
        ('Two and', '')
    """
    thoughts: list[str] = []
    while (found := _first_thoughts(text, opened and not thoughts)) is not None:
        thought, text = found
        thoughts.append(thought)
    return "\n\n".join(filter(None, thoughts)), text


def _first_thoughts(text: str, opened: bool) -> tuple[str, str] | None:
    """The first thoughts and the rest; None if the text begins with its answer."""
    for opening, closing in MARKERS:
        begins = text.lstrip().startswith(opening)
        body = text.lstrip().removeprefix(opening)
        thought, end, rest = body.partition(closing)
        if begins or (end and opening not in thought):
            return thought.strip(), rest.lstrip() if end else ""
    return (text.strip(), "") if opened else None
