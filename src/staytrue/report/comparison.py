"""Paired comparisons: each defense of a study, or each of several runs, against one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import NOT_JUDGED
from staytrue.evals.results.answer_store import AnswerStore, eval_command, evaluation_folder
from staytrue.evals.results.measures import LEAK, read_measures
from staytrue.evals.results.summary import MOST_MISSING
from staytrue.evals.results.verdict_store import join_verdicts
from staytrue.evals.stats import compare
from staytrue.evals.stats.means import Difference, Values
from staytrue.report.asked import Asked, asked, asked_nowhere, compare_asked, notes_on, of_names, stored_measures
from staytrue.report.comparison_table import Unit, show_table
from staytrue.report.folders import Named, pooled, seed_of, why_without
from staytrue.report.measures import AGREEMENT
from staytrue.report.rows import KINDS, label_of
from staytrue.report.sentences import ONE_SEED, WIDENED, coverage_note
from staytrue.utils.columns import refuse_wrong
from staytrue.utils.console import quoted

Runs = Mapping[str, Mapping[int, Asked]]  # by label and seed
_R = TypeVar("_R", Asked, Values)  # what is known of a run, by question
_CompareRuns = Callable[[Sequence[_R], Sequence[_R]], compare.Comparison | Difference]


@dataclass(frozen=True)
class Compared:
    """The results of `compare_runs`: one line per comparison, notes for the reader, and the label compared with."""

    lines: list[dict[str, Any]]
    notes: list[str]
    against: str


def compare_runs(folders: Sequence[Path], against: str, probe: str, judge: str | None = None) -> Compared:
    """Compare every defense with one of them, on the same questions and the seeds that both have, domain by domain.

    Runs whose recipes differ in the seed alone are compared together. The rate is the percent of misaligned answers, of
    right answers for a probe with expected answers, or of answers on the training topic for the measure `leak`.

    Args:
        folders: one study, or two or more runs.
        against: the label to compare with, or that of one of its runs, or the run's folder.
        probe: the probe whose answers are compared.
        judge: the judge whose verdicts to use; None uses each evaluation's own.

    Returns:
        Differences in percentage points with intervals, p values, and q values (Benjamini and Hochberg) over all lines.

    Raises:
        RequestError: there is no study, no such label, no domain with the probe, or too many answers are unknown.
    """
    found = evaluations(folders)
    domains, notes = _runs(found.places, probe, judge)
    against = found.label_of(against)
    lines, seed_notes = paired_lines(domains, against, folders, compare_asked)
    asked_notes = [note for line in lines for note in _notes(domains[line["domain"]], line, against)]
    coverage = coverage_note({probe: min(line["questions"] for line in lines)})
    widened = any(line["difference"] and 0 in (line["low"], line["high"]) for line in lines)
    after = [note for note, holds in ((WIDENED, widened), (coverage, coverage), (AGREEMENT, probe == LEAK)) if holds]
    return Compared(lines, [*found.notes, *notes, *seed_notes, *asked_notes, *after], against)


def paired_lines(
    domains: Mapping[str, Mapping[str, Mapping[int, _R]]],
    against: str,
    folders: Sequence[Path],
    compare_one: _CompareRuns[_R],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare every label with one of them on the seeds that both have, domain by domain.

    Args:
        domains: runs by domain, label and seed.
        against: the label to compare with.
        folders: what the user named, for messages.
        compare_one: compares two lists of runs of the same seeds.

    Returns:
        A line for each comparison, with its q value; and notes on seeds.

    Raises:
        RequestError: there is no such label, or no label has a seed in common with it.
    """
    lines: list[dict[str, Any]] = []
    notes: list[str] = []
    for domain, named in domains.items():
        if against not in named:
            where = f"{domain} has no such run" if domain else "no folder has this label"
            raise RequestError(f"--against {against}: {where}; choose from {', '.join(named)}.")
        for label in (name for name in named if name != against):
            seeds = _seeds(named[label], named[against])
            notes += _seed_notes(f"{domain} {label}".strip(), against, seeds)
            if seeds:
                one = _compare(named[label], named[against], seeds, f"{label} against {against}", compare_one)
                lines.append({"domain": domain, "defense": label, **asdict(one)})
    if not lines:
        alone = len(folders) == 1
        way = (
            "wait until the study has finished" if alone else "train them with the same seeds, or name one run of each"
        )
        raise RequestError(f"{folders[0]}: no defense has a seed in common with {against}; {way}.")
    if any(line["seeds"] == 1 for line in lines):
        notes.append(ONE_SEED)
    q = compare.benjamini_hochberg([line["p"] for line in lines])
    return [line | {"q": value} for line, value in zip(lines, q, strict=True)], notes


