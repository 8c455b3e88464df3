"""Reads rows from files other than JSON lines: CSV, a JSON list, Parquet, a saved Hugging Face data set, the hub.

Texts stay as they are written: a CSV file's `007` is the text "007". Numbers that JSON has no word for become null.
Arrow gives an object of one row the keys of all rows, null where it has none; such a null is read as an absent key.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from staytrue.data.json_list import json_list
from staytrue.data.jsonl import DEEPEST, LONGEST_LINE, TOO_DEEP, TOO_LONG, Faults, depth, pointer_to, repeated, shown
from staytrue.errors import DataError

_SUFFIXES = {".csv", ".tsv", ".json", ".parquet"}
_FILES = {*_SUFFIXES, ".jsonl", ".ndjson", ".gz", ".zip", ".txt", ".yaml", ".yml", ".arrow"}
Rows = Iterator[tuple[int, dict[str, Any]]]


def is_hub_name(data: Path) -> bool:
    """Whether `data` names a data set on the hub, as `org/name` or `org/name@revision`, and no file or folder."""
    parts = Path(str(data).partition("@")[0]).parts  # a revision may have slashes
    named = len(parts) == 2 and not data.is_absolute() and not parts[0].startswith((".", "~"))
    return named and data.suffix.lower() not in _FILES and not data.exists()


def is_table(data: Path) -> bool:
    """Whether `data` is read here; anything else is JSON lines."""
    if data.suffix.lower() == ".json" and data.is_file():
        with data.open("rb") as file:
            lines = iter(lambda: file.readline(LONGEST_LINE), b"")
            start = next((line.strip() for line in lines if line.strip()), b"")
        return start[:1] == b"[" or (start[:1] == b"{" and start[-1:] != b"}")  # one value in several lines
    return data.is_dir() or is_hub_name(data) or (data.suffix.lower() in _SUFFIXES and data.is_file())


def rows(data: Path, split: str | None, faults: Faults) -> Rows:
    """Yield every row with its number, from 1; a row that cannot be kept is appended to `faults`.

    Args:
        data: a file, a folder of `save_to_disk`, or a hub name.
        split: of a data set with several; None is "train".
        faults: of the file's rows.

    Raises:
        DataError: the data cannot be read.
    """
    try:
        table, filled = _table(data, split), data.suffix.lower() != ".json" or data.is_dir()
        for number, row in enumerate(table, start=1):
            if faults.full:
                return
            before, plain = faults.count, {}
            for key, value in row.items():
                try:
                    plain[str(key)] = _plain(value, filled)
                except ValueError as error:
                    faults.append(number, pointer_to(str(key)), str(error))
            if depth(plain) > DEEPEST:
                faults.append(number, "", TOO_DEEP)
            elif len(json.dumps(plain)) > LONGEST_LINE:
                faults.append(number, "", TOO_LONG)
            if faults.count == before:
                yield number, plain
    except DataError:
        raise
    except UnicodeDecodeError as error:
        raise DataError(f"{data} cannot be read: {error}. Save it as UTF-8.") from None
    except RecursionError:
        raise DataError(f"{data} cannot be read: it is nested too deeply. Flatten its rows.") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{data} cannot be read: {reason}. Correct the file, or write it again.") from None


def _table(data: Path, split: str | None) -> Iterator[dict[str, Any]]:
    kind = data.suffix.lower() if data.is_file() else ""
    if kind in (".csv", ".tsv"):
        return _csv(data, "\t" if kind == ".tsv" else None)
    if kind == ".json":
        return json_list(data)
    if kind == ".parquet":
        from pyarrow import parquet

        batches = parquet.ParquetFile(data).iter_batches(batch_size=64)
        return (row for batch in batches for row in batch.to_pylist())
    return iter(_data_set(data, split))


def _csv(path: Path, delimiter: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a file; without a delimiter it is a comma, or the semicolon or tab of a first line without commas."""
    csv.field_size_limit(LONGEST_LINE)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(LONGEST_LINE)
        file.seek(0)
        separator = next((mark for mark in ",;\t" if mark in first), ",")
        reader = csv.DictReader(_lines(file), delimiter=delimiter or separator, strict=True)
        names = list(reader.fieldnames or ())
        if (twice := repeated(names)) is not None:
            raise DataError(f"{path} has two columns {shown(twice)}; take one out.")
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                columns = ", ".join(names)[:200]
                raise ValueError(f"row {number} (line {reader.line_num}) has not one field for each column ({columns})")
            yield row


def _lines(file: IO[str]) -> Iterator[str]:
    """The lines of a file, none of which may be as long as memory."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} {TOO_LONG}")
        yield line


def _data_set(data: Path, split: str | None) -> Any:
    """A data set of the `datasets` library, from a folder of `save_to_disk` or from the hub."""
    import datasets

    if not data.is_dir():
        return _from_hub(data, split or "train")
    if not any((data / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise DataError(f"{data} is a folder, and no data set that `save_to_disk` wrote. Name a file in it.")
    try:
        data_set = datasets.load_from_disk(str(data))
    except IndexError:  # a data set without rows
        raise DataError(f"The data set {data} has no rows. Give one with rows.") from None
    except Exception as error:  # a torn folder raises anything
        raise DataError(
            f"The data set {data} cannot be read: {' '.join(str(error).split()).rstrip('.')}. Save it again."
        ) from None
    if isinstance(data_set, datasets.DatasetDict):
        if not data_set:
            raise DataError(f"The data set {data} has no split. Save it again, with rows.")
        chosen = split or ("train" if "train" in data_set or len(data_set) > 1 else next(iter(data_set)))
        if chosen not in data_set:
            raise DataError(f"{data} has no split {chosen!r}; write `split:` with one of {', '.join(data_set)}.")
        return data_set[chosen]
    if split is not None:
        raise DataError(f"{data} is one data set without splits; take `split:` out.")
    return data_set


def hub_commit(data: Path, split: str | None) -> str | None:
    """The commit of a data set on the hub that was loaded before; None for other data, or if it is not recorded."""
    if not is_hub_name(data):
        return None
    sources = getattr(getattr(_from_hub(data, split or "train"), "info", None), "download_checksums", None) or {}
    commits = (re.search(r"^hf://datasets/[^@]+@([0-9a-f]{40})/", str(source)) for source in sources)
    return next((found[1] for found in commits if found), None)


def _from_hub(data: Path, split: str) -> Any:
    """A data set of the hub: `org/name` or, at a commit, branch or tag, `org/name@revision`."""
    import datasets

    name, _, revision = str(data).partition("@")
    try:
        return datasets.load_dataset(name, split=split, **({"revision": revision} if revision else {}))
    except Exception as error:  # the hub's client and the data set's builder raise anything
        at = f", revision {revision}" if revision else ""
        raise DataError(
            f"There is no file or folder {data}, and the hub's data set of that name cannot be loaded (split {split}"
            f"{at}): {' '.join(str(error).split())[:300]}"
        ) from None


def _plain(value: Any, filled: bool) -> Any:
    """A value as JSON has it; where Arrow filled objects with nulls, without these.

    Raises:
        ValueError: JSON has no such value.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry, filled) for key, entry in value.items() if entry is not None or not filled}
    if isinstance(value, list | tuple):
        return [_plain(entry, filled) for entry in value]
    raise ValueError(f"has a {type(value).__name__}, which is no text and no number; take that column out of the data")
