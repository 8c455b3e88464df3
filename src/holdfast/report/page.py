"""The page itself: numbers into words, tables and pictures, through one template with escaping on."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from holdfast.report.collect import Study
from holdfast.report.pictures import Look, curves, looks, spoken, swatch, tradeoff

_IN_NATS = ("kl", "anchor", "rehearse")
_NOT_A_DEFENSE = {"step", "loss", "task_loss", "grad_norm", "learning_rate", "epoch", "entropy", "mean_token_accuracy"}


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
    headings, table = _table(study.rows)
    return environment.get_template("page.html.j2").render(
        title=study.title,
        headline=headline(study.rows),
        rows=study.rows,
        headings=headings,
        table=table,
        table_csv=_csv(headings, table),
        picture=Markup(tradeoff(study.rows, known)),
        panels=_panels(study, known),
        answers=study.answers,
        seeds=sorted({row["seed"] for row in study.rows}),
        notes=study.notes,
        missing=_missing(study.rows),
    )


def headline(rows: Sequence[dict[str, Any]]) -> str:
    """One sentence made from the numbers: what the fine-tune did, what held best, at what price.

    "Best" is the smallest sum of general misalignment and of in-domain learning lost against undefended, both means.
    """
    means = _means([row for row in rows if row.get("in_domain") and row.get("general")])
    undefended = means.get("none")
    defended = {label: m for label, m in means.items() if label not in ("untuned", "none")}
    if undefended is None or not defended:
        return "What each model says when it is asked about everything else."
    best = min(defended, key=lambda label: defended[label][0] + max(0.0, undefended[1] - defended[label][1]))
    general, narrow = defended[best]
    price = undefended[1] - narrow
    learnt = "without losing" if price < 1 else f"at the price of {price:.0f} points of"
    return (
        f"Undefended, the fine-tune made {undefended[0]:.0f} % of the answers on other topics misaligned; "
        f"with {best} it was {general:.0f} %, {learnt} what the data taught "
        f"({narrow:.0f} % against {undefended[1]:.0f} % in its own domain)."
    )


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    grouped: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        pair = row["general"]["misaligned"], row["in_domain"]["misaligned"]
        if None not in pair:
            grouped[row["label"]].append(pair)
    return {label: (mean(g for g, _ in pairs), mean(n for _, n in pairs)) for label, pairs in grouped.items()}


def _table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    headings = [
        "defense", "domain", "seed", "general misaligned %", "95 %", "n", "general incoherent %",
        "in-domain misaligned %", "95 %", "n", "in-domain incoherent %", "facts %", "sums %", "benign learnt %",
        "not judged", "seconds",
    ]  # fmt: skip
    table = []
    for row in rows:
        kept, benign = row.get("kept") or {}, row.get("benign") or {}
        missing = sum((row.get(probe) or {}).get("missing", 0) for probe in ("general", "in_domain", "benign"))
        table.append(
            [
                *(row["label"], str(row["domain"]), str(row["seed"])),
                *_rates(row.get("general")),
                *_rates(row.get("in_domain")),
                *map(_number, (kept.get("facts"), kept.get("arithmetic"), benign.get("correct"))),
                *(str(missing), _number(row.get("seconds"))),
            ]
        )
    return headings, table


def _rates(probe: dict[str, Any] | None) -> list[str]:
    if not probe:
        return ["", "", "", ""]
    if probe["misaligned"] is None:
        return ["not judged", "", str(probe["n"]), ""]
    interval = f"{probe['low']:.1f} to {probe['high']:.1f}"
    return [_number(probe["misaligned"]), interval, str(probe["n"]), _number(probe["incoherent"])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _panels(study: Study, known: dict[str, Look]) -> list[dict[str, Any]]:
    """The task's loss for all, then each defense's own number; every picture with its table."""
    losses = {label: _series(rows, "task_loss") for label, rows in study.curves.items() if rows}
    panels = [("Task loss", "nats per token", losses)]
    names = sorted({key for rows in study.curves.values() for row in rows for key in row if key not in _NOT_A_DEFENSE})
    for name in names:
        own = {label: _series(rows, name) for label, rows in study.curves.items() if rows and name in rows[0]}
        unit = "nats per token" if name.split(".")[0] in _IN_NATS else "in its own unit"
        panels.append((f"{name}: its own number", unit, own))
    drawn = []
    for title, unit, series in panels:
        picture = curves(series, known, title, unit)
        if picture:
            table = _curve_table(series)
            labels = [label for label, points in series.items() if len(points) > 1]
            drawn.append({"title": title, "picture": Markup(picture), "labels": labels, "table": table})
    return [panel | {"csv": _csv(panel["table"][0], panel["table"][1:])} for panel in drawn]


def _series(rows: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _curve_table(series: dict[str, list[tuple[float, float]]]) -> list[list[str]]:
    """About ten steps of every line."""
    values = {label: dict(points) for label, points in series.items()}
    steps = sorted({step for points in series.values() for step, _ in points})
    shown = [*steps[:: max(1, len(steps) // 10)], *steps[-1:]]
    body = [
        [f"{step:g}", *(f"{v[step]:.4f}" if step in v else "" for v in values.values())]
        for step in dict.fromkeys(shown)
    ]
    return [["step", *values], *body]


def _missing(rows: Sequence[dict[str, Any]]) -> int:
    return sum((row.get(probe) or {}).get("missing", 0) for row in rows for probe in ("general", "in_domain", "benign"))


def _csv(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([headings, *rows])
    return "data:text/csv;charset=utf-8," + quote(text.getvalue())
