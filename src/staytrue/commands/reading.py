"""The commands `report` and `defenses`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with results.json or run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    mixed_judges: Annotated[
        bool, typer.Option("--mixed-judges", help="Allow runs of different judges on one page, with a note.")
    ] = False,
    judge: Annotated[str | None, typer.Option(help="Use the verdicts of this judge, named as by `rescore`.")] = None,
) -> None:
    """Write one self-contained HTML page of results."""
    from staytrue.report import write
    from staytrue.utils.console import say

    say(f"Wrote {write(folders, out, mixed_judges, judge)}")


def defenses(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/defenses.md.")] = False,
) -> None:
    """List the defenses, their fields and defaults."""
    from staytrue import docs_page
    from staytrue.utils.console import say

    say(docs_page.page().rstrip() if markdown else docs_page.listing())
