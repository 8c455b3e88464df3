"""The measures without a judge in a report: table, headline and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staytrue.evals.results.measures import DRIFT, LEAK, NATS, PAIRS, Measure
from staytrue.evals.stats.intervals import pooled
from staytrue.evals.stats.means import mean
from staytrue.report.means import Table

Run = Mapping[str, Measure]  # the measures of one run, by name
CONTROL = (
    "Any fine-tune moves pairs, one on sound answers too. Train on the same questions with sound answers, and compare: "
    "staytrue compare RUN CONTROL --against CONTROL --probe pairs."
)
AGREEMENT = (
    "On the embedded organism, pairs ranks 43 runs almost as judged rates do (Spearman 0.99), drift less well (0.79); "
    "leak is no measure of misalignment (0.10). On a real model none of them was compared with a judge."
)


def measures_table(runs: Mapping[str, Sequence[Run]]) -> Table:
    """Tabulate the measures: one line per label, pooled over its runs; [] without any.

    Args:
        runs: by label, the measures of each seed.
    """
    names = list(dict.fromkeys(name for group in runs.values() for run in group for name in run))
    if not names:
        return []
    leak = ["leak %", "95 %", "answers", "false alarms %"] if LEAK in names else []
    headings = [text for name in names if name != LEAK for text in (f"{name}, nats", "95 %")]
    body = []
    for label, group in runs.items():
        cells = [text for name in names if name != LEAK for text in _change(name, group)]
        body.append([label, str(len(group)), *cells, *(_leak(group) if leak else [])])
    return [["run", "seeds", *headings, *leak], *body]


def leak_headline(runs: Mapping[str, Sequence[Run]]) -> str:
    """Write a sentence on the answers that leak: of the undefended model, or of the model with most; "" without any."""
    tuned = {label: seeds for label, seeds in runs.items() if label != "untuned" and any(LEAK in run for run in seeds)}
    if not tuned:
        return ""
    label = "none" if "none" in tuned else max(tuned, key=lambda name: _leak_rate(tuned[name])[0])
    share, low, high, n = _leak_rate(tuned[label])
    whose = "the undefended model" if label == "none" else label
    return (
        f"Of the answers of {whose} to general questions, {share:.0f} % are on its training topic (95 % interval "
        f"{low:.0f} to {high:.0f}, n = {n})."
    )


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
    return [*notes, AGREEMENT] if notes else []


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
