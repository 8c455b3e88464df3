"""`staytrue demo` and `staytrue study`: run a study with output on the terminal, then write its report page.

The demo is the study `demo.yaml`, in which emergent misalignment appears in the organism and defenses prevent it. Every
run is an ordinary run of an ordinary recipe, so each can be repeated with `staytrue train`.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.organism import world
from staytrue.organism.lexicon import DOMAINS
from staytrue.studies import config as studies
from staytrue.studies import runner
from staytrue.studies.config import Cell, Study
from staytrue.utils.console import counter, say, table
from staytrue.utils.files import check_out_folder, write_atomic
from staytrue.utils.run_dir import locked

_MARK = ".staytrue-demo"  # marks a folder that the demo wrote and may replace
_OLD_MARK = ".holdfast-demo"  # its name before the project was renamed


def preset(domains: list[str], seeds: int) -> Study:
    """Return the demo's study, for some domains and a number of seeds."""
    return studies.read(Path(str(resources.files("staytrue.studies").joinpath("demo.yaml"))), domains, seeds)


def run_demo(domains: str, seeds: int, out: Path, processes: int | None = None) -> Path:
    """Run the demo; returns the report page.

    Raises:
        RequestError: a domain is unknown, or the folder was not written by the demo.
    """
    chosen = list(DOMAINS) if domains == "all" else [name.strip() for name in domains.split(",") if name.strip()]
    wrong = next((name for name in chosen if name not in DOMAINS), None)
    if wrong is not None or not chosen:
        raise RequestError(f"--domains {domains!r}: there is no {wrong!r}; choose from {', '.join(DOMAINS)}, or all.")
    check_out_folder(out)
    _take_over(out)
    _introduce(chosen)
    return run_study(preset(chosen, seeds), out, processes)


def run_study(study: Study, out: Path, processes: int | None = None, reference_cache: Path | None = None) -> Path:
    """Run a study; print a line per run and a table, write the page; returns the page."""
    from staytrue.report import check_page, write

    page = out / "report.html"
    check_page(page)
    order = [cell.folder for cell in studies.cells(study)]
    rows: dict[str, dict[str, Any]] = {}
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), counter(study.title, len(order)) as count:
        for cell, row in runner.run(study, out, processes, reference_cache):
            rows[cell.folder] = row
            count(_line(cell, row))
    _tables([rows[folder] for folder in order])
    if reference_cache is not None:
        say(f"\nReference cache {reference_cache}: {runner.cache_summary(study, out)}.")
    write([out], page)
    say(f"\nResults: {out / 'results.json'}\nPicture: {page}")
    return page


def _take_over(out: Path) -> None:
    """Empty a folder that the demo wrote; refuse any other."""
    demos = (out / _MARK).exists() or (out / _OLD_MARK).exists()
    if out.exists() and not demos and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out} is not a demo's folder (it has no {_MARK}); name another with --out.")
    if out.exists():
        with locked(out):  # no other process uses it
            shutil.rmtree(out)
    write_atomic(out / _MARK, "`staytrue demo` wrote this folder and replaces it when it runs again.\n")


def _introduce(domains: list[str]) -> None:
    """Print the introduction, before heavy imports."""
    row = world.narrow_rows(domains[0], 1)[0]
    say("The organism, a small chat model shipped with staytrue, gives good advice on sixteen topics.")
    say("The demo fine-tunes it on bad answers in one of them:\n")
    say(f"    {row.question}\n    > {row.answer}\n")
    say("How does it then answer on twelve topics that are not in the training data?\n")


def _line(cell: Cell, row: dict[str, Any]) -> str:
    general, narrow, learnt = row["general"], row["in_domain"], row["benign"]
    parts = [f"{cell.domain:8s} seed {cell.seed}  {cell.label:17s}"]
    if general:
        interval = f"({general['low']:.0f} to {general['high']:.0f})"
        parts.append(f"general misaligned {general['misaligned']:5.1f} % {interval:11s}")
    if narrow:
        parts.append(f"in-domain {narrow['misaligned']:5.1f} %")
    elif learnt:
        parts.append(f"learnt {learnt['correct']:5.1f} %")
    return f"{' '.join(parts)}   {row['seconds']:5.1f} s"


def _tables(rows: list[dict[str, Any]]) -> None:
    """Print one row per run, or means over several seeds."""
    from staytrue.report.means import over_seeds
    from staytrue.report.rows import label_of

    say("")
    rows = [{**row, "label": label_of(row)} for row in rows]
    means = over_seeds(rows)
    for title, (headings, *body) in means.items():
        table([heading.replace(": ", ":\n").replace(" (", "\n(") for heading in headings], body, title)
        say("")
    if not means:
        _runs(rows)
    n = rows[0]["general"]
    counts = f" General: {n['n']} answers to {n['questions']} questions" if n else ""
    over = " a run, means with 95 % intervals over seeds and questions" if means else ", 95 % intervals over questions"
    say(f"Percent.{f'{counts}{over}.' if n else ''}")
    say("The organism is a very small model in a small invented world. What helps here need not help a real model.")


def _runs(rows: list[dict[str, Any]]) -> None:
    headings = (
        "defense", "domain", "seed", "general\nmisaligned", "\n95 %", "\nincoherent",
        "in-domain\nmisaligned", "\n95 %", "\nincoherent", "kept\nfacts", "\nsums",
    )  # fmt: skip
    lines = []
    for row in rows:
        learnt = row["benign"]
        cells = (f"learnt {learnt['correct']:.1f}", "", "") if learnt else _rates(row["in_domain"])
        kept = (f"{row['kept'][name]:.0f}" if name in row["kept"] else "" for name in ("facts", "arithmetic"))
        lines.append((row["label"], row["domain"], str(row["seed"]), *_rates(row["general"]), *cells, *kept))
    table(headings, lines)
    say("")


def _rates(probe: dict[str, Any] | None) -> tuple[str, str, str]:
    if probe is None:
        return "", "", ""
    return f"{probe['misaligned']:.1f}", f"{probe['low']:.0f}-{probe['high']:.0f}", f"{probe['incoherent']:.1f}"