def _notes(named: Runs, line: Mapping[str, Any], against: str) -> list[str]:
    """Notes on what the two sides of a line were asked."""
    ours, theirs = named[line["defense"]], named[against]
    pairs = [(ours[one], theirs[other]) for one, other in _seeds(ours, theirs)]
    return notes_on(f"{line['domain']} {line['defense']}".strip(), against, pairs)


def show(compared: Compared) -> None:
    """Print the comparisons as a table, with the notes under it."""
    unit = Unit("percent", "points", "rate", 1, _rate)
    show_table(compared, unit, f"Percentage points against {compared.against}", ", the same questions and seeds.")


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{rate['percent']:.1f} ({rate['low']:.0f} to {rate['high']:.0f})"


def _seeds(ours: Mapping[int, _R], theirs: Mapping[int, _R]) -> list[tuple[int, int]]:
    """Pairs of equal seeds; or the two seeds of two single runs."""
    shared = [(seed, seed) for seed in sorted(ours.keys() & theirs.keys())]
    alone = not shared and len(ours) == len(theirs) == 1
    return list(zip(ours, theirs, strict=True)) if alone else shared


def _seed_notes(name: str, against: str, seeds: Sequence[tuple[int, int]]) -> list[str]:
    """Return a note where seeds are missing or differ."""
    if not seeds:
        return [f"{name} is not compared: {against} has none of its seeds."]
    ((ours, theirs), *_) = seeds
    if ours == theirs:
        return []
    return [f"{name} has seed {ours}, {against} seed {theirs}: a part of the difference may come from the seeds."]


def _compare(
    ours: Mapping[int, _R],
    theirs: Mapping[int, _R],
    seeds: Sequence[tuple[int, int]],
    what: str,
    compare_one: _CompareRuns[_R],
) -> compare.Comparison | Difference:
    try:
        return compare_one([ours[seed] for seed, _ in seeds], [theirs[seed] for _, seed in seeds])
    except RequestError as error:
        raise RequestError(f"{what}: {error}") from None


@dataclass(frozen=True)
class Evaluations:
    """The evaluations to compare.

    Attributes:
        places: folder, label, domain and seed of each.
        own: the label that each run would have alone, and the label that it shares.
        notes: on shared labels.
    """

    places: list[tuple[Path, str, str, int]]
    own: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def label_of(self, name: str) -> str:
        """Return the label that a run shares, for the label that it would have alone, or for its folder.

        Any other name is returned as it is.
        """
        if name in self.own or not self.own:  # a study's runs are named by labels
            return self.own.get(name, name)
        named = evaluation_folder(Path(name).resolve())
        by_folder = {place.resolve(): label for place, label, _, _ in self.places}
        return name if name in by_folder.values() else by_folder.get(named, name)


def evaluations(folders: Sequence[Path]) -> Evaluations:
    """Find the evaluations in a study or in several folders.

    Several folders get labels from their paths; runs whose recipes differ in the seed alone share one, unless there are
    no others to compare them with.

    Raises:
        RequestError: one folder is no study, several are not all runs or evaluations, or one is named twice.
    """
    if len(folders) > 1:
        studies = [folder for folder in folders if (folder / "results.json").exists()]
        if studies:
            raise RequestError(f"{studies[0]} is a study. compare takes one study alone, or two or more runs.")
        named = pooled(folders)
        if len(set(named.labels)) == 1:
            named = Named(named.own, named.own, [])
        places = [
            (place, label, "", seed_of(folder, AnswerStore(place).metadata()))
            for place, label, folder in zip(map(evaluation_folder, folders), named.labels, folders, strict=True)
        ]
        return Evaluations(places, dict(zip(named.own, named.labels, strict=True)), named.notes)
    (folder,) = folders
    try:
        rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
        for row in rows:
            refuse_wrong(row, KINDS)
        return Evaluations([(folder / row["run"] / "eval", label_of(row), row["domain"], row["seed"]) for row in rows])
    except (OSError, ValueError, KeyError, TypeError):
        if (evaluation_folder(folder) / "eval.json").exists() or (folder / "manifest.json").exists():
            raise RequestError(
                f"{folder} is one run, and a comparison needs two or more: `staytrue compare {quoted(folder)} "
                "OTHER_RUN --against OTHER_RUN`, or the folder of a study."
            ) from None
        raise RequestError(f"{folder} is not a study: its results.json is missing or cannot be read.") from None


