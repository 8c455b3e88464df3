"""Turns pydantic's validation errors into the sentences of our error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_ALIKE = 0.7  # of difflib: names that share less are no typing errors of each other
_MOST = 30  # names that a message lists


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
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 1 + lines[0].endswith(":")]).rstrip(".") + "."


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
        known: names of the keys of each section, by the section's name; for unknown keys.
        meanings: what each key means; for keys that are missing or have no value.
    """
    known, meanings = known or {}, meanings or {}
    return "; ".join(_sentence(fault, where, noun, known, meanings) for fault in error.errors(include_url=False))


def _sentence(
    fault: ErrorDetails, where: str, noun: str, known: Mapping[str, Iterable[str]], meanings: Mapping[str, str]
) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path)
    meaning = f": {meanings[key]}" if key in meanings else ""
    if fault["type"] == "missing":
        return f"{where} lacks the {noun} {key!r}, which has no default{meaning}"
    if fault["type"] == "extra_forbidden":
        return f"{where} has no {noun} {key!r}{nearest(path[-1], known.get('.'.join(path[:-1]), ()))}"
    if key and fault["input"] is None:
        return f"{where}: {key} has no value; write one{meaning}"
    reason = fault["msg"]
    return f"{where}: {key or 'the value'} is {fault['input']!r}, but: {reason[:1].lower()}{reason[1:]}"
