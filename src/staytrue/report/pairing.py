"""Pairing: the defended runs are held against undefended ones of the same domains and seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean

from staytrue.report.rows import DEFENDED, UNTUNED, Row, by_label, role, undefended

Pair = tuple[str, int]  # domain and seed


@dataclass(frozen=True)
class Paired:
    """Runs of the same domains and seeds.

    Attributes:
        undefended: the undefended runs.
        defended: the defended runs of each label.
        untuned: the runs of the untuned model; [] where it lacks one of the domains and seeds.
        pairs: how many domains and seeds these are.
        other_pairs: how many further ones the undefended model has.
        other_labels: how many further defended labels were trained on the same data.
    """

    undefended: list[Row]
    defended: dict[str, list[Row]]
    untuned: list[Row]
    pairs: int
    other_pairs: int
    other_labels: int

    @property
    def tuned(self) -> list[Row]:
        """The undefended and the defended runs."""
        return [*self.undefended, *chain.from_iterable(self.defended.values())]


def paired(rows: Sequence[Row], usable: Callable[[Row], bool]) -> Paired | None:
    """Find the defended labels that have the same domains and seeds in common with the undefended one.

    Labels of different domains and seeds cannot be ranked. Those that have most are taken.

    Args:
        rows: the runs on the page.
        usable: whether a run has the rates that are to be compared.

    Returns:
        The runs; None without one undefended label, or without a run in common.
    """
    taken = [row for row in rows if usable(row)]
    reference = undefended(taken)
    trained_on = {row.get("trained_on") for row in taken if row["label"] == reference}
    defended = [row for row in rows if role(row) == DEFENDED and row.get("trained_on") in trained_on]
    plain = [row for row in rows if row["label"] == reference]
    groups = by_label([row for row in defended if usable(row)])
    common = {label: _pairs(group) & _pairs(filter(usable, plain)) for label, group in groups.items()}
    every = [pairs for pairs in common.values() if pairs]
    if not every:
        return None
    pairs = max(every, key=lambda one: (len(one), every.count(one)))

    def of(group: Sequence[Row]) -> list[Row]:
        return [row for row in group if _pair(row) in pairs]

    compared = {label: of(group) for label, group in groups.items() if common[label] == pairs}
    untuned = of([row for row in taken if role(row) == UNTUNED])
    is_one = _pairs(untuned) == pairs and len(by_label(untuned)) == 1
    return Paired(
        undefended=of(list(filter(usable, plain))),
        defended=compared,
        untuned=untuned if is_one else [],
        pairs=len(pairs),
        other_pairs=len(_pairs(plain) - pairs),
        other_labels=len(by_label(defended)) - len(compared),
    )


def mean_over_pairs(rows: Sequence[Row], rate: Callable[[Row], float]) -> float:
    """Compute the mean of a rate in which each domain and seed counts once, however many runs it has."""
    by_pair: dict[Pair, list[float]] = {}
    for row in rows:
        by_pair.setdefault(_pair(row), []).append(rate(row))
    return float(mean(map(mean, by_pair.values())))


def _pair(row: Row) -> Pair:
    return row["domain"], row["seed"]


def _pairs(rows: Iterable[Row]) -> frozenset[Pair]:
    return frozenset(map(_pair, rows))
