"""`RunDir` creates and opens the folder of one run and keeps its manifest. No torch.

A run folder holds `manifest.json` (state, versions, hashes), `recipe.yaml` (resolved), `metrics.jsonl`, `holdout.jsonl`
when rows were reserved, `model/` when training finished, and `eval/` when the model was evaluated.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.utils.files import refuse_existing, write_json

SCHEMA = 1
_PACKAGES = ("staytrue", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors")


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
    """

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any]) -> RunDir:
        """Create the folder and its manifest, whose state is "running".

        Raises:
            RequestError: something exists there, or the folder cannot be created.
        """
        refuse_existing(path, allow_empty_folder=True)
        path.mkdir(parents=True, exist_ok=True)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        run = cls(path, {"schema": SCHEMA, "state": "running", "started": started, "versions": versions(), **facts})
        run.save()
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run folder.

        Raises:
            RequestError: the folder has no readable manifest.
        """
        file = path / "manifest.json"
        if not file.is_file():
            raise RequestError(f"{path} is not a run folder: it has no manifest.json. `staytrue train` makes one.")
        try:
            return cls(path, json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RequestError(f"{file} cannot be read ({error}); train the run again.") from None

    def save(self, **facts: Any) -> None:
        """Add facts to the manifest and write it."""
        self.manifest.update(facts)
        write_json(self.path / "manifest.json", self.manifest)

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
        shutil.rmtree(self.path, ignore_errors=True)
