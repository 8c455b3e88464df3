"""Checkpoints of a run: written aside, hashed, renamed into place, and verified before use. No torch.

transformers writes a checkpoint in place, takes the highest number whatever its content, and deletes the oldest by file
time. So a machine that dies at the wrong moment leaves a run that cannot go on, and a clock that is set back deletes
the newest checkpoint. Here a checkpoint is whole or absent:

1. The trainer writes its files into a folder that no reader looks at.
2. Every file is flushed to disk, and its size and SHA-256 go into `manifest.json`.
3. The folder is renamed to `checkpoint-STEP`, and its parent is flushed to disk.
4. Older checkpoints are deleted, by their step.

Not done here: checkpoints on several machines. Of several processes on one machine, the main one commits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError, TrainingError
from staytrue.utils.files import sha256_of, write_atomic
from staytrue.utils.validation import in_one_line

SCHEMA = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d{1,15})")
_UNFINISHED = ".unfinished"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`; it is created with the first checkpoint.
        keep: how many are kept, the newest; None keeps all.
        run: the run's id, from its manifest; a checkpoint of another run is not used. None takes any.

    Attributes:
        unfinished: where a checkpoint is written before it is whole.
    """

    def __init__(self, folder: Path, keep: int | None = None, run: str | None = None) -> None:
        self.folder, self.unfinished = folder, folder / _UNFINISHED
        self._keep = keep
        self._run = run

    def commit(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write a checkpoint that is whole or absent, then delete those that are too many.

        Checkpoints of later steps are deleted too: a run that went on from an earlier step had refused them.

        Args:
            step: the optimizer steps done.
            write: writes the checkpoint's files into the folder that it is given.

        Raises:
            TrainingError: the disk is full or cannot be written; older checkpoints are kept.
        """
        unfinished, final = self.unfinished, self._place(step)
        try:
            _delete(unfinished)
            unfinished.mkdir(parents=True)
            write(unfinished)
            _seal(unfinished, step, self._run)
            _delete(final)  # a broken one of the same step
            os.rename(unfinished, final)
            _flush(self.folder)
        except Exception as error:  # a full disk is an OSError, and torch and safetensors have errors of their own
            free = _free(self.folder)
            _delete(unfinished)
            raise TrainingError(
                f"The checkpoint of step {step} cannot be written to {self.folder}, where {free:.1f} MB were free: "
                f"{in_one_line(error)}. Free some space, or take away what is in the way; "
                "`staytrue train --resume` goes on from the checkpoint before it."
            ) from error
        older = [other for other in self._steps() if other <= step]
        newer = [other for other in self._steps() if other > step]
        for other in [*newer, *(older[: -self._keep] if self._keep else [])]:
            _delete(self._place(other))
        return final

    def newest(self, say: Callable[[str], None] = lambda line: None) -> Path | None:
        """The checkpoint with the highest step that is whole; None if there is none.

        Args:
            say: called with a sentence about each broken checkpoint on the way.
        """
        for step in reversed(self._steps()):
            folder = self._place(step)
            fault = fault_in(folder, self._run)
            if fault is None:
                return folder
            say(f"{folder} is broken and is not used: {fault}.")
        return None

    def remove(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def _steps(self) -> list[int]:
        """The steps of the checkpoints, whole or not, in order."""
        if not self.folder.is_dir():
            return []
        names = [_NAME.fullmatch(entry.name) for entry in self.folder.iterdir()]
        return sorted({int(name[1]) for name in names if name})


def step_of(folder: Path) -> int:
    """The optimizer steps that a checkpoint's folder name says were done."""
    name = _NAME.fullmatch(folder.name)
    if name is None:
        raise RequestError(f"{folder} is no checkpoint; its name would be checkpoint-STEP.")
    return int(name[1])


def fault_in(folder: Path, run: str | None = None) -> str | None:
    """The fault of a checkpoint, as part of a sentence; None if every file is as it was written.

    Files are read as bytes and hashed. None is parsed but the manifest, which holds its own hash.

    Args:
        folder: the checkpoint.
        run: the id of the run that it has to be of; None for any.
    """
    if folder.is_symlink() or not folder.is_dir():
        return "it is no folder"
    try:
        content = (folder / MANIFEST).read_bytes()
        facts = json.loads(content)
        files = {name: (fact["bytes"], fact["sha256"]) for name, fact in facts["files"].items()}
        whole = content == _sealed({key: value for key, value in facts.items() if key != "sha256"})
        whole = whole and facts["step"] == step_of(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} is missing or cannot be read"
    if not whole:
        return f"{MANIFEST} was changed"
    if run is not None and facts.get("run", run) != run:
        return "it is a checkpoint of another run"
    try:
        return _fault_in_files(folder, files)
    except OSError as error:
        return f"{Path(error.filename or folder).name} cannot be read ({error.strerror})"


def _fault_in_files(folder: Path, files: Mapping[str, tuple[Any, Any]]) -> str | None:
    """Whether the files of a checkpoint are those of its manifest: `files` has the size and hash of each."""
    present = _files(folder)
    if surplus := sorted(present - files.keys()):
        return f"{surplus[0]} was added to it"
    for name, (size, digest) in files.items():
        path = folder / name
        if name not in present or path.is_symlink():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if sha256_of(path) != digest:
            return f"{name} was changed"
    return None


def _seal(folder: Path, step: int, run: str | None) -> None:
    """Flush every file of a folder to disk and write the manifest."""
    files = {}
    for name in sorted(_files(folder)):
        path = folder / name
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    facts = {"schema": SCHEMA, "step": step, "files": files}
    write_atomic(folder / MANIFEST, _sealed(facts if run is None else facts | {"run": run}))
    for place in [folder, *(entry for entry in folder.rglob("*") if entry.is_dir())]:
        _flush(place)


def _sealed(facts: Mapping[str, Any]) -> bytes:
    """The manifest's only valid content for these facts, its own hash included."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**facts, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()


def _files(folder: Path) -> set[str]:
    """The names of the files in a checkpoint, relative to it, without the manifest."""
    paths = (entry for entry in folder.rglob("*") if not entry.is_dir() or entry.is_symlink())
    return {path.relative_to(folder).as_posix() for path in paths} - {MANIFEST}


def _free(folder: Path) -> float:
    """The free space in megabytes where a folder is, or would be."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free / 1e6


def _delete(place: Path) -> None:
    """Delete a folder, or a file or link in its place, if it can be deleted."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    else:
        with suppress(OSError):
            place.unlink()


def _flush(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
