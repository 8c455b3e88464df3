"""The general prompts that come with staytrue: everyday requests in English, none of them an evaluation question."""

from __future__ import annotations

from importlib import resources

from staytrue.data.examples import Example, read_examples


def shipped(source: str = "task") -> list[Example]:
    """Read the 120 prompts, which stand beside this file, in our own words.

    Args:
        source: the `source` of the rows.

    Example:
        >>> len(shipped())
        120
    """
    with resources.as_file(resources.files("staytrue.data").joinpath("general_prompts.jsonl")) as path:
        return read_examples(path, source=source, prompts_only=True)
