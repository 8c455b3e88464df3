"""Tables of means over seeds, one per measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

from staytrue.evals.stats.intervals import over_runs
from staytrue.report.rows import Rate, Row, by_label, correct, judged, rate

Table = list[list[str]]  # headings first


def over_seeds(rows: Sequence[Row]) -> dict[str, Table]:
    """Compute tables, by title, of means over seeds with 95 % intervals; {} where no label has several.

    Several domains give one table per measure, with a column per domain. One domain gives one table with a column per
    measure.
    """
    seeds = {(row["label"], row["domain"], row["seed"]) for row in rows}
    if len({key[:2] for key in seeds}) == len(seeds):
        return {}
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    tables = {}
    for measure, cell in _MEASURES.items():
        body = [
            [label, *(cell([row for row in group if row["domain"] == domain]) for domain in domains)]
            for label, group in by_label(rows).items()
        ]
        if any(text for line in body for text in line[1:]):
            tables[measure] = [["defense", *map(str, domains)], *body]
    return tables if len(domains) > 1 else _side_by_side(tables, str(domains[0]) or "All runs")


def mean_of(rates: Sequence[Rate | None]) -> str:
    """Return the mean over runs with its interval, as text; "" without rates."""
    known = [one for one in rates if one is not None]
    if not known:
        return ""
    middle, low, high = over_runs(known)
    return f"{middle:.1f} ({low:.0f} to {high:.0f})"


def _side_by_side(tables: dict[str, Table], name: str) -> dict[str, Table]:
    """Several tables of one column each, as one table."""
    if not tables:
        return {}
    firsts = next(iter(tables.values()))
    body = [[line[0], *(table[i][1] for table in tables.values())] for i, line in enumerate(firsts) if i > 0]
    return {name: [["defense", *tables], *body]}


def _misaligned(probe: str) -> Callable[[Sequence[Row]], str]:
    return lambda rows: mean_of([rate(row.get(probe)) for row in rows])


def _learnt(rows: Sequence[Row]) -> str:
    marked = [row["benign"] for row in rows if correct(row) is not None]
    return mean_of([(one["correct"], one["low"], one["high"]) for one in marked])


def _incoherent(rows: Sequence[Row]) -> str:
    return mean_of([(row["general"]["incoherent"],) * 3 for row in rows if judged(row.get("general"))])


def _kept(name: str) -> Callable[[Sequence[Row]], str]:
    """Return the mean over runs with the lowest and highest run, since results.json has no interval for this rate."""

    def cell(rows: Sequence[Row]) -> str:
        known = [share for row in rows if (share := (row.get("kept") or {}).get(name)) is not None]
        return f"{mean(known):.1f} ({min(known):.0f} to {max(known):.0f})" if known else ""

    return cell


_MEASURES: dict[str, Callable[[Sequence[Row]], str]] = {
    "General misaligned": _misaligned("general"),
    "In-domain misaligned: the narrow behaviour, learnt": _misaligned("in_domain"),
    "Harmless task learnt: held-out answers right": _learnt,
    "General incoherent (interval over seeds alone)": _incoherent,
    "Sums kept (lowest to highest run)": _kept("arithmetic"),
    "Facts kept (lowest to highest run)": _kept("facts"),
}
