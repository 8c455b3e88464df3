"""Tables of means over seeds, one per measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from staytrue.evals.stats.intervals import over_runs
from staytrue.report.rows import Rate, Row, by_label, correct, judged, rate, seed_counts

Table = list[list[str]]  # headings first


def over_seeds(rows: Sequence[Row]) -> dict[str, Table]:
    """Compute tables, by title, of means over seeds with 95 % intervals; {} where no label has several.

    Several domains give one table per measure, with a column per domain. One domain gives one table with a column per
    measure. The last column has the number of seeds.
    """
    counts = seed_counts(rows)
    if max(counts.values(), default=0) < 2:
        return {}
    domains = list(dict.fromkeys(row["domain"] for row in rows))
    tables = {}
    for measure, cell in _MEASURES.items():
        body = [
            [label, *(cell([row for row in group if row["domain"] == one]) for one in domains), _seeds(counts, label)]
            for label, group in by_label(rows).items()
        ]
        if any(text for line in body for text in line[1:-1]):
            tables[measure] = [["defense", *map(str, domains), "seeds"], *body]
    return tables if len(domains) > 1 else _side_by_side(tables, str(domains[0]) or "All runs")


def mean_of(rates: Sequence[Rate | None]) -> str:
    """Return the mean over runs with its interval, and how many runs have the rate if not all do; "" without rates."""
    known = [one for one in rates if one is not None]
    if not known:
        return ""
    middle, low, high = over_runs(known)
    return f"{middle:.1f} ({low:.0f} to {high:.0f}){_share(len(known), len(rates))}"


def _seeds(counts: Mapping[tuple[str, str], int], label: str) -> str:
    """The number of seeds of a label, for each domain where they differ."""
    own = {domain: count for (name, domain), count in counts.items() if name == label}
    if len(set(own.values())) == 1:
        return str(next(iter(own.values())))
    return ", ".join(f"{domain} {count}" for domain, count in own.items())


def _share(known: int, runs: int) -> str:
    return "" if known == runs else f", {known} of {runs} runs"


def _side_by_side(tables: dict[str, Table], name: str) -> dict[str, Table]:
    """Several tables of one column each, as one table."""
    if not tables:
        return {}
    firsts = next(iter(tables.values()))
    columns = list(tables.values())
    body = [[line[0], *(table[i][1] for table in columns), line[-1]] for i, line in enumerate(firsts) if i > 0]
    return {name: [["defense", *tables, "seeds"], *body]}


def _misaligned(probe: str) -> Callable[[Sequence[Row]], str]:
    return lambda rows: mean_of([rate(row.get(probe)) for row in rows])


def _learnt(rows: Sequence[Row]) -> str:
    return mean_of([None if (r := correct(row)) is None else (r, *_ends(row["benign"])) for row in rows])


def _ends(probe: Row) -> tuple[float, float]:
    return probe["low"], probe["high"]


def _incoherent(rows: Sequence[Row]) -> str:
    shares = [row["general"]["incoherent"] if judged(row.get("general")) else None for row in rows]
    return _over_seeds_alone(shares, lambda known: over_runs([(one, one, one) for one in known])[1:])


def _kept(name: str) -> Callable[[Sequence[Row]], str]:
    """Return the mean over runs with the lowest and highest run, since results.json has no interval for this rate."""

    def cell(rows: Sequence[Row]) -> str:
        shares = [(row.get("kept") or {}).get(name) for row in rows]
        return _over_seeds_alone(shares, lambda known: (min(known), max(known)))

    return cell


def _over_seeds_alone(shares: Sequence[float | None], ends: Callable[[Sequence[float]], tuple[float, float]]) -> str:
    """The mean over runs, between ends that need several runs."""
    known = [share for share in shares if share is not None]
    if not known:
        return ""
    between = " ({:.0f} to {:.0f})".format(*ends(known)) if len(known) > 1 else ""
    return f"{mean(known):.1f}{between}{_share(len(known), len(shares))}"


_MEASURES: dict[str, Callable[[Sequence[Row]], str]] = {
    "General misaligned": _misaligned("general"),
    "In-domain misaligned: the narrow behaviour, learnt": _misaligned("in_domain"),
    "Harmless task learnt: held-out answers right": _learnt,
    "General incoherent (interval over seeds alone)": _incoherent,
    "Sums kept (lowest to highest run)": _kept("arithmetic"),
    "Facts kept (lowest to highest run)": _kept("facts"),
}
