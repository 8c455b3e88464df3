"""`report`, `defenses`: pages to read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders with results.json or run folders.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    mixed_judges: Annotated[
        bool, typer.Option("--mixed-judges", help="Put runs of different judges on one page, marked.")
    ] = False,
    judge: Annotated[str | None, typer.Option(help="By this judge's verdicts, as `rescore` named it.")] = None,
) -> None:
    """Draw runs as one self-contained page."""
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
