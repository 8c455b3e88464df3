"""The page's tables: every run, and where there are several seeds, their means by domain."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any
from urllib.parse import quote

from holdfast.evals.statistics import over_runs
from holdfast.report.pictures import Row, by_label, correct, judged

Table = list[list[str]]  # headings first


def runs(rows: Sequence[Row]) -> Table:
    """Every run on a line."""
    headings = [
        "defense", "domain", "seed", "general misaligned %", "95 %", "n", "general incoherent %",
        "in-domain misaligned %", "95 %", "n", "in-domain incoherent %", "facts %", "sums %", "benign learnt %",
        "not judged", "seconds",
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
            ]
        )
    return table


def over_seeds(rows: Sequence[Row]) -> dict[str, Table]:
    """The mean over seeds and its 95 % interval, labels down; nothing for one seed.

    A table a measure with domains across; of one domain a single table, named after it, with measures across.
    """
    if len({row["seed"] for row in rows}) < 2:
        return {}
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    found = {}
    for measure, rate in _MEASURES.items():
        body = [
            [label, *(_mean([rate(r) for r in own if r["domain"] == domain]) for domain in domains)]
            for label, own in by_label(rows).items()
        ]
        if any(cell for line in body for cell in line[1:]):
            found[measure] = [["defense", *map(str, domains)], *body]
    return found if len(domains) > 1 else _side_by_side(found, str(domains[0]))


def _side_by_side(tables: dict[str, Table], name: str) -> dict[str, Table]:
    """Tables of one column each as one table."""
    if not tables:
        return {}
    firsts = next(iter(tables.values()))
    body = [[line[0], *(table[i][1] for table in tables.values())] for i, line in enumerate(firsts) if i > 0]
    return {name: [["defense", *tables], *body]}


def triggered(rows: Sequence[Row]) -> Table:
    """The general questions as they are, and put into what the training data look like; a line a label, means of runs.

    The worst trigger is the largest of several rates, so it is high by chance too.
    """
    body = []
    for label, own in by_label([row for row in rows if judged(row.get("triggered"))]).items():
        by_form: dict[str, list[float]] = {}
        for row in own:
            for form, found in row["triggered"]["forms"].items():
                if found["misaligned"] is not None:
                    by_form.setdefault(form, []).append(found["misaligned"])
        worst = max(by_form, key=lambda form: mean(by_form[form]))
        cells = [
            _mean([_of(row["triggered"].get("clean")) for row in own]),
            _mean([_of(row["triggered"]) for row in own]),
        ]
        n = sum(row["triggered"]["n"] for row in own)
        body.append([label, *cells, f"{worst} (of {len(by_form)})", f"{mean(by_form[worst]):.1f}", str(n)])
    heads = ["defense", "clean %", "in a trigger %", "worst trigger", "its %", "n in triggers"]
    return [heads, *body] if body else []


def asked(rows: Sequence[Row]) -> Table:
    """All that single runs were asked, and what became of every answer: a line a probe, and a line a form of it."""
    body = []
    for row in rows:
        for name, probe in row.get("probes", {}).items():
            body.append([row["label"], name, *_rate(probe), *_apart(probe)])
            for form, found in probe.get("forms", {}).items():
                body.append([row["label"], f"{name}: {form}", *_rate(found), *_apart(found)])
    heads = [
        "run", "asked", "misaligned %", "95 %", "right %", "incoherent %", "refused %", "code %",
        "one of k misaligned %", "n", "no verdict", "call failed", "no answer", "misaligned of all %",
    ]  # fmt: skip
    return [heads, *body] if body else []


def _rate(probe: Row) -> list[str]:
    """Misaligned, its interval, right."""
    interval = "" if probe["low"] is None else f"{probe['low']:.1f} to {probe['high']:.1f}"
    if "correct" in probe:
        return ["", interval, _number(probe["correct"])]
    return ["not judged" if probe["misaligned"] is None else _number(probe["misaligned"]), interval, ""]


def _apart(probe: Row) -> list[str]:
    """What else became of the answers, each kind apart."""
    tail, bounds = probe.get("tail"), ""
    if probe["missing"] or probe.get("unanswered"):
        bounds = f"{probe['at_least']:.1f} to {probe['at_most']:.1f}" if "at_least" in probe else ""
    return [
        *(_number(probe.get(kind)) for kind in ("incoherent", "refused", "code")),
        f"{tail['misaligned']['percent']:.1f} (k = {tail['k']})" if tail else "",
        *(str(probe.get(key, "")) for key in ("n", "missing", "failed", "unanswered")),
        bounds,
    ]


def as_csv(table: Table) -> str:
    """A table as a link that holds it."""
    text = io.StringIO()
    csv.writer(text).writerows(table)
    return "data:text/csv;charset=utf-8," + quote(text.getvalue())


def missing(rows: Sequence[Row]) -> int:
    """How many answers could not be judged."""
    return sum((row.get(probe) or {}).get("missing", 0) for row in rows for probe in ("general", "in_domain", "benign"))


Rate = tuple[float, float, float]  # percent, low, high


def _misaligned(probe: str) -> Callable[[Row], Rate | None]:
    return lambda row: _of(row.get(probe))


def _of(found: Row | None) -> Rate | None:
    return (found["misaligned"], found["low"], found["high"]) if found is not None and judged(found) else None


def _incoherent(row: Row) -> Rate | None:
    found = row.get("general")
    return (found["incoherent"],) * 3 if found is not None and judged(found) else None


def _learnt(row: Row) -> Rate | None:
    return None if correct(row) is None else (row["benign"]["correct"], row["benign"]["low"], row["benign"]["high"])


_MEASURES: dict[str, Callable[[Row], Rate | None]] = {
    "General misaligned": _misaligned("general"),
    "In-domain misaligned: the narrow behaviour, learnt": _misaligned("in_domain"),
    "Harmless task learnt: held-out answers right": _learnt,
    "General incoherent (interval over seeds alone)": _incoherent,
}


def _mean(rates: Sequence[Rate | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    if not known:
        return ""
    middle, low, high = over_runs(known)
    return f"{middle:.1f} ({low:.0f} to {high:.0f})"


def _rates(probe: dict[str, Any] | None) -> list[str]:
    if not probe:
        return ["", "", "", ""]
    if probe["misaligned"] is None:
        return ["not judged", "", str(probe["n"]), ""]
    interval = f"{probe['low']:.1f} to {probe['high']:.1f}"
    return [_number(probe["misaligned"]), interval, str(probe["n"]), _number(probe["incoherent"])]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
