"""The report page: result folders in, one self-contained HTML file out. It needs no network, no script, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from staytrue.errors import RequestError
from staytrue.utils.files import check_out_file, refuse_existing, write_atomic

_BEGINNING = b"<!doctype html>"  # of page.html.j2


def write(folders: Sequence[Path], out: Path, mixed_judges: bool = False, judge: str | None = None) -> Path:
    """Write one HTML page with the results of several folders.

    Args:
        folders: each with `results.json` (a demo or a study) or a run's own `eval/summary.json`.
        out: the file to write; an earlier page is replaced, whole or not at all.
        mixed_judges: allow runs of different judges in one table, with a note.
        judge: the judge whose verdicts to use; None uses each evaluation's own.

    Returns:
        The file that was written.

    Raises:
        RequestError: a folder holds no results, different judges judged the runs, or `out` is no page but a folder or
            another file.
    """
    from staytrue.report.collect import collect
    from staytrue.report.page import render

    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise RequestError(f"There is no folder {missing}. Name a demo, a study, a run or an evaluation.")
    check_page(out)
    write_atomic(out, render(collect(folders, mixed_judges, judge)))
    return out


def check_page(out: Path) -> None:
    """Refuse a file for a page that is a folder or a file of another kind, or where nothing can be created.

    Raises:
        RequestError: the sentence names the path and what is in the way.
    """
    check_out_file(out)
    if out.exists() and not _is_page(out):
        refuse_existing(out)


def _is_page(file: Path) -> bool:
    """Whether a file is a page, or empty."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(_BEGINNING)).lower() in (b"", _BEGINNING)
