"""The page itself: numbers into words, tables and pictures, through one template with escaping on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from holdfast.report.collect import Study
from holdfast.report.drawing import Look, looks, spoken, swatch
from holdfast.report.pictures import Row, by_label, correct, curves, highest, judged, learnt, tradeoff
from holdfast.report.tables import Table, as_csv, asked, missing, over_seeds, runs, triggered

_IN_NATS = ("kl", "anchor", "rehearse")
_TRAINERS_OWN = {  # what trainers log of themselves, by the first part of the key
    "step", "loss", "task_loss", "grad_norm", "learning_rate", "epoch", "entropy", "mean_token_accuracy", "num_tokens",
    "reward", "reward_std", "rewards", "frac_reward_zero_std", "completions", "clip_ratio", "sampling", "step_time",
}  # fmt: skip


def render(study: Study) -> str:
    """The whole page as HTML."""
    known = looks(list(dict.fromkeys(row["label"] for row in study.rows)))
    environment = Environment(
        loader=PackageLoader("holdfast.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["swatch"] = lambda label: Markup(swatch(known[label]))
    environment.filters["spoken"] = spoken
    environment.filters["as_csv"] = as_csv
    tasks = dict.fromkeys(row["domain"] for row in study.rows if row["domain"])  # a run by itself names none
    return environment.get_template("page.html.j2").render(
        title=study.title,
        headline=headline(study.rows),
        rows=study.rows,
        table=runs(study.rows),
        means=over_seeds(study.rows),
        triggers=triggered(study.rows),
        asked=asked(study.rows),
        organism=study.organism,
        pictures=_tradeoffs(study.rows, known),
        tasks=[(task, Markup(drawn)) for task in tasks if (drawn := learnt(study.rows, known, task))],
        panels=_panels(study, known),
        answers=study.answers,
        seeds=sorted({row["seed"] for row in study.rows}),
        notes=study.notes,
        missing=missing(study.rows),
    )


def _tradeoffs(rows: Sequence[Row], known: dict[str, Look]) -> list[tuple[str, Markup]]:
    """One picture; where a defense has more than two strengths, one of each such defense and one of the others."""
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row["defense"], set()).add(row["label"])
    swept = [name for name, own in labels.items() if len(own) > 2]
    groups = {name: [row for row in rows if row["defense"] in ("untuned", "none", name)] for name in swept}
    if len(set(labels) - {*swept, "untuned", "none"}) > 0 or not swept:
        groups["the others" if swept else ""] = [row for row in rows if row["defense"] not in swept]
    letters = 13.0 if len(groups) == 1 else 19.0  # as the style sheet has them
    top = highest(rows)
    drawn = {name: tradeoff(own, known, top, letters) for name, own in groups.items()}
    return [(name, Markup(picture)) for name, picture in drawn.items() if picture]


def headline(rows: Sequence[Row]) -> str:
    """One sentence made from the numbers: what the fine-tune did, what held best, at what price.

    "Best" is the smallest sum of general misalignment and of in-domain learning lost against undefended, both means.
    """
    judged_rows = [row for row in rows if judged(row.get("general")) and judged(row.get("in_domain"))]
    means = {
        label: (mean(r["general"]["misaligned"] for r in own), mean(r["in_domain"]["misaligned"] for r in own))
        for label, own in by_label(judged_rows).items()
    }
    undefended = means.get("none")
    defended = {label: m for label, m in means.items() if label not in ("untuned", "none")}
    if undefended is None or not defended:
        return _of_a_task(rows) or "What each model says when it is asked about everything else."
    best = min(defended, key=lambda label: defended[label][0] + max(0.0, undefended[1] - defended[label][1]))
    general, narrow = defended[best]
    price = undefended[1] - narrow
    kept = "without losing" if price < 1 else f"at the price of {price:.0f} points of"
    chosen = f", the best of {len(defended)}," if len(defended) > 1 else ""
    return (
        f"Undefended, the fine-tune made {undefended[0]:.0f} % of the answers on other topics misaligned; "
        f"with {best}{chosen} it was {general:.0f} %, {kept} what the data taught "
        f"({narrow:.0f} % against {undefended[1]:.0f} % in its own domain)."
    )


def _of_a_task(rows: Sequence[Row]) -> str:
    """The same for harmless tasks: what was learnt undefended, and which defense took most of it away."""
    marked = by_label([row for row in rows if correct(row) is not None])
    means = {label: mean(row["benign"]["correct"] for row in own) for label, own in marked.items()}
    defended = {label: m for label, m in means.items() if label not in ("untuned", "none")}
    if "none" not in means or not defended:
        return ""
    worst = min(defended, key=lambda label: defended[label])
    before = f" ({means['untuned']:.0f} % before)" if "untuned" in means else ""
    cost = f"with {worst}, which cost most, {defended[worst]:.0f} %"
    if defended[worst] >= means["none"]:
        cost = f"no defense took any of it away (the least was {defended[worst]:.0f} %, with {worst})"
    return f"Undefended, {means['none']:.0f} % of a harmless task was learnt{before}; {cost}."


def _panels(study: Study, known: dict[str, Look]) -> list[dict[str, Any]]:
    """The reward or the task's loss for all, then each defense's own number; every picture with its table."""
    logged = [row for logs in study.curves.values() for log in logs for row in log]
    rewarded = any("reward" in row for row in logged)
    first = ("reward", "Reward", "its terms added up") if rewarded else ("task_loss", "Task loss", "nats per token")
    wanted = [first]
    for key in sorted(key for key in set().union(*logged) if re.split(r"[./]", key)[0] not in _TRAINERS_OWN):
        unit = "nats per token" if key.split(".")[0] in _IN_NATS else "in its own unit"
        wanted.append((key, f"{key}: its own number", unit))
    drawn = []
    for key, title, unit in wanted:
        series = {label: _over_runs(logs, key) for label, logs in study.curves.items()}
        series = {label: points for label, points in series.items() if points}
        lines = {label: [(step, middle) for step, middle, _, _ in points] for label, points in series.items()}
        bands = {label: [(x, low, high) for x, _, low, high in points] for label, points in series.items()}
        several = {label: band for label, band in bands.items() if any(low < high for _, low, high in band)}
        picture = curves(lines, known, title, unit, several)
        if picture:
            labels = [label for label, points in lines.items() if len(points) > 1]
            table = _curve_table(lines)
            drawn.append({"title": title, "picture": Markup(picture), "labels": labels, "table": table})
    return drawn


def _over_runs(logs: Sequence[Sequence[Row]], key: str) -> list[tuple[float, float, float, float]]:
    """Step, mean, lowest, highest over the runs that logged the key at that step."""
    found: dict[float, list[float]] = {}
    for log in logs:
        for row in log:
            if row.get(key) is not None:
                found.setdefault(row["step"], []).append(row[key])
    return [(step, sum(v) / len(v), min(v), max(v)) for step, v in sorted(found.items())]


def _curve_table(lines: dict[str, list[tuple[float, float]]]) -> Table:
    """About ten steps of every line."""
    values = {label: dict(points) for label, points in lines.items()}
    steps = sorted({step for points in lines.values() for step, _ in points})
    shown = [*steps[:: max(1, len(steps) // 10)], *steps[-1:]]
    body = [
        [f"{step:g}", *(f"{v[step]:.4f}" if step in v else "" for v in values.values())]
        for step in dict.fromkeys(shown)
    ]
    return [["step", *values], *body]
