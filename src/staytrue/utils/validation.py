"""Turns pydantic's validation errors into the sentences of our error messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_ALIKE = 0.7  # of difflib: names that share less are no typing errors of each other
_MOST = 30  # names that a message lists
_KIND = re.compile(r"\[key\]$|(str|int|float|bool|path)$|(literal|tuple|list|dict|lax-or-strict|function-\w+|union)\[")
_WORDS = {  # pydantic's types of faults: what to write
    "string_type": "text",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), "keys with values"),
    "path_type": "a path",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, or all of them if they are few, as the end of an error message.

    >>> nearest("wieght", ["weight", "direction"])
    "; did you mean 'weight'?"
    >>> nearest("x", ["weight", "direction"])
    '; there are: weight, direction.'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(known)}." if len(known) <= _MOST else "; docs/formats.md has the keys."


def in_one_line(error: BaseException) -> str:
    r"""An error of another library in one line; errors whose text says little alone are named.

    >>> in_one_line(KeyError("a"))
    "KeyError: 'a'"
    >>> in_one_line(ValueError("two\nlines"))
    'two lines'
    """
    text = " ".join(str(error).split())
    return (
        text if isinstance(error, TypeError | ValueError | RuntimeError) and text else f"{type(error).__name__}: {text}"
    )


def first_line(error: BaseException) -> str:
    r"""The first line of another library's error as the end of a sentence; the name of an error without text.

    After a colon the next line is part of it.

    >>> first_line(OSError("there is no file\nTry another."))
    'there is no file.'
    >>> first_line(RuntimeError("Errors in loading:\n\tsize mismatch for a\n\tsize mismatch for b"))
    'Errors in loading: size mismatch for a.'
    >>> first_line(OSError("None of: \n(1) a file,\n(2) another"))
    'None of: (1) a file.'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")]).rstrip(".,") + "."


def describe(
    error: ValidationError,
    where: str,
    noun: str = "key",
    known: Mapping[str, Iterable[str]] | None = None,
    meanings: Mapping[str, str] | None = None,
) -> str:
    """Describe each fault of a validation error in a sentence, joined by semicolons.

    Args:
        error: what pydantic raised.
        where: the file, section or defense, the beginning of each sentence.
        noun: what a recipe calls the values: "key" or "field".
        known: names of the keys of each section, or of each entry of a list, by its name; for unknown keys.
        meanings: what each key means; for keys that are missing or have no value.
    """
    known, meanings = known or {}, meanings or {}
    places: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for fault in error.errors(include_url=False):
        places.setdefault(_place(fault), []).append(fault)
    return "; ".join(_sentence(place, faults, where, noun, known, meanings) for place, faults in places.items())


def _place(fault: ErrorDetails) -> tuple[int | str, ...]:
    """Where a value stands in the file, without pydantic's names for the kinds that it might have been."""
    kinds = (i for i, part in enumerate(fault["loc"]) if isinstance(part, str) and _KIND.match(part))
    return fault["loc"][: next(kinds, None)]


def _sentence(
    place: tuple[int | str, ...],
    faults: list[ErrorDetails],
    where: str,
    noun: str,
    known: Mapping[str, Iterable[str]],
    meanings: Mapping[str, str],
) -> str:
    """One sentence about a value, whatever kinds it might have been."""
    first, path = faults[0], [str(part) for part in place]
    key = ".".join(path)
    meaning = f": {meanings[key]}" if key in meanings else ""
    if first["loc"][-1:] == ("[key]",):
        choices = re.findall("'([^']*)'", first.get("ctx", {}).get("expected", ""))
        return f"{where}: {'.'.join(path[:-1])} has no {noun} {path[-1]!r}{nearest(path[-1], choices)}"
    if first["type"] == "missing":
        return f"{where} lacks the {noun} {key!r}, which has no default{meaning}"
    if first["type"] == "extra_forbidden":
        section = ".".join(part for part in place[:-1] if isinstance(part, str))  # of a list, without the number
        return f"{where} has no {noun} {key!r}{nearest(path[-1], known.get(section, ()))}"
    if key and first["input"] is None:
        return f"{where}: {key} has no value; write one{meaning}"
    value = min(faults, key=lambda fault: len(fault["loc"]))["input"]
    return f"{where}: {key or 'the value'} is {value!r}{_way_out(faults, len(place))}"


def _way_out(faults: list[ErrorDetails], depth: int) -> str:
    """What to write instead, or what is wrong with a value that is of the right kind."""
    wanted = [text for fault in faults for text in _wanted(fault, depth)]
    if len(wanted) >= len(faults):
        return f"; write {_either(list(dict.fromkeys(wanted)))}"
    messages = [str(fault.get("ctx", {}).get("error", fault["msg"])) for fault in faults]
    return f", but: {' or '.join(message[:1].lower() + message[1:] for message in messages)}"


def _wanted(fault: ErrorDetails, depth: int) -> Iterator[str]:
    """The kinds or words of which a value should have been one; none where its kind is right."""
    inside = "a list of which each is " if fault["loc"][depth + 1 :] else ""
    if fault["type"] == "literal_error":
        yield from (inside + word for word in re.split(", | or ", fault["ctx"]["expected"]))
    elif fault["type"] in _WORDS:
        yield inside + _WORDS[fault["type"]]


def _either(texts: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
