"""A study's defenses, or single runs, held against one of them, on the same questions and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import AnswerStore, evaluation_folder
from staytrue.evals.results.summary import MOST_MISSING, clusters
from staytrue.evals.results.verdict_store import join_verdicts
from staytrue.evals.stats import compare
from staytrue.evals.stats.intervals import Run
from staytrue.report.folders import labels, seed_of
from staytrue.report.rows import label_of
from staytrue.report.sentences import coverage_note
from staytrue.utils.console import say, table

Runs = Mapping[str, Mapping[int, Run]]  # by label and seed


@dataclass(frozen=True)
class Compared:
    """What came out, a line a comparison, and what a reader must know beside it."""

    lines: list[dict[str, Any]]
    notes: list[str]


def of_study(folders: Sequence[Path], against: str, probe: str, judge: str | None = None) -> Compared:
    """Every defense against one, in each domain: difference in points, interval, p, and q over all lines.

    Seeds are those that both have. Percent of misaligned answers, or of right ones for a probe that is marked.

    Raises:
        RequestError: no study there, no such defense, a probe that no domain was asked, too many unknown answers.
    """
    domains, notes = _runs(folders, probe, judge)
    found: list[dict[str, Any]] = []
    for domain, named in domains.items():
        if against not in named:
            where = f"{domain} has no such run" if domain else "none of these folders is called so"
            raise RequestError(f"--against {against}: {where}; choose from {', '.join(named)}.")
        for label in (name for name in named if name != against):
            seeds = _seeds(named[label], named[against])
            notes += _told(f"{domain} {label}".strip(), against, seeds)
            if seeds:
                one = _held(named[label], named[against], seeds, f"{label} against {against}")
                found.append({"domain": domain, "defense": label, **asdict(one)})
    if not found:
        raise RequestError(f"{folders[0]}: no defense has a seed in common with {against}; let the study finish.")
    q = compare.benjamini_hochberg([line["p"] for line in found])
    coverage = coverage_note({probe: min(line["questions"] for line in found)})
    lines = [line | {"q": value} for line, value in zip(found, q, strict=True)]
    return Compared(lines, [*notes, *filter(None, [coverage])])


def show(compared: Compared, against: str) -> None:
    """The comparisons as a table, and the notes under it."""
    rows = [
        (
            f"{line['domain']}  {line['defense']}".strip(),
            _rate(line["rate"]),
            f"{line['difference']:+.1f}",
            f"{line['low']:+.1f} to {line['high']:+.1f}",
            f"{line['p']:.3g}",
            f"{line['q']:.3g}",
            f"{line['detectable']:.1f}",
            f"{line['questions']} x {line['seeds']}",
        )
        for line in compared.lines
    ]
    table(("defense", "percent", "points", "95 % interval", "p", "q", "detectable", "questions x seeds"), rows)
    held = ", ".join(dict.fromkeys(f"{line['domain']} {_rate(line['other'])}".strip() for line in compared.lines))
    say(
        f"Percentage points against {against} ({held}), the same questions and seeds. q: Benjamini and Hochberg over "
        "all lines. Detectable: the smallest difference this many questions and seeds would find in 80 of 100 studies."
    )
    for note in compared.notes:
        say(note)


def _rate(found: Mapping[str, Any]) -> str:
    return f"{found['percent']:.1f} ({found['low']:.0f} to {found['high']:.0f})"


def _seeds(ours: Mapping[int, Run], theirs: Mapping[int, Run]) -> list[tuple[int, int]]:
    """The seeds that both have, in pairs; or that of each, where both are one run alone."""
    shared = [(seed, seed) for seed in sorted(ours.keys() & theirs.keys())]
    alone = not shared and len(ours) == len(theirs) == 1
    return list(zip(ours, theirs, strict=True)) if alone else shared


def _told(name: str, against: str, seeds: Sequence[tuple[int, int]]) -> list[str]:
    """What a reader must know of a comparison's seeds."""
    if not seeds:
        return [f"{name} is not compared: none of its seeds was run under {against}."]
    ((ours, theirs), *_) = seeds
    if ours == theirs:
        return []
    return [f"{name} has seed {ours}, {against} seed {theirs}: a part of the difference may be the seeds'."]


