"""`scratch_beside`: a folder to write in, beside the place that what is written is renamed to when it is whole."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from staytrue.errors import FolderInUseError
from staytrue.utils.run_dir import locked


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
    made = Path(mkdtemp(dir=place.parent, prefix=f".{place.name}.new-"))
    with locked(made):  # before it has the name by which other processes find it
        scratch = made.rename(made.with_name(prefix + made.name.rpartition("-")[2]))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove_if_left(folder: Path) -> None:
    """Remove a scratch folder whose process has ended: it holds its lock no longer."""
    try:
        with locked(folder) as holds:
            if holds:  # else the file system cannot tell whether it is in use
                shutil.rmtree(folder, ignore_errors=True)
    except (OSError, FolderInUseError):  # in use, or removed by another process meanwhile
        return
