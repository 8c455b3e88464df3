"""Reads and writes files: atomic writes, append-only JSONL, hashes. No torch."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from staytrue.errors import RequestError

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")


def write_atomic(path: Path, content: str | bytes, *, sync: bool = True) -> None:
    """Write a file by renaming a temporary one, so that `path` holds the old content or all of the new.

    Args:
        path: the file; missing folders are created.
        content: text is written as UTF-8.
        sync: flush to disk before the rename, so that this also holds after a power failure.

    Raises:
        OSError: the file cannot be written; no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}")  # unique, since several processes may write one file
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `write_atomic` that killed processes left; none may write there now."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write JSON by `write_atomic`; keys keep their order, and NaN raises ValueError."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line to a JSONL file. A crash can truncate only the last line, and the next append removes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as whole:  # a truncated line would make the next row unreadable
        if whole.tell() and not _ends_a_line(whole):
            whole.truncate(_last_line_end(whole))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSONL file by `write_atomic`, in the form of `append_row`."""
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _last_line_end(file: IO[bytes]) -> int:
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a JSONL file written by `append_row`, without a truncated last line; [] if no file exists.

    Raises:
        ValueError: a line is no JSON object; the message begins with its number.
    """
    return [row for _, row in numbered_rows(path)]


def numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read the rows of a JSONL file as `read_rows` does, each with the number of its line."""
    rows = numbered_values(path)
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is {json.dumps(row)[:60]}, not an object")
    return rows


def numbered_values(path: Path) -> list[tuple[int, Any]]:
    """Read the values of a JSONL file, whether objects or not, each with the number of its line."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    whole = lines[:-1]  # after the last newline: nothing, or a truncated line
    return [(number, _value(line, number)) for number, line in enumerate(whole, start=1) if line.strip()]


def _value(line: str, number: int) -> Any:
    """The value on one line; JSON's own messages count every line as the first."""
    if line.startswith("\ufeff"):
        raise ValueError(f"line {number} begins with a byte-order mark; save the file as plain UTF-8")
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is no JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is no JSON: {error}") from None


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_no_constants)


def refuse_pipe(path: Path) -> None:
    """Refuse a pipe, a socket or a device: it might never end, and can be read only once.

    A path that does not exist passes; its reader refuses it.

    Raises:
        RequestError: it is one of these; `/dev/stdin` and `<(command)` are pipes.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    kind = "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise RequestError(f"{path} is {kind}, not a file. Write its content to a file, and name that.")


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, or of a folder's weights and configuration (names, contents; sorted by name)."""
    digest = hashlib.sha256()
    files = (
        [path]
        if path.is_file()
        else sorted(p for p in path.iterdir() if p.suffix in {".safetensors", ".json", ".jinja", ".model"})
    )
    for file in files:
        digest.update(b"" if path.is_file() else file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def is_full_disk(error: BaseException) -> bool:
    """Return whether the operating system reports a full disk, or the user's share of one."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def user_cache() -> Path:
    """Folder of the user's cache: `$XDG_CACHE_HOME`, by default ~/.cache.

    Raises:
        RequestError: there is neither.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError:
        raise RequestError("There is no home folder for the cache; set XDG_CACHE_HOME to a folder.") from None


def refuse_existing(out: Path, *, allow_empty_folder: bool = False) -> None:
    """Refuse to write where something exists, or where nothing can be created.

    Args:
        out: the file or folder to write.
        allow_empty_folder: whether `out` may be an existing empty folder.

    Raises:
        RequestError: the sentence names the path and what is in the way.
    """
    if allow_empty_folder and out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise RequestError(f"{out} exists already. Choose another path with --out, or remove it yourself.")
    _check_parent(out)


def check_out_folder(out: Path) -> None:
    """Refuse a folder for results that is a file, or where nothing can be created; it may exist and hold files.

    Raises:
        RequestError: the sentence names the path and what is in the way.
    """
    if out.is_dir():
        if not os.access(out, os.W_OK):
            raise RequestError(f"The folder {out} is not writable. Choose another with --out.")
    elif out.exists() or out.is_symlink():
        raise RequestError(f"{out} is a file, and a folder is written. Choose another path with --out.")
    else:
        _check_parent(out)


def check_out_file(out: Path) -> None:
    """Refuse a file for results that is a folder, or where nothing can be created; an earlier file may exist.

    Raises:
        RequestError: the sentence names the path and what is in the way.
    """
    if out.is_dir():
        raise RequestError(f"{out} is a folder, and a file is written. Name a file in it with --out.")
    _check_parent(out)


def _check_parent(out: Path) -> None:
    """Refuse a path below a file, or below a folder in which this process must not write."""
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise RequestError(f"{out} cannot be created: {parent} is a file. Choose another path with --out.")
    if not os.access(parent, os.W_OK):
        raise RequestError(f"{out} cannot be created: {parent} is not writable. Choose another path with --out.")
