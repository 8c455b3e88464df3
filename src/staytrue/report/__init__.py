"""Run folders in, one self-contained page out: no request to any network, no script needed. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from staytrue.errors import RequestError
from staytrue.utils.files import write_atomic


def write(folders: Sequence[Path], out: Path, mixed_judges: bool = False, judge: str | None = None) -> Path:
    """Draw the results and runs in some folders as one HTML page.

    Args:
        folders: each with `results.json` (a demo or a study) or a run's own `eval/summary.json`.
        out: the page; written whole or not at all.
        mixed_judges: whether runs of different judges may stand in one table, marked.
        judge: by whose verdicts; None for each evaluation's own.

    Raises:
        RequestError: a folder holds neither, or different judges judged the runs.
    """
    from staytrue.report.collect import collect
    from staytrue.report.page import render

    missing = next((folder for folder in folders if not folder.is_dir()), None)
    if missing is not None:
        raise RequestError(f"There is no folder {missing}. Name a demo, a study, a run or an evaluation.")
    write_atomic(out, render(collect(folders, mixed_judges, judge)))
    return out
