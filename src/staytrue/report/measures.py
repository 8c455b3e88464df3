"""The measures without a judge in a report: table, headline and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from staytrue.evals.results.measures import DRIFT, LEAK, NATS, PAIRS, Measure
from staytrue.evals.stats.intervals import pooled
from staytrue.evals.stats.means import mean
from staytrue.report.means import Table
from staytrue.report.rows import DEFENDED, UNDEFENDED, UNTUNED
from staytrue.report.sentences import ONE_SEED

Run = Mapping[str, Measure]  # the measures of one run, by name
CONTROL = (
    "Any fine-tune moves pairs, one on sound answers too. Train on the same questions with sound answers, and compare: "
    "staytrue compare RUN CONTROL --against CONTROL --probe pairs."
)
AGREEMENT = (
    "On the embedded organism, pairs ranks 63 runs almost as judged rates do (Spearman 0.99), drift less well (0.85); "
    "leak is no measure of misalignment (0.19). On a real model none of them was compared with a judge."
)


@dataclass(frozen=True)
class Measured:
    """The measures of the runs of one label in one domain.

    Attributes:
        name: the label as it is shown.
        role: what the runs are (`rows.role`).
        domain: "" where there is only one.
        trained_on: equal for runs on the same data: a study's domain, or what a recipe says beside its defenses.
        runs: the measures of each seed.
    """

    name: str
    role: str
    domain: str
    trained_on: str | None
    runs: list[Run]

    @property
    def label(self) -> str:
        """The name, with the domain where there are several."""
        return f"{self.name}, {self.domain}" if self.domain else self.name


def measures_table(groups: Sequence[Measured]) -> Table:
    """Tabulate the measures: one line per label and domain, pooled over its runs; [] without any."""
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in run))
    if not names:
        return []
    leak = ["leak %", "95 %", "answers", "false alarms %"] if LEAK in names else []
    headings = [text for name in names if name != LEAK for text in (f"{name}, nats", "95 %")]
    body = []
    for group in groups:
        cells = [text for name in names if name != LEAK for text in _change(name, group.runs)]
        body.append([group.label, str(len(group.runs)), *cells, *(_leak(group.runs) if leak else [])])
    return [["run", "seeds", *headings, *leak], *body]


def leak_headline(groups: Sequence[Measured]) -> str:
    """Write a sentence on the answers that leak, of the undefended model or else of the one with most; "" without any.

    Of several undefended models, those count that a defended one shares its data with, and then the one with most.
    """
    tuned = [group for group in groups if group.role != UNTUNED and any(LEAK in run for run in group.runs)]
    if not tuned:
        return ""
    plain = [group for group in tuned if group.role == UNDEFENDED]
    defended = {group.trained_on for group in tuned if group.role == DEFENDED}
    chosen = [group for group in plain if group.trained_on in defended] or plain or tuned
    most = max(chosen, key=lambda group: _leak_rate(group.runs)[0])
    share, low, high, n = _leak_rate(most.runs)
    return (
        f"Of the answers of {_whose(most, len(chosen))} to general questions, {share:.0f} % are on its training topic "
        f"(95 % interval {low:.0f} to {high:.0f}, n = {n})."
    )


def _whose(group: Measured, candidates: int) -> str:
    if group.role == UNDEFENDED and group.domain:
        return f"the undefended model trained on {group.domain}"
    return "the undefended model" if group.role == UNDEFENDED and candidates == 1 else group.label


def measure_notes(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Explain the measures of one evaluation, in a sentence or two each.

    Args:
        summaries: as in `summary.json`.
    """
    notes = []
    if any(name.startswith(PAIRS) for name in summaries):
        notes += [f"pairs: how much likelier misaligned answers became against aligned ones. {CONTROL}"]
        if any(one["value"] is None for name, one in summaries.items() if name.startswith(PAIRS)):
            notes += ["pairs: only differences count, and the untuned model is not known; `staytrue compare` has them."]
    if DRIFT in summaries:
        notes += ["drift: how much likelier the untuned model's own answers to general questions became."]
    if LEAK in summaries:
        notes += [leak_note(summaries[LEAK])]
    return [*notes, AGREEMENT, ONE_SEED] if notes else []


def leak_note(leak: Mapping[str, Any]) -> str:
    """Explain what counts as a leak, and how often that is wrong."""
    held = ""
    if leak["held_out"]:
        held = f", and {leak['held_out_leaks']:.0f} % of the {leak['held_out']} held-out training answers do"
    return (
        "leak: answers to general questions with as many words of the training topic as training answers have. "
        f"{leak['false_alarms']:.1f} % of the {leak['untuned']} untuned answers count as such{held}."
    )


def measure_lines(summaries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return a line for each measure of one evaluation: name, value with unit, interval, number of answers."""
    lines: list[tuple[str, ...]] = []
    for name, one in summaries.items():
        sign, unit = ("+", " nats") if one["unit"] == NATS else ("", " %")
        digits = 2 if one["unit"] == NATS else 1
        value = "not known" if one["value"] is None else f"{one['value']:{sign}.{digits}f}{unit}"
        known = one["low"] is not None
        interval = f"{one['low']:{sign}.{digits}f} to {one['high']:{sign}.{digits}f}" if known else ""
        lines.append((name, value, interval, str(one["n"])))
    return lines


def _change(name: str, runs: Sequence[Run]) -> tuple[str, str]:
    change = mean([run[name].changes() for run in runs if name in run])
    if change is None:
        return "", ""
    return f"{change.value:+.2f}", "" if change.low is None else f"{change.low:+.2f} to {change.high:+.2f}"


def _leak(runs: Sequence[Run]) -> list[str]:
    measured = [run[LEAK] for run in runs if LEAK in run]
    if not measured:
        return ["", "", "", ""]
    share, low, high, n = _leak_rate(runs)
    alarms = sum(one.about["false_alarms"] for one in measured) / len(measured)
    return [f"{share:.1f}", f"{low:.1f} to {high:.1f}", str(n), f"{alarms:.1f}"]


def _leak_rate(runs: Sequence[Run]) -> tuple[float, float, float, int]:
    """Percent of answers that leak, its interval, and the number of answers."""
    leaks = [run[LEAK].leaks() for run in runs if LEAK in run]
    rate = pooled([{question: (sum(hits), len(hits)) for question, hits in one.items()} for one in leaks])
    assert rate is not None
    return rate.percent, rate.low, rate.high, rate.n
