"""`commented` writes a recipe as YAML in which a comment above each key gives the reason for its value."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from staytrue.utils.yaml12 import to_yaml

_WIDTH = 110
_HEAD = (
    "Written by `staytrue new`: a place to start, with the reason for each value. docs/formats.md describes every key. "
    "`staytrue check` estimates steps, memory and time; `staytrue train` trains."
)


@dataclass(frozen=True)
class RecipeKey:
    """A key of a recipe.

    Attributes:
        key: its name.
        value: plain data; a list of keys is a section: a mapping, or under `defenses` a list.
        why: the reason for the value, as sentences; "" for none.
    """

    key: str
    value: Any
    why: str


def commented(lines: Sequence[RecipeKey]) -> str:
    """The recipe as YAML.

    >>> kl = RecipeKey("kl", {"weight": 0.1}, "Yours.")
    >>> print(commented([RecipeKey("seed", 0, "Of all."), RecipeKey("defenses", [kl], "")]))
    ... # doctest: +ELLIPSIS
    # Written by ...
    schema: 1
    <BLANKLINE>
    # Of all.
    seed: 0
    <BLANKLINE>
    defenses:
      # Yours.
      - kl: {weight: 0.1}
    <BLANKLINE>
    """
    parts = ["\n".join([*_comment(_HEAD, ""), "schema: 1"])]
    parts += ["\n".join(_section(line)) for line in lines]
    return "\n\n".join(parts) + "\n"


def _section(line: RecipeKey) -> Iterator[str]:
    yield from _comment(line.why, "")
    if isinstance(line.value, list):
        yield f"{line.key}:"
        for inner in line.value:
            yield from _comment(inner.why, "  ")
            yield f"  {'- ' if line.key == 'defenses' else ''}{inner.key}: {_yaml(inner.value)}"
    else:
        yield f"{line.key}: {_yaml(line.value)}"


def _comment(text: str, indent: str) -> list[str]:
    """A text as comment lines; characters that end a line or turn its direction are written as escapes."""
    plain = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return textwrap.wrap(plain, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: Any) -> str:
    text = to_yaml(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("...\n").strip()
