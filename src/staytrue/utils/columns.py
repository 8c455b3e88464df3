"""`refuse_wrong` and `checked_rows` check what a file holds that may be damaged or edited by hand. No torch.

Each known key of a JSON object, or column of a row, has a kind. A value of another kind is refused where the file is
read, so that no later code meets it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from staytrue.utils.files import numbered_values

_INFINITE = float("inf")


class Kind(NamedTuple):
    """A kind of value has a name, the end of a sentence, and a test of whether a value is of it."""

    name: str
    has: Callable[[Any], bool]


TEXT = Kind("text", lambda value: isinstance(value, str))
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind(
    "a number",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _INFINITE,
)
COUNT = Kind(
    "a whole number of at least 0",
    lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0,
)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))


def or_null(kind: Kind) -> Kind:
    """Return the kind of a value that may also be null."""
    return Kind(f"{kind.name} or null", lambda value: value is None or kind.has(value))


def refuse_wrong(
    values: Mapping[str, Any], kinds: Mapping[str, Kind], needed: Iterable[str] = (), what: str = "it"
) -> None:
    """Refuse values without a needed key, or with a value of another kind than its key has.

    Args:
        values: a JSON object.
        kinds: of the keys that are checked where they are present.
        needed: keys that must be present.
        what: the object in the sentence.

    Raises:
        ValueError: what is wrong, as a part of a sentence, such as "it has null as 'logs', not an object".
    """
    for key in needed:
        if key not in values:
            raise ValueError(f"{what} has no {key!r}")
    for key, kind in kinds.items():
        if key in values and not kind.has(values[key]):
            raise ValueError(f"{what} has {_shown(values[key])} as {key!r}, not {kind.name}")


def checked_rows(file: Path, kinds: Mapping[str, Kind], needed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read the rows of a JSONL file, as `read_rows` does, and check each as `refuse_wrong` does.

    Raises:
        ValueError: what is wrong, with the number of the row's line.
    """
    rows, needed = numbered_values(file), tuple(needed)
    for number, row in rows:
        refuse_wrong(row if isinstance(row, dict) else {}, kinds, needed, f"row {number}")
    return [row for _, row in rows]


def _shown(value: Any) -> str:
    """A value as JSON, cut to sixty characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
