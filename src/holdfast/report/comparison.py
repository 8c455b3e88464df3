"""A study's defenses held against one of them, on the same questions and seeds."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from holdfast.console import say, table
from holdfast.errors import RequestError
from holdfast.evals import compare
from holdfast.evals.statistics import Run
from holdfast.evals.store import Store, joined
from holdfast.evals.summary import MOST_MISSING, clusters
from holdfast.report.collect import label_of

Lines = list[dict[str, Any]]


def of_study(folders: Sequence[Path], against: str, probe: str, judge: str | None = None) -> Lines:
    """Every defense against one, in each domain: difference in points, interval, p, q over the whole of a domain.

    Seeds are those that both have. Percent of misaligned answers, or of right ones for a probe that is marked.

    Raises:
        RequestError: no study there, no such defense, or a probe that was not asked.
    """
    found: Lines = []
    for domain, named in _runs(folders, probe, judge).items():
        if against not in named:
            raise RequestError(f"--against {against}: {domain} has no such run; choose from {', '.join(named)}.")
        shared = {
            label: {seed: run for seed, run in runs.items() if seed in named[against]} for label, runs in named.items()
        }
        seeds = set.intersection(*(set(runs) for runs in shared.values()))
        if not seeds:
            raise RequestError(f"{folders[0]}: no seed of {domain} was run under every defense; let the study finish.")
        told = {label: [runs[seed] for seed in sorted(seeds)] for label, runs in shared.items()}
        lines = compare.table(told, against)
        found += [{"domain": domain, "defense": one.name, **asdict(one.comparison), "q": one.q} for one in lines]
    return found


def show(lines: Lines, against: str) -> None:
    """The comparisons as a table."""
    rows = [
        (
            f"{line['domain']}  {line['defense']}",
            _rate(line["rate"]),
            f"{line['difference']:+.1f}",
            f"{line['low']:+.1f} to {line['high']:+.1f}",
            f"{line['p']:.3g}",
            f"{line['q']:.3g}",
            f"{line['detectable']:.1f}",
            f"{line['questions']} x {line['seeds']}",
        )
        for line in lines
    ]
    table(("defense", "percent", "points", "95 % interval", "p", "q", "detectable", "questions x seeds"), rows)
    own = {line["domain"]: _rate(line["other"]) for line in lines}
    held = ", ".join(f"{domain} {rate}".strip() for domain, rate in own.items())
    say(
        f"Percentage points against {against} ({held}), the same questions and seeds. q: Benjamini and Hochberg over a "
        "domain's defenses. Detectable: the smallest difference this many questions and seeds would find in 80 of 100 "
        "studies."
    )


def _rate(found: Mapping[str, Any]) -> str:
    return f"{found['percent']:.1f} ({found['low']:.0f} to {found['high']:.0f})"


def _evaluations(folders: Sequence[Path]) -> list[tuple[Path, str, str, int]]:
    """Every evaluation's folder, and its label, domain and seed; a single folder has its own name as label."""
    if len(folders) == 1:
        (folder,) = folders
        try:
            rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
            return [(folder / row["run"] / "eval", label_of(row), row["domain"], row["seed"]) for row in rows]
        except (OSError, ValueError, KeyError, TypeError):
            raise RequestError(f"{folder} is no study: its results.json is not there, or cannot be read.") from None
    found = []
    for folder in folders:
        place = folder if (folder / "eval.json").exists() else folder / "eval"
        Store(place).asked()
        found.append((place, folder.resolve().name, "", 0))
    return found


def _runs(folders: Sequence[Path], probe: str, judge: str | None) -> dict[str, dict[str, dict[int, Run]]]:
    """Hits and answers of every question, by domain, label and seed."""
    found: dict[str, dict[str, dict[int, Run]]] = defaultdict(lambda: defaultdict(dict))
    judges: set[str] = set()
    for place, label, domain, seed in _evaluations(folders):
        run = f"{label} seed {seed}"
        rows = [answer for answer in joined(place, judge) if answer["probe"] == probe]
        if not rows:
            raise RequestError(f"--probe {probe}: {run} was not asked it.")
        kind = "misaligned" if rows[0]["expected"] is None else "correct"
        _comparable(rows, judges, run)
        found[domain][label][seed] = _counts(clusters(rows, kind))
    return found


def _comparable(rows: Sequence[Mapping[str, Any]], judges: set[str], run: str) -> None:
    """Refuse what cannot be told apart from a difference between judges, or between what they could not judge."""
    judges |= {row["judge"] for row in rows if row["judge"]}
    if len(judges) > 1:
        raise RequestError(
            f"{run} was judged by another judge than those before it ({' and '.join(sorted(judges))}); a difference "
            "between judges is none between defenses. Judge all by one: `holdfast rescore`, then --judge."
        )
    missing = sum(bool(row["missing"]) for row in rows)
    if 100 * missing > MOST_MISSING * len(rows):
        raise RequestError(
            f"{missing} of {len(rows)} answers of {run} could not be judged, more than {MOST_MISSING:g} %, so nothing "
            "is concluded from the rest."
        )


def _counts(answered: Mapping[str, list[bool]]) -> Run:
    return {question: (sum(hits), len(hits)) for question, hits in answered.items()}
