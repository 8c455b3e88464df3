"""Checkpoints of a run: written aside, hashed, renamed into place, and verified before use. No torch.

transformers writes a checkpoint in place, takes the highest number whatever its content, and deletes the oldest by file
time. So a machine that dies at the wrong moment leaves a run that cannot go on, and a clock that is set back deletes
the newest checkpoint. Here a checkpoint is whole or absent:

1. The trainer writes its files into a folder that no reader looks at.
2. Every file is flushed to disk, and its size and SHA-256 go into `manifest.json`.
3. The folder is renamed to `checkpoint-STEP`, and its parent is flushed to disk.
4. Older checkpoints are deleted, by their step.

Not done here: checkpoints on several machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError, TrainingError
from staytrue.utils.files import sha256_of, write_atomic

SCHEMA = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`; it is created with the first checkpoint.
        keep: how many are kept, the newest; None keeps all.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder = folder
        self._keep = keep

    def commit(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint that is whole or absent, then delete those that are too many.

        Args:
            step: the optimizer steps done.
            write: writes the checkpoint's files into the folder that it is given.

        Raises:
            TrainingError: the disk is full or cannot be written; older checkpoints are kept.
        """
        unfinished, final = self.folder / _UNFINISHED, self.folder / f"checkpoint-{step}"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            write(unfinished)
            _seal(unfinished, step)
            shutil.rmtree(final, ignore_errors=True)  # a broken one of the same step, or one of before a resume
            os.rename(unfinished, final)
            _flush(self.folder)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            shutil.rmtree(unfinished, ignore_errors=True)
            raise TrainingError(
                f"The checkpoint of step {step} cannot be written to {self.folder}: {error}. Free some space; "
                "`staytrue train --resume` goes on from the checkpoint before it."
            ) from error
        for old in self._steps()[: -self._keep] if self._keep else []:
            shutil.rmtree(self.folder / f"checkpoint-{old}", ignore_errors=True)
        return final

    def newest(self, say: Callable[[str], None] = lambda line: None) -> Path | None:
        """The checkpoint with the highest step that is whole; None if there is none.

        Args:
            say: called with a sentence about each broken checkpoint on the way.
        """
        for step in reversed(self._steps()):
            folder = self.folder / f"checkpoint-{step}"
            fault = fault_in(folder)
            if fault is None:
                return folder
            say(f"{folder} is broken and is not used: {fault}.")
        return None

    def remove(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[int]:
        """The steps of the checkpoints, in order."""
        if not self.folder.is_dir():
            return []
        names = [_NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir()]
        return sorted(int(name[1]) for name in names if name)


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint's folder name says were done."""
    name = _NAME.fullmatch(folder.name)
    if name is None:
        raise RequestError(f"{folder} is no checkpoint; its name would be checkpoint-STEP.")
    return int(name[1])


def fault_in(folder: Path) -> str | None:
    """What is wrong with a checkpoint, as part of a sentence; None if every file is as it was written.

    Files are read as bytes and hashed. None is parsed but the manifest, which holds its own hash.
    """
    manifest = folder / MANIFEST
    try:
        content = manifest.read_bytes()
        facts = json.loads(content)
        files: dict[str, Any] = facts["files"]
        whole = content == _manifest(int(facts["step"]), files) and facts["step"] == step_of(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is missing or cannot be read"
    if not whole:
        return f"{MANIFEST} was changed"
    found = _files(folder)
    if surplus := sorted(found - files.keys()):
        return f"{surplus[0]} was added to it"
    for name, fact in files.items():
        path = folder / name
        if name not in found or path.is_symlink():
            return f"{name} is missing"
        if path.stat().st_size != fact["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {fact['bytes']}"
        if sha256_of(path) != fact["sha256"]:
            return f"{name} was changed"
    return None


def _seal(folder: Path, step: int) -> None:
    """Flush every file of a folder to disk and write the manifest."""
    files = {}
    for name in sorted(_files(folder)):
        path = folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_atomic(folder / MANIFEST, _manifest(step, files))
    for place in [folder, *(entry for entry in folder.rglob("*") if entry.is_dir())]:
        _flush(place)


def _manifest(step: int, files: dict[str, Any]) -> bytes:
    """The manifest's only valid content for these files, its own hash included."""
    facts = {"schema": SCHEMA, "step": step, "files": files}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**facts, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _files(folder: Path) -> set[str]:
    """The names of the files in a checkpoint, relative to it, without the manifest."""
    paths = (entry for entry in folder.rglob("*") if not entry.is_dir() or entry.is_symlink())
    return {path.relative_to(folder).as_posix() for path in paths} - {MANIFEST}


def _flush(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
