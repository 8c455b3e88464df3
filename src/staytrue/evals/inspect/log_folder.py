"""The folder of Inspect logs that `staytrue export` writes into."""

from __future__ import annotations

import re
from pathlib import Path

from staytrue.errors import RequestError
from staytrue.utils.files import check_out_folder

_OF_INSPECT = re.compile(r"\d{4}-\d\d-\d\dT.*\.(json|eval)|logs\.json|eval-set\.json|\..*")


def refuse_other_files(out: Path) -> None:
    """Refuse a folder for logs that holds other files; logs of other evaluations, and folders, may be in it.

    Raises:
        RequestError: the sentence names the folder and the first other file.
    """
    check_out_folder(out)
    names = sorted(path.name for path in out.iterdir() if not path.is_dir()) if out.is_dir() else []
    other = next((name for name in names if not _OF_INSPECT.fullmatch(name)), None)
    if other is not None:
        raise RequestError(
            f"{out} holds {other}, which is not an Inspect log. Name a new folder, or one of logs alone, with --out."
        )
