"""The report page: result folders in, one self-contained HTML file out. It needs no network, no script, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from staytrue.errors import RequestError
from staytrue.utils.files import check_out_file, write_atomic


def write(folders: Sequence[Path], out: Path, mixed_judges: bool = False, judge: str | None = None) -> Path:
    """Write one HTML page with the results of several folders.

    Args:
        folders: each with `results.json` (a demo or a study) or a run's own `eval/summary.json`.
        out: the file to write; it is replaced whole or not at all.
        mixed_judges: allow runs of different judges in one table, with a note.
        judge: the judge whose verdicts to use; None uses each evaluation's own.

    Returns:
        The file that was written.

    Raises:
        RequestError: a folder holds no results, different judges judged the runs, or `out` is a folder.
    """
    from staytrue.report.collect import collect
    from staytrue.report.page import render

    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise RequestError(f"There is no folder {missing}. Name a demo, a study, a run or an evaluation.")
    check_out_file(out)
    write_atomic(out, render(collect(folders, mixed_judges, judge)))
    return out
