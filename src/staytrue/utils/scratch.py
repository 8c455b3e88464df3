"""`scratch_beside`: a folder to write in, beside the place that what is written is renamed to when it is whole."""

from __future__ import annotations

import glob
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from staytrue.errors import FolderInUseError
from staytrue.utils.run_dir import locked

_YOUNG = 60.0  # seconds in which another process may not have locked its folder yet


@contextmanager
def scratch_beside(place: Path) -> Iterator[Path]:
    """Make a hidden folder beside a place, and remove it afterwards, with those that killed processes left there.

    Args:
        place: where a file or folder of the scratch folder will be renamed to; its parent is created.

    Raises:
        OSError: the parent cannot be written.
    """
    prefix = f".{place.name}.unfinished-"
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in place.parent.glob(f"{glob.escape(prefix)}*"):
        _remove_if_left(left)
    with TemporaryDirectory(dir=place.parent, prefix=prefix) as folder, locked(Path(folder)):
        yield Path(folder)


def _remove_if_left(folder: Path) -> None:
    """Remove a scratch folder whose process has ended: nothing holds its lock."""
    try:
        if time.time() - folder.stat().st_mtime < _YOUNG:
            return
        with locked(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, FolderInUseError):  # in use, or removed by another process meanwhile
        return