def _held(
    ours: Mapping[int, Run], theirs: Mapping[int, Run], seeds: Sequence[tuple[int, int]], what: str
) -> compare.Comparison:
    try:
        return compare.compare([ours[seed] for seed, _ in seeds], [theirs[seed] for _, seed in seeds])
    except RequestError as error:
        raise RequestError(f"{what}: {error}") from None


def _evaluations(folders: Sequence[Path]) -> list[tuple[Path, str, str, int]]:
    """Every evaluation's folder, and its label, domain and seed; several folders are labelled by their paths."""
    if len(folders) > 1:
        named = zip(map(evaluation_folder, folders), labels(folders), folders, strict=True)
        return [(place, label, "", seed_of(folder, AnswerStore(place).metadata())) for place, label, folder in named]
    (folder,) = folders
    try:
        rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
        return [(folder / row["run"] / "eval", label_of(row), row["domain"], row["seed"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise RequestError(f"{folder} is no study: its results.json is not there, or cannot be read.") from None


def _runs(folders: Sequence[Path], probe: str, judge: str | None) -> tuple[dict[str, Runs], list[str]]:
    """Hits and answers of every question, by domain, label and seed; and which domains were not asked."""
    found: dict[str, dict[str, dict[int, Run]]] = {}
    without: dict[str, str] = {}  # domain -> a run that was not asked
    judges: dict[str, set[str]] = {}  # by domain
    for place, label, domain, seed in _evaluations(folders):
        run = f"{label} seed {seed}"
        counts = _counts(place, probe, judge, judges.setdefault(domain, set()), run)
        if counts is None:
            without.setdefault(domain, run)
        else:
            found.setdefault(domain, {}).setdefault(label, {})[seed] = counts
    for domain, run in without.items():
        if domain in found or not found:
            raise RequestError(
                f"--probe {probe}: {run} was not asked it. Ask it with `staytrue eval --probes {probe}`, or leave the "
                "run out."
            )
    return dict(found), [f"{domain} is left out: none of its runs was asked {probe}." for domain in without]


def _counts(place: Path, probe: str, judge: str | None, judges: set[str], run: str) -> Run | None:
    """Hits and answers of every question that a run answered; None if it was not asked the probe."""
    wanted = AnswerStore(place).metadata()["probes"].get(probe)
    if wanted is None:
        return None
    rows = [answer for answer in join_verdicts(place, judge) if answer["probe"] == probe]
    if judge is not None and not rows and any(answer["probe"] == probe for answer in join_verdicts(place)):
        raise RequestError(f"--probe {probe}: its answers have a right one, so no judge is asked; leave --judge out.")
    _comparable(rows, wanted["samples"], judges, run)
    answered = clusters(rows, "misaligned" if rows[0]["expected"] is None else "correct")
    return {question: (sum(hits), len(hits)) for question, hits in answered.items()}


def _comparable(rows: Sequence[Mapping[str, Any]], wanted: int, judges: set[str], run: str) -> None:
    """Refuse what cannot be told apart from a difference between judges, or between what nobody knows."""
    judges |= {row["judge"] for row in rows if row["judge"] and row["expected"] is None}
    if len(judges) > 1:
        raise RequestError(
            f"{run} was judged by another judge than those before it ({' and '.join(sorted(judges))}); a difference "
            "between judges is none between defenses. Judge all by one: `staytrue rescore`, then --judge."
        )
    unknown = wanted - sum(not row["missing"] for row in rows)
    if 100 * unknown > MOST_MISSING * wanted:
        raise RequestError(
            f"{unknown} of {wanted} answers of {run} could not be judged or could not be had, more than "
            f"{MOST_MISSING:g} %, so nothing is concluded from the rest. Give its `staytrue eval` again, or take "
            "another judge: `staytrue rescore`, then --judge."
        )
