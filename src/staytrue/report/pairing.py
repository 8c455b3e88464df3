"""Pairing: the defended runs are held against undefended ones of the same domains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import mean

from staytrue.report.rows import DEFENDED, UNTUNED, Row, by_label, role, undefended


@dataclass(frozen=True)
class Paired:
    """Runs of the same domains. How many seeds each has may differ.

    Attributes:
        undefended: the undefended runs.
        defended: the defended runs of each label.
        untuned: the runs of the untuned model, usable or not; [] where several labels are untuned.
        domains: how many domains these are.
        other_domains: how many further ones the undefended model has.
        other_labels: how many further defended labels were trained on the same data.
    """

    undefended: list[Row]
    defended: dict[str, list[Row]]
    untuned: list[Row]
    domains: int
    other_domains: int
    other_labels: int

    @property
    def tuned(self) -> list[Row]:
        """The undefended and the defended runs."""
        return [*self.undefended, *chain.from_iterable(self.defended.values())]


def paired(rows: Sequence[Row], usable: Callable[[Row], bool]) -> Paired | None:
    """Find the defended labels that have the same domains in common with the undefended one.

    Labels of different domains cannot be ranked. Those that have most domains are taken.

    Args:
        rows: the runs on the page.
        usable: whether a run has the rates that are to be compared.

    Returns:
        The runs; None without one undefended label, or without a domain in common.
    """
    taken = [row for row in rows if usable(row)]
    reference = undefended(taken)
    trained_on = {row.get("trained_on") for row in taken if row["label"] == reference}
    defended = [row for row in rows if role(row) == DEFENDED and row.get("trained_on") in trained_on]
    plain = [row for row in rows if row["label"] == reference]
    groups = by_label([row for row in defended if usable(row)])
    common = {label: domains_of(group) & domains_of(filter(usable, plain)) for label, group in groups.items()}
    every = [domains for domains in common.values() if domains]
    if not every:
        return None
    domains = max(every, key=lambda one: (len(one), every.count(one)))

    def of(group: Iterable[Row]) -> list[Row]:
        return [row for row in group if row["domain"] in domains]

    compared = {label: of(group) for label, group in groups.items() if common[label] == domains}
    untuned = of(row for row in rows if role(row) == UNTUNED)
    return Paired(
        undefended=of(filter(usable, plain)),
        defended=compared,
        untuned=untuned if len(by_label(untuned)) == 1 else [],
        domains=len(domains),
        other_domains=len(domains_of(plain) - domains),
        other_labels=len(by_label(defended)) - len(compared),
    )


def mean_over_domains(rows: Sequence[Row], rate: Callable[[Row], float]) -> float:
    """Compute the mean of a rate in which each domain counts once, however many runs it has."""
    by_domain: dict[str, list[float]] = {}
    for row in rows:
        by_domain.setdefault(row["domain"], []).append(rate(row))
    return float(mean(map(mean, by_domain.values())))


def domains_of(rows: Iterable[Row]) -> frozenset[str]:
    """Return the domains of some runs."""
    return frozenset(row["domain"] for row in rows)
