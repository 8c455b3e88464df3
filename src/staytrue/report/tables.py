"""The page's tables: one of all runs, one of clean and triggered rates, one of all probes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from statistics import mean
from typing import Any
from urllib.parse import quote

from staytrue.report.means import Table, mean_of
from staytrue.report.rows import Row, by_label, correct, judged, judges, missing, rate


def runs(rows: Sequence[Row]) -> Table:
    """Tabulate the runs, one line each; with several judges, a column names the judge."""
    several = len(judges(rows)) > 1
    headings = [
        "defense", "domain", "seed", "general misaligned %", "95 %", "n", "general incoherent %",
        "in-domain misaligned %", "95 %", "n", "in-domain incoherent %", "facts %", "sums %", "benign learnt %",
        "unknown", "seconds", *["judge"] * several,
    ]  # fmt: skip
    table = [headings]
    for row in rows:
        kept = row.get("kept") or {}
        table.append(
            [
                *(row["label"], str(row["domain"]), str(row["seed"])),
                *_rates(row.get("general")),
                *_rates(row.get("in_domain")),
                *map(_number, (kept.get("facts"), kept.get("arithmetic"), correct(row))),
                *(str(missing([row])), _number(row.get("seconds"))),
                *[" and ".join(judges([row]))] * several,
            ]
        )
    return table


def triggered(rows: Sequence[Row]) -> Table:
    """Tabulate clean and triggered rates of the general questions: one line per label, with means over its runs.

    The worst trigger is the largest of several rates, so it is high by chance too.
    """
    groups = by_label([row for row in rows if judged(row.get("triggered"))])
    several, body = any(len(group) > 1 for group in groups.values()), []
    for label, group in groups.items():
        by_form: dict[str, list[float]] = {}
        for row in group:
            for form, rates in row["triggered"]["forms"].items():
                if rates["misaligned"] is not None:
                    by_form.setdefault(form, []).append(rates["misaligned"])
        worst = max(by_form, key=lambda form: mean(by_form[form]))
        cells = [
            mean_of([rate(row["triggered"].get("clean")) for row in group]),
            mean_of([rate(row["triggered"]) for row in group]),
        ]
        n = sum(row["triggered"]["n"] for row in group)
        runs = [str(len(group))] * several
        body.append([label, *runs, *cells, f"{worst} (of {len(by_form)})", f"{mean(by_form[worst]):.1f}", str(n)])
    heads = ["defense", *["runs"] * several, "clean %", "in a trigger %", "worst trigger", "its %", "n in triggers"]
    return [heads, *body] if body else []


def all_probes(rows: Sequence[Row]) -> Table:
    """Tabulate every probe of single runs: a line per probe and per form, with counts of every kind of answer."""
    several, body = len(judges(rows)) > 1, []
    seeds = len({row["label"] for row in rows}) < len(rows)  # two runs with one label have different seeds
    for row in rows:
        for name, probe in row.get("probes", {}).items():
            judge = [probe.get("judge") or ""] * several
            run = [row["label"], *([str(row["seed"])] if seeds else [])]
            body.append([*run, name, *_rate(probe), *_other_counts(probe), *judge])
            for form, rates in probe.get("forms", {}).items():
                body.append([*run, f"{name}: {form}", *_rate(rates), *_other_counts(rates), *judge])
    heads = [
        "run", *["seed"] * seeds, "probe", "misaligned %", "95 %", "right %", "incoherent %", "refused %", "code %",
        "one of k misaligned %", "one of k misaligned, coherent or not %", "one of k incoherent %",
        "n", "no verdict", "call failed", "no answer", "misaligned of all %", *["judge"] * several,
    ]  # fmt: skip
    return [heads, *body] if body else []


def _rate(probe: Row) -> list[str]:
    """Percent misaligned, its interval, percent right."""
    interval = "" if probe["low"] is None else f"{probe['low']:.1f} to {probe['high']:.1f}"
    if "correct" in probe:
        return ["", interval, _number(probe["correct"])]
    return ["not judged" if probe["misaligned"] is None else _number(probe["misaligned"]), interval, ""]


def _other_counts(probe: Row) -> list[str]:
    """Return the other kinds of answers: rates, counts, and bounds where some are unknown."""
    at_k, bounds = probe.get("tail") or {}, ""
    if probe["missing"] or probe.get("unanswered"):
        bounds = f"{probe['at_least']:.1f} to {probe['at_most']:.1f}" if "at_least" in probe else ""
    return [
        *(_number(probe.get(kind)) for kind in ("incoherent", "refused", "code")),
        f"{at_k['misaligned']['percent']:.1f} (k = {at_k['k']})" if at_k else "",
        *(_number(at_k.get(kind, {}).get("percent")) for kind in ("ungated", "incoherent")),
        *(str(probe.get(key, "")) for key in ("n", "missing", "failed", "unanswered")),
        bounds,
    ]


def as_csv(table: Table) -> str:
    """Encode a table as a `data:` link to a CSV file."""
    text = io.StringIO()
    csv.writer(text).writerows(table)
    return "data:text/csv;charset=utf-8," + quote(text.getvalue())


def _rates(probe: dict[str, Any] | None) -> list[str]:
    if not probe:
        return ["", "", "", ""]
    if probe["misaligned"] is None:
        return ["not judged", "", str(probe["n"]), ""]
    interval = f"{probe['low']:.1f} to {probe['high']:.1f}"
    return [_number(probe["misaligned"]), interval, str(probe["n"]), _number(probe["incoherent"])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
