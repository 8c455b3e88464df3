"""A strict JSONL reader that reports every fault with its line number. No torch.

It refuses what other loaders accept or report badly: other encodings, byte-order marks, very long lines, deep nesting,
repeated keys, NaN and infinities.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.errors import DataError
from staytrue.utils.files import refuse_pipe

LONGEST_LINE = 1 << 20  # bytes
DEEPEST = 32  # levels of nesting
TOO_LONG = f"is longer than {LONGEST_LINE:,} bytes; split or shorten the row"
TOO_DEEP = f"is nested more than {DEEPEST} levels deep; flatten the row"
_KINDS_SHOWN = 100
_LINES_SHOWN = 3  # of one fault that many lines have
_FAULTS_COUNTED = 10_000  # after so many the file is not read on
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK": "a zip archive or an Excel workbook",
    b"PAR1": "Parquet",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"ARRO": "Arrow",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True)
class Fault:
    """One fault of a file."""

    line: int
    pointer: str  # JSON pointer (RFC 6901); "" is the whole line
    what: str


class Faults:
    """The faults of one file, up to ten thousand."""

    def __init__(self) -> None:
        self.all: list[Fault] = []

    def append(self, line: int, pointer: str, what: str) -> None:
        """Add a fault."""
        self.all.append(Fault(line, pointer, what))

    @property
    def count(self) -> int:
        """The number of faults."""
        return len(self.all)

    @property
    def full(self) -> bool:
        """Whether so many faults are counted that the file need not be read on."""
        return self.count >= _FAULTS_COUNTED


def objects(path: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every JSON object with its line number; faults of other lines are appended to `faults`.

    Raises:
        DataError: the file cannot be read, or is not text.
        RequestError: it is a pipe or a device.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            _refuse_other_kinds(path, file.read(4))
            file.seek(0)
            number, begun = 0, False
            while not faults.full and (raw := file.readline(LONGEST_LINE + 1)):
                number += 1
                if len(raw) > LONGEST_LINE:
                    faults.append(number, "", TOO_LONG)
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(LONGEST_LINE)
                    continue
                if not begun and raw.strip():
                    begun = True
                    _refuse_list(path, raw)
                value = _value(raw, number, faults)
                if value is not None:
                    yield number, value
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name a file in it.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its path.") from None


def refuse(path: Path, faults: Faults, noun: str = "line") -> None:
    """Raise one DataError that lists a hundred different faults and counts the rest; do nothing without faults.

    A fault that several lines have is written once, with its lines.
    """
    if not faults.count:
        return
    kinds: dict[tuple[str, str], list[int]] = {}
    for fault in sorted(faults.all, key=lambda fault: fault.line):
        kinds.setdefault((fault.pointer, fault.what), []).append(fault.line)
    listed = list(kinds.items())[:_KINDS_SHOWN]
    lines = [
        f"  {_places(noun, numbers)}{f', {pointer}' if pointer else ''}: {what}" for (pointer, what), numbers in listed
    ]
    if left := faults.count - sum(len(numbers) for _, numbers in listed):
        lines.append(f"  ... and {left:,} more")
    many = f"{faults.count:,} fault{'s' if faults.count > 1 else ''}{' or more' if faults.full else ''}"
    raise DataError(f"{path} has {many}:\n" + "\n".join(lines))


def _places(noun: str, numbers: list[int]) -> str:
    """Where a fault is.

    >>> _places("line", [4]), _places("line", [1, 2]), _places("row", list(range(1, 8)))
    ('line 4', 'lines 1 and 2', 'rows 1, 2, 3 and 4 more')
    """
    first = [str(number) for number in numbers[:_LINES_SHOWN]]
    if len(numbers) == 1:
        return f"{noun} {first[0]}"
    if len(numbers) > len(first):
        first.append(f"{len(numbers) - len(first):,} more")
    return f"{noun}s {', '.join(first[:-1])} and {first[-1]}"


def shown(value: Any) -> str:
    """The repr of a value, cut to sixty characters for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def pointer_to(key: str) -> str:
    """The part of a JSON pointer that names a key, cut to sixty characters; what a terminal may obey is escaped."""
    visible = "".join(c if c.isprintable() else repr(c)[1:-1] for c in key[:61])
    return "/" + (visible if len(visible) <= 60 else visible[:57] + "...").replace("~", "~0").replace("/", "~1")


def repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs again; None if each occurs once."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None and b"\0" in start:
        kind = "UTF-16, UTF-32 or no text"
    if kind is not None:
        raise DataError(f"{path} is {kind}, not JSON lines in UTF-8. Unpack or convert it first.")
    if start.startswith(b"\xef\xbb\xbf"):
        raise DataError(f"{path} begins with a byte-order mark. Save it as plain UTF-8.")


def _refuse_list(path: Path, line: bytes) -> None:
    """Refuse a file whose first line begins a list of objects."""
    if re.match(rb"\s*\[\s*(\{|$)", line):
        named = "" if path.suffix.lower() == ".json" else f", or, if these are chat rows, name it {path.stem}.json"
        raise DataError(f"{path} is a JSON list, not JSON lines. Write one object a line{named}.")


def _value(raw: bytes, number: int, faults: Faults) -> dict[str, Any] | None:
    """The object on one line; None for a blank line, or for a fault, which is appended."""
    if not raw.strip():
        return None
    parsed = _parsed(raw)
    if isinstance(parsed, dict):
        return parsed
    faults.append(number, "", parsed)
    return None


def _parsed(raw: bytes) -> dict[str, Any] | str:
    """The object on one line, or a description of the line's fault."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {raw[error.start]:#04x} at {error.start}); save the file as UTF-8"
    try:
        value = json_value(text)
        too_deep = text.count("[") + text.count("{") > DEEPEST and depth(value) > DEEPEST
    except json.JSONDecodeError as error:  # its own message says "line 1", which is not the file's
        return f"is not JSON: {error.msg} at column {error.colno}; write one object a line"
    except ValueError as error:
        remedy = error.remedy if isinstance(error, _RefusedError) else "write one object a line"
        return f"is not JSON: {error}; {remedy}"
    except RecursionError:
        too_deep = True
    if too_deep:
        return TOO_DEEP
    if not isinstance(value, dict):
        return f"is {shown(value)}, not an object; write one object a line"
    return value


def json_value(text: str) -> Any:
    """A JSON text's value.

    Raises:
        ValueError: it is no JSON, repeats a key, or has a number that is not finite.
    """
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte-order mark")
    return DECODER.decode(text)


def depth(value: Any) -> int:
    """The levels of lists and objects in a value."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max(map(depth, children), default=0)


class _RefusedError(ValueError):
    """What Python's JSON takes and other programs read otherwise, and what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        key = shown(repeated(key for key, _ in pairs))
        raise _RefusedError(f"the key {key} occurs twice in one object", "take one out")
    return value


def _no_constants(name: str) -> Any:
    raise _RefusedError(f"{name} is not a JSON number", "write null, or a number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _RefusedError(f"{shown(text)} is too large for a number", "write a smaller number")
    return number


def _whole(text: str) -> int:
    """A whole number that a float can hold too; other programs read every number as a float."""
    if len(text) > 300:
        _finite(text)
    return int(text)


DECODER = json.JSONDecoder(
    object_pairs_hook=_no_twins, parse_constant=_no_constants, parse_float=_finite, parse_int=_whole
)
