"""`RunDir` creates and opens the folder of one run and keeps its manifest. No torch.

A run folder holds `manifest.json` (state, versions, hashes), `recipe.yaml` (resolved), `metrics.jsonl`, `holdout.jsonl`
when rows were reserved, `model/` when training finished, and `eval/` when the model was evaluated.
"""

from __future__ import annotations

import fcntl
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
from typing import Any
from uuid import uuid4

from staytrue.errors import FolderInUseError, RequestError
from staytrue.utils.columns import LIST, OBJECT, TEXT, or_null, refuse_wrong
from staytrue.utils.files import refuse_existing, write_atomic, write_json

SCHEMA = 1
_PACKAGES = ("staytrue", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors")
_OBJECTS = ("versions", "machine", "model", "data", "start", "rows", "curated", "logs", "projected", "reference")
_KINDS = {  # of the manifest's keys
    "id": TEXT,
    **dict.fromkeys(_OBJECTS, OBJECT),
    "early_stop": or_null(OBJECT),
    **dict.fromkeys(("notes", "resumed"), LIST),
}


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keep other processes from writing into an existing folder; no file is left in it.

    The lock is on the folder itself and ends with the process, however it ends. On a file system that cannot lock a
    folder, such as NFS, there is none: then it yields False.

    Raises:
        FolderInUseError: another process holds the lock.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        holds = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(
                f"Another process writes into {folder} now. Wait until it has ended, or choose another folder with "
                "--out."
            ) from None
        except OSError:  # the file system has no such locks
            holds = False
        yield holds
    finally:
        os.close(handle)


def versions() -> dict[str, str]:
    """Return the versions of Python, of the platform, and of the packages that affect results."""
    known = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            known[package] = "absent"
    return known


@dataclass
class RunDir:
    """The folder of one run and its manifest.

    Attributes:
        path: the folder.
        manifest: the content of `manifest.json`.
        writes: whether this process writes into the folder; of several that train together only one does.
    """

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)
    writes: bool = True

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any], *, writes: bool = True) -> RunDir:
        """Create the folder and its manifest, whose state is "running"; without `writes` another process does it.

        Raises:
            RequestError: something exists there, or the folder cannot be created.
        """
        if writes:
            refuse_existing(path, allow_empty_folder=True)
            path.mkdir(parents=True, exist_ok=True)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        known = {"schema": SCHEMA, "id": uuid4().hex, "state": "running", "started": started, "versions": versions()}
        run = cls(path, {**known, **facts}, writes)
        run.save()
        return run

    @classmethod
    def open(cls, path: Path, *needed: str) -> RunDir:
        """Open an existing run folder.

        Args:
            path: the folder.
            needed: keys that the manifest must have, since the caller reads them.

        Raises:
            RequestError: the folder has no readable manifest, or one without a needed key.
        """
        file = path / "manifest.json"
        if not file.is_file():
            raise RequestError(f"{path} is not a run folder: it has no manifest.json. `staytrue train` makes one.")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(manifest, dict):
                refuse_wrong(manifest, _KINDS, needed)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{file} cannot be read ({error}). Restore it, or train the run again.") from None
        if not isinstance(manifest, dict) or not isinstance(manifest.get("state"), str):
            raise RequestError(f"{file} names no state of a run. Restore it, or train the run again.")
        return cls(path, manifest)

    def save(self, **facts: Any) -> None:
        """Add facts to the manifest and write it."""
        self.manifest.update(facts)
        if self.writes:
            write_json(self.path / "manifest.json", self.manifest)

    def write(self, name: str, content: str) -> None:
        """Write one of the folder's files."""
        if self.writes:
            write_atomic(self.path / name, content)

    @contextmanager
    def until_done(self) -> Iterator[None]:
        """Record in the manifest how the block ends: done, stopped (Ctrl-C), or failed with its reason."""
        started = time.monotonic()
        try:
            yield
        except KeyboardInterrupt:
            self.save(state="stopped", seconds=round(time.monotonic() - started, 2))
            raise
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
            self.save(state="failed", seconds=round(time.monotonic() - started, 2), reason=reason)
            raise
        self.save(state="done", seconds=round(time.monotonic() - started, 2))

    def remove(self) -> None:
        """Delete the folder of a run whose training never began."""
        if self.writes:
            shutil.rmtree(self.path, ignore_errors=True)
