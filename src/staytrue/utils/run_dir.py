"""The run folder: a manifest, append-only JSONL, and files that are either whole or absent. No torch.

A run folder holds `manifest.json` (state, versions, hashes), `recipe.yaml` (resolved), `metrics.jsonl`, `holdout.jsonl`
when rows were reserved, `model/` when training finished, and `eval/` when it was measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from staytrue.errors import RequestError

SCHEMA = 1
_PACKAGES = ("staytrue", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or all of the new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def write_json(path: Path, value: Any) -> None:
    """`write_whole` for JSON, keys in the order given; NaN is refused."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line to a JSONL file; a crash can only tear the last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as whole:  # what a crash tore off would make the next row unreadable too
        if whole.tell() and not _ends_a_line(whole):
            whole.truncate(_last_line_end(whole))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _ends_a_line(file: IO[bytes]) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _last_line_end(file: IO[bytes]) -> int:
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file of ours, without a torn last line; [] when there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    whole = lines[:-1]  # what follows the last newline is torn, or empty
    return [json.loads(line) for line in whole if line.strip()]


def sha256_of(path: Path) -> str:
    """Hash of a file, or of a folder's weights and configuration (names and contents, in order)."""
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


def versions() -> dict[str, str]:
    """Python, platform and the packages that decide a result."""
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


@dataclass
class RunDir:
    """One run's folder, from its making to its end."""

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def refuse_existing(cls, path: Path) -> None:
        """Raise RequestError when something stands where the run should be written."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RequestError(f"{path} exists already. Name another folder with --out, or remove it yourself.")
        parent = next(p for p in path.absolute().parents if p.exists())
        if not parent.is_dir():
            raise RequestError(f"{path} cannot be made: {parent} is a file. Name another folder with --out.")
        if not os.access(parent, os.W_OK):
            raise RequestError(f"{path} cannot be made: {parent} is not writable. Name another folder with --out.")

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any]) -> RunDir:
        """Make the folder, and the manifest that says a run has begun."""
        cls.refuse_existing(path)
        path.mkdir(parents=True, exist_ok=True)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        run = cls(path, {"schema": SCHEMA, "state": "running", "started": started, "versions": versions(), **facts})
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run.

        Raises:
            RequestError: the folder is not a run of ours.
        """
        file = path / "manifest.json"
        if not file.is_file():
            raise RequestError(f"{path} is not a run folder: it has no manifest.json. `staytrue train` makes one.")
        try:
            return cls(path, json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RequestError(f"{file} cannot be read ({error}); train the run again.") from None

    def save(self, **facts: Any) -> None:
        """Write the manifest, with more facts."""
        self.manifest.update(facts)
        write_json(self.path / "manifest.json", self.manifest)

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Whatever happens inside, the manifest says how it ended: done, stopped, or failed and why."""
        begun = time.monotonic()
        try:
            yield
        except KeyboardInterrupt:
            self.save(state="stopped", seconds=round(time.monotonic() - begun, 2))
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            self.save(state="failed", seconds=round(time.monotonic() - begun, 2), reason=reason)
            raise
        self.save(state="done", seconds=round(time.monotonic() - begun, 2))

    def remove(self) -> None:
        """Take a run away that never began to train."""
        shutil.rmtree(self.path, ignore_errors=True)
