"""What two runs were asked, and how, and their comparison on the questions whose texts are the same."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.results.measures import read_measures
from staytrue.evals.stats import compare
from staytrue.evals.stats.intervals import Run

_OF_A_QUESTION = ("messages", "tools", "expected", "prompts")  # what a probe's hash is of, but for names
_SAME = {  # of eval.json; the way to make each the same
    "temperature": "the same `temperature` in its question file",
    "as_published": "`--as-published` for both or neither",
}
_LIMIT = "max_new_tokens"


@dataclass(frozen=True)
class Asked:
    """A run's answers to a probe.

    Attributes:
        place: the evaluation's folder.
        counts: hits and judged answers of every question, by its text.
        groups: by the text too, the group of the question in this evaluation.
        settings: how the answers were sampled, as far as `eval.json` has it.
    """

    place: Path
    counts: Run
    groups: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)


def asked(place: Path, rows: Sequence[Mapping[str, Any]], kind: str, metadata: Mapping[str, Any]) -> Asked:
    """Collect a run's answers to a probe by the text of the question; names of held-out questions are positions.

    Args:
        place: the evaluation's folder.
        rows: the answers to one probe with their verdicts.
        kind: the key that is true of a hit.
        metadata: the content of `eval.json`.
    """
    counts: dict[str, tuple[float, float]] = {}
    groups: dict[str, str] = {}
    for row in rows:
        text = _text(row)
        hits, answers = counts.get(text, (0, 0))
        counts[text] = (hits, answers) if row["missing"] else (hits + bool(row[kind]), answers + 1)
        groups[text] = str(row.get("group") or row["question"])
    settings = {**metadata["probes"][rows[0]["probe"]], "as_published": metadata.get("as_published")}
    return Asked(place, counts, groups, settings)


def of_names(place: Path, hits: Mapping[str, Sequence[bool]]) -> Asked:
    """Collect values by the question's name alone, for a measure whose questions are the shipped ones."""
    return Asked(place, {name: (sum(one), len(one)) for name, one in hits.items()}, {name: name for name in hits})


def compare_asked(runs: Sequence[Asked], against: Sequence[Asked]) -> compare.Comparison:
    """Compare a condition with a baseline on the questions that both were asked, seed by seed.

    Args:
        runs: of the condition, one a seed.
        against: of the baseline, in the same order of seeds.

    Raises:
        RequestError: the two sides sampled differently, or share no question, or those of one group alone.
    """
    pairs = list(zip(runs, against, strict=True))
    for one, other in pairs:
        _refuse_other_settings(one, other)
    if not any(one.counts.keys() & other.counts.keys() for one, other in pairs):
        raise RequestError(
            f"no question of {against[0].place} was asked in {runs[0].place} too, by its text. Which questions are "
            "held out depends on the data and on the recipe's seed; ask both one question file: `staytrue eval RUN "
            "--probes FILE`, then `--probe` with the file's name."
        )
    names = _clusters([*runs, *against])
    ours, theirs = ([_shared(*pair, names) for pair in ordered] for ordered in (pairs, [pair[::-1] for pair in pairs]))
    return compare.compare(ours, theirs)


def notes_on(label: str, against: str, pairs: Sequence[tuple[Asked, Asked]]) -> list[str]:
    """Write a note on questions that only one side was asked, and one on limits of the answers' length that differ.

    Args:
        label: of the condition.
        against: of the baseline.
        pairs: the runs of the two, seed by seed.
    """
    every = sum(len(one.counts.keys() | other.counts.keys()) for one, other in pairs)
    both = sum(len(one.counts.keys() & other.counts.keys()) for one, other in pairs)
    found = []
    if both < every:
        seeds = f", counted in each of {len(pairs)} seeds" if len(pairs) > 1 else ""
        found.append(
            f"{label}: of the {every} questions that it or {against} was asked{seeds}, {both} were asked of both, and "
            "these alone are compared."
        )
    limits = [_other(_LIMIT, one, other) for one, other in pairs]
    for ours, theirs in dict.fromkeys(filter(None, limits)):
        found.append(
            f"{label}: answers of at most {ours} tokens ({_LIMIT}), those of {against} of at most {theirs}: a part of "
            "the difference may come from this."
        )
    return found


def _text(row: Mapping[str, Any]) -> str:
    """What was asked; the question's name where the row does not have it."""
    if not row.get("messages"):
        return str(row["question"])
    return json.dumps([row.get(key) for key in _OF_A_QUESTION], sort_keys=True)


def _other(key: str, one: Asked, other: Asked) -> tuple[Any, Any] | None:
    """The two values of a setting; None where they are equal, or one is not known."""
    values = one.settings.get(key), other.settings.get(key)
    return None if None in values or values[0] == values[1] else values


def _refuse_other_settings(one: Asked, other: Asked) -> None:
    for key, way in _SAME.items():
        if differ := _other(key, one, other):
            raise RequestError(
                f"{key} is {json.dumps(differ[0])} in {one.place} and {json.dumps(differ[1])} in {other.place}; that "
                f"would compare settings, not defenses. Evaluate one again with {way}, into another folder."
            )


def _clusters(runs: Iterable[Asked]) -> dict[str, str]:
    """Name the cluster of each question: what one evaluation has in one group is one cluster in all of them."""
    names: dict[str, str] = {}
    for run in runs:
        groups: dict[str, list[str]] = defaultdict(list)
        for question, group in run.groups.items():
            groups[group].append(question)
        for questions in groups.values():
            joined = {names.get(question, question) for question in questions}
            name = min(joined)
            if len(joined) > 1:
                names = {question: name if old in joined else old for question, old in names.items()}
            names |= dict.fromkeys(questions, name)
    return names


def _shared(run: Asked, beside: Asked, names: Mapping[str, str]) -> Run:
    """Hits and answers of each cluster, over the questions that both answered."""
    counts: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for question, (hits, answers) in run.counts.items():
        if answers and beside.counts.get(question, (0, 0))[1]:
            before = counts[names[question]]
            counts[names[question]] = before[0] + hits, before[1] + answers
    return dict(counts)


def asked_nowhere(evaluations: Sequence[Path], probe: str, run: str) -> str:
    """Say that no run was asked a probe, such as this one, and what the runs were asked."""
    names = dict.fromkeys(name for place in evaluations for name in AnswerStore(place).metadata()["probes"])
    choices = f"Choose from {', '.join(names)}; another" if names else "A"
    return (
        f"--probe {probe}: {run} has no answers to it. No other run has any. {choices} probe is asked by `staytrue "
        f"eval RUN --probes PROBE`.{stored_measures(evaluations[0])}"
    )


def stored_measures(evaluation: Path) -> str:
    """A sentence on what can be compared without a judge; "" if nothing can."""
    stored = " or ".join(f"`--probe {name}`" for name in read_measures(evaluation))
    return f" Without a judge, compare what is stored: {stored}." if stored else ""
