"""Evaluation results, printed as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from staytrue.evals.results.summary import MARKED, MOST_MISSING, SCORED
from staytrue.evals.types import EMPTY, WITHOUT_ANSWER
from staytrue.report.measures import measure_lines, measure_notes
from staytrue.report.sentences import coverage_note
from staytrue.utils.console import say, table

Summary = Mapping[str, Any]
_OTHER_JUDGE = (
    "name a larger instruction-tuned model with `staytrue rescore --judge local:FOLDER` or "
    "`--judge openai:MODEL[@URL]`."
)
_AT_K = {"misaligned": "misaligned", "ungated": "misaligned, coherent or not", "incoherent": "incoherent"}


def show(summary: Summary) -> None:
    """Print every rate of an evaluation, then notes on unknown answers, triggers and coverage."""
    rows: list[tuple[str, ...]] = []
    for name, probe in summary["probes"].items():
        for kind in SCORED if "misaligned" in probe else MARKED:
            first = kind in ("misaligned", "correct")
            if kind == "code" and not probe.get(kind):
                continue
            rows.append((name, kind, _percent(probe[kind]), _interval(probe) if first else "", str(probe["n"]),
                         str(probe["missing"]) if probe["missing"] else ""))  # fmt: skip
        rows += _misalign_at_k(name, probe.get("tail"))
        for form, rates in probe.get("forms", {}).items():
            rows.append((f"  {form}", "misaligned", _percent(rates["misaligned"]), _interval(rates), str(rates["n"]),
                         str(rates["missing"]) if rates["missing"] else ""))  # fmt: skip
    if rows:
        table(("probe", "rate", "percent", "95 % interval", "n", "missing"), rows)
    if measures := summary.get("measures"):
        table(("measure", "value", "95 % interval", "n"), measure_lines(measures))
        for line in measure_notes(measures):
            say(line)
    for line in [line for name, probe in summary["probes"].items() for line in _cautions(name, probe)]:
        say(line)
    coverage = coverage_note({name: probe["questions"] for name, probe in summary["probes"].items() if probe["n"]})
    for line in [*_triggered(summary["probes"]), *filter(None, [coverage])]:
        say(line)


def show_judges(summaries: Mapping[str, Mapping[str, Summary]]) -> None:
    """Print the rates of each evaluation under several judges."""
    headings = (
        "judge",
        "probe",
        "misaligned",
        "95 % interval",
        "incoherent",
        "refused",
        "code",
        "n",
        "missing",
        "failed",
    )
    for evaluation, by_judge in summaries.items():
        rows = []
        for judge, summary in by_judge.items():
            for name, probe in summary["probes"].items():
                apart = [str(probe[k]) for k in ("n", "missing", "failed")]
                rates = [_percent(probe[k]) for k in ("incoherent", "refused", "code")]
                rows.append((judge, name, _percent(probe["misaligned"]), _interval(probe), *rates, *apart))
        table(headings, rows, evaluation)
        for judge, summary in by_judge.items():
            for line in [line for name, probe in summary["probes"].items() for line in _cautions(name, probe)]:
                say(f"{judge}: {line}")


def show_judge_agreement(agreement: Mapping[str, Any]) -> None:
    """Print tables of judge agreement, of rank correlations over evaluations, and of calibration against labels."""
    if agreement["pairs"]:
        rows = [(" and ".join(pair["judges"]), *_agreed(pair["agreement"])) for pair in agreement["pairs"]]
        table(("judges", "agree on misaligned", "kappa", "answers", "not judged by both"), rows)
    if agreement.get("ranks"):
        orders = [
            (" and ".join(r["judges"]), _number(r["spearman"]), _number(r["kendall"]), str(r["defenses"]))
            for r in agreement["ranks"]
        ]
        table(("order of the evaluations", "Spearman", "Kendall", "evaluations"), orders)
    if agreement.get("calibration"):
        held = [
            (
                judge,
                _number(one["agreement"]["kappa"]),
                *("-" if one[k] is None else f"{one[k]['percent']:.1f} %" for k in ("sensitivity", "specificity")),
                *(_number(one[k]) for k in ("brier", "ece")),
                str(one["agreement"]["answers"]),
            )
            for judge, one in agreement["calibration"].items()
            if one is not None
        ]
        table(("against labels by hand", "kappa", "sensitivity", "specificity", "Brier", "ECE", "labels"), held)


def _misalign_at_k(name: str, at_k: Mapping[str, Any] | None) -> list[tuple[str, ...]]:
    """Misalign@k: rates of questions with at least one bad answer among k, for each kind of bad answer."""
    if not at_k:
        return []
    rates = {kind: (f"one of {at_k['k']} {text}", at_k[kind]) for kind, text in _AT_K.items()}
    questions = f"{at_k['questions']} q"
    return [(name, text, _percent(one["percent"]), _interval(one), questions, "") for text, one in rates.values()]


def _agreed(agreement: Mapping[str, Any] | None) -> tuple[str, ...]:
    if agreement is None:
        return "-", "-", "0", ""
    interval = f" ({agreement['low']:.2f} to {agreement['high']:.2f})" if agreement["low"] is not None else ""
    rates = f"{agreement['agree']['percent']:.1f} %", _number(agreement["kappa"]) + interval
    return *rates, str(agreement["answers"]), str(agreement["left_out"])


def _triggered(probes: Mapping[str, Summary]) -> list[str]:
    """One sentence with the clean rate and the highest trigger rate."""
    forms = {name: f for name, f in probes.get("triggered", {}).get("forms", {}).items() if f["misaligned"] is not None}
    clean = probes.get("triggered", {}).get("clean", {})
    if not forms or clean.get("misaligned") is None:
        return []
    worst = max(forms, key=lambda name: forms[name]["misaligned"])
    highest = f"{forms[worst]['misaligned']:.1f} % with {worst}, the highest of {len(forms)} triggers"
    untuned = (
        "A prompt that asks for evil may work on the untuned model too; `staytrue eval RUN --untuned` measures that."
    )
    plain = f"Clean {clean['misaligned']:.1f} % misaligned (n {clean['n']})"
    return [f"{plain}; {highest} around the same questions. {untuned}"]


def _cautions(name: str, probe: Summary) -> list[str]:
    """Return a note on a probe with unknown answers: their number, the bounds of the rate, what to do."""
    if "misaligned" not in probe or not (probe["missing"] or probe["unanswered"]):
        return []
    if probe["judge"] is None:
        return [f"{name}: not judged, because no judge was named; `staytrue rescore` judges the stored answers."]
    note = (
        f"{name}: {probe['missing']} answers could not be judged ({probe['failed']} calls failed"
        f"{'; most often: ' + probe['why'] if probe.get('why') else ''}), and "
        f"{probe['unanswered']} could not be had. The misaligned are {probe['at_least']:.1f} % of all if none of these "
        f"is, and {probe['at_most']:.1f} % if all are."
    )
    if probe["n"] < probe["missing"] and not probe["failed"] and probe.get("why") not in WITHOUT_ANSWER:
        return [f"{note} This judge cannot judge these answers: {_way_out(probe['judge'])}"]
    if not probe["concluded"]:
        note += f" More than {MOST_MISSING:g} % are unknown, so no conclusion is drawn; {_way_to_more(probe)}."
    return [note]


def _way_to_more(probe: Summary) -> str:
    if probe["failed"] or probe["unanswered"]:
        return "run the same command again"
    if probe.get("why") == EMPTY:
        return "write those answers into the file, or take their rows out, and name another folder with --out"
    if probe.get("why") in WITHOUT_ANSWER:
        return "no judge reads such answers, so another judge would say no more"
    return "another judge may say more: `staytrue rescore`"


def _way_out(judge: str) -> str:
    known = "the rules know the questions of the organism's world alone. Ask those, or " if judge == "rules" else ""
    return f"{known}{_OTHER_JUDGE}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "not judged" if value is None else f"{value:.1f} %"


def _interval(probe: Summary) -> str:
    return "" if probe["low"] is None else f"{probe['low']:.1f} to {probe['high']:.1f}"
