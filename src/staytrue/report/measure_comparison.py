"""Paired comparisons by the measures `pairs` and `drift`: each defense of a study, or each of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import eval_command
from staytrue.evals.results.measures import PAIRS, Measure, read_measures, stored_name
from staytrue.evals.stats.means import Values, difference
from staytrue.report.comparison import Compared, evaluations, paired_lines
from staytrue.report.comparison_table import Unit, show_table
from staytrue.report.measures import AGREEMENT, CONTROL


def compare_measures(folders: Sequence[Path], against: str, measure: str) -> Compared:
    """Compare every defense with one of them, on the same questions and the seeds that both have, domain by domain.

    Where the untuned model is not known in some run, as for a model without an adapter, the models' own values are
    compared, and a line has no mean of its own.

    Args:
        folders: one study, or two or more runs.
        against: the label to compare with, or that of one of its runs, or the run's folder.
        measure: `pairs`, `pairs:DOMAIN`, `pairs:FILE` or `drift`.

    Returns:
        Differences in nats per token with intervals, p values, and q values (Benjamini and Hochberg) over all lines.

    Raises:
        RequestError: a run lacks the measure, or was measured on other texts; or as `comparison.compare_runs`.
    """
    found = evaluations(folders)
    measured = [(label, domain, seed, _read(place, measure)) for place, label, domain, seed in found.places]
    _refuse_other_texts(measure, [(f"{label} seed {seed}", one) for label, _, seed, one in measured])
    relative = all(one.changes() for *_, one in measured)
    domains: dict[str, dict[str, dict[int, Values]]] = {}
    for label, domain, seed, one in measured:
        values = one.changes() if relative else one.values()
        domains.setdefault(domain, {}).setdefault(label, {})[seed] = values
    against = found.label_of(against)
    lines, notes = paired_lines(domains, against, folders, difference)
    if not relative:
        lines = [line | {"mean": None, "other": None} for line in lines]
    control = [CONTROL] if measure.startswith(PAIRS) else []
    return Compared(lines, [*found.notes, *notes, *control, AGREEMENT], against)


def show(compared: Compared) -> None:
    """Print the comparisons as a table, with the notes under it."""
    unit = Unit("nats", "difference", "mean", 3, _mean)
    what = f"Nats per token: the change against the untuned model, and its difference to {compared.against}"
    show_table(compared, unit, what, ", on the same questions and seeds.")


def _mean(mean: Mapping[str, Any] | None) -> str:
    return "-" if mean is None else f"{mean['value']:+.2f} ({mean['low']:+.2f} to {mean['high']:+.2f})"


def _read(place: Path, measure: str) -> Measure:
    stored = read_measures(place).get(stored_name(measure))
    if stored is None:
        raise RequestError(
            f"--probe {measure}: {place} has no such measure. Run {eval_command(place, measure)}, or leave that run "
            "out."
        )
    return stored


def _refuse_other_texts(measure: str, measured: Sequence[tuple[str, Measure]]) -> None:
    """Refuse values of different texts: other pairs, or other answers of the untuned model."""
    (first, one), *others = measured
    for name, other in others:
        if other.about.get("sha256") != one.about.get("sha256"):
            texts = "other pairs" if measure.startswith(PAIRS) else "other answers of the untuned model"
            raise RequestError(f"--probe {measure}: {name} was measured on {texts} than {first}. Measure both again.")
