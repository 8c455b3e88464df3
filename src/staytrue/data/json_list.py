"""Reads a JSON file that is one list of rows, row by row, so that only one row is in memory beside those kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from staytrue.data.jsonl import DECODER, LONGEST_LINE, TOO_LONG, shown
from staytrue.errors import DataError

_PIECE = 1 << 16  # characters that are read at once
_BLANK = " \t\n\r"


def json_list(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a list.

    Raises:
        DataError: the file is one object.
        ValueError: it is no JSON, or an entry is no object; the message names the entry.
    """
    with path.open(encoding="utf-8", newline="") as file:
        text = _more(file, "")
        if not text.startswith("["):
            raise _no_list(path, text + file.read(LONGEST_LINE))
        number, text = 1, text[1:]
        while True:
            text = _more(file, text)
            if number == 1 and text.startswith("]"):
                break
            value, text = _entry(file, text, number)
            yield value
            text = _more(file, text)
            if not text.startswith(","):
                break
            number, text = number + 1, text[1:]
        if text[:1] != "]":
            raise ValueError(
                f"after entry {number} of the list belongs a comma or the list's end, not {shown(text[:9])}"
            )
        if _more(file, text[1:]):
            raise ValueError("something follows the list")


def _more(file: IO[str], text: str) -> str:
    """The text from its first character that is not blank, read on where it has none."""
    text = text.lstrip(_BLANK)
    while not text and (read := file.read(_PIECE)):
        text = read.lstrip(_BLANK)
    return text


def _entry(file: IO[str], text: str, number: int) -> tuple[dict[str, Any], str]:
    """One object of the list and the text after it."""
    while True:
        try:
            value, end = DECODER.raw_decode(text)
            break
        except json.JSONDecodeError as error:
            if len(text) > LONGEST_LINE:
                raise ValueError(f"entry {number} of the list {TOO_LONG}, or is not JSON") from None
            if not (read := file.read(_PIECE)):
                raise ValueError(f"entry {number} of the list is not JSON: {error.msg}") from None
            text += read
        except ValueError as error:
            raise ValueError(f"entry {number} of the list: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"entry {number} of the list is {shown(value)}, not an object")
    return value, text[end:]


def _no_list(path: Path, text: str) -> DataError | ValueError:
    if len(text) > LONGEST_LINE:
        return DataError(f"{path} is one large value, not a list of rows; write one object a line.")
    try:
        value = DECODER.decode(text)
    except ValueError as error:
        return ValueError(str(error))
    held = f"one object with {shown(list(value))}" if isinstance(value, dict) else shown(value)
    return DataError(f"{path} is {held}, not a list of rows; write that list alone.")
