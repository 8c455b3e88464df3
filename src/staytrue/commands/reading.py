"""The commands `report`, `defenses`, `doctor` and `verify`."""

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


def doctor(
    run: Annotated[Path | None, typer.Argument(help="A run folder; without one, this machine is looked at.")] = None,
) -> None:
    """Look for faults of this machine or of a run folder.

    Says how to mend each, and changes nothing. Exit code 1 if something has to be mended.
    """
    from staytrue.doctor import machine, run_folder
    from staytrue.utils.console import say

    wrong = False
    for finding in machine.findings() if run is None else run_folder.findings(run):
        wrong = wrong or (finding.remedy is not None and finding.hinders)
        mark = "ok" if finding.remedy is None else "mend" if finding.hinders else "note"
        says = f"{finding.says.removesuffix('.')}."  # an error's message ends in a full stop
        say(f"{mark:5s}{finding.what}: {says}{f' {finding.remedy}' if finding.remedy else ''}")
    raise typer.Exit(int(wrong))


def verify(run: Annotated[Path, typer.Argument(help="The folder of a finished run.")]) -> None:
    """Check that each defense of a run acted.

    Reads the run's files, prints one line a defense, and changes nothing. Exit code 1 if one did not act.
    """
    from staytrue.utils.console import say
    from staytrue.verify.run_folder import findings

    checked = findings(run)
    for finding in checked:
        says = f"{'; '.join(finding.faults) or finding.shows}."
        say(f"{'no' if finding.faults else 'yes':4s}{finding.what}: {says}")
    raise typer.Exit(int(any(finding.faults for finding in checked)))