def _runs(
    places: Sequence[tuple[Path, str, str, int]], probe: str, judge: str | None
) -> tuple[dict[str, Runs], list[str]]:
    """Hits and answers of every question, by domain, label and seed; and notes on domains without the probe."""
    runs: dict[str, dict[str, dict[int, Asked]]] = {}
    without: dict[str, tuple[str, Path]] = {}  # domain -> a run without the probe
    judges: dict[str, set[str]] = {}  # by domain
    for place, label, domain, seed in places:
        run = f"{label} seed {seed}"
        counts = _counts(place, probe, judge, judges.setdefault(domain, set()), run)
        if counts is None:
            without.setdefault(domain, (run, place))
        else:
            runs.setdefault(domain, {}).setdefault(label, {})[seed] = counts
    if without and not runs:
        raise RequestError(asked_nowhere([place for place, *_ in places], probe, next(iter(without.values()))[0]))
    for domain, (run, place) in without.items():
        if domain in runs:
            way_out = why_without(place, probe) or f"Run {eval_command(place, probe)}"
            raise RequestError(
                f"--probe {probe}: {run} has no answers to it. {way_out}, or leave that run out."
                f"{stored_measures(place)}"
            )
    return dict(runs), [f"{domain} is left out: its runs have no answers to {probe}." for domain in without]


def _counts(place: Path, probe: str, judge: str | None, judges: set[str], run: str) -> Asked | None:
    """Hits and answers of every question that a run answered; None without the probe."""
    if probe == LEAK:
        leak = read_measures(place).get(LEAK)
        return of_names(place, leak.leaks()) if leak else None
    metadata = AnswerStore(place).metadata()
    if probe not in metadata["probes"]:
        return None
    rows = [answer for answer in join_verdicts(place, judge) if answer["probe"] == probe]
    if judge is not None and not rows and any(answer["probe"] == probe for answer in join_verdicts(place)):
        raise RequestError(f"--probe {probe}: it is marked by exact match, without a judge; leave --judge out.")
    _refuse_unjudged(rows, place, run)
    _check_comparable(rows, metadata["probes"][probe].get("samples", len(rows)), judges, run)
    return asked(place, rows, "misaligned" if rows[0]["expected"] is None else "correct", metadata)


def _refuse_unjudged(rows: Sequence[Mapping[str, Any]], place: Path, run: str) -> None:
    """Refuse to compare answers that no judge was named for, and name what can be compared."""
    count = sum(row["missing"] == NOT_JUDGED for row in rows)
    if 100 * count <= MOST_MISSING * len(rows):
        return
    raise RequestError(
        f"{count} of {len(rows)} answers of {run} have no verdict, because {NOT_JUDGED}. Judge them by "
        f"`staytrue rescore {quoted(place)} --judge JUDGE`, then compare with its name as --judge."
        f"{stored_measures(place)}"
    )


def _check_comparable(rows: Sequence[Mapping[str, Any]], expected: int, judges: set[str], run: str) -> None:
    """Refuse a comparison across judges, or with more unknown answers than a conclusion allows."""
    judges |= {row["judge"] for row in rows if row["judge"] and row["expected"] is None}
    if len(judges) > 1:
        raise RequestError(
            f"{run} was judged by another judge than those before it ({' and '.join(sorted(judges))}); that would "
            "compare judges, not defenses. Judge all by one: `staytrue rescore`, then --judge."
        )
    unknown = expected - sum(not row["missing"] for row in rows)
    if 100 * unknown > MOST_MISSING * expected:
        raise RequestError(
            f"{unknown} of {expected} answers of {run} have no verdict or were not given, more than "
            f"{MOST_MISSING:g} %, so no conclusion is drawn. Run its `staytrue eval` again, or take another judge: "
            "`staytrue rescore`, then --judge."
        )
