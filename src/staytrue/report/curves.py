"""Curves over optimizer steps: the reward or the task loss, then the number that each defense logs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from markupsafe import Markup

from staytrue.report.collect import PageData
from staytrue.report.means import Table
from staytrue.report.rows import UNDEFENDED, UNTUNED, Row, role
from staytrue.report.svg import Look, Plot, dash, key, round_up, svg

Point = tuple[float, float, float, float]  # step, mean, lowest and highest run
Series = Mapping[str, Sequence[Point]]  # by label
_MOST = 6  # lines in one picture that can be told apart
_IN_NATS = ("kl", "anchor", "rehearse")
_TRAINERS_OWN = {  # metrics of the trainer itself, by the first part of the key
    "step", "loss", "task_loss", "grad_norm", "learning_rate", "epoch", "entropy", "mean_token_accuracy", "num_tokens",
    "validation_loss", "reward", "reward_std", "rewards", "frac_reward_zero_std", "completions", "clip_ratio",
    "sampling", "step_time",
}  # fmt: skip


class Axes(NamedTuple):
    """The ends of a picture's axes: the last step, the lowest and the highest value."""

    last: float
    bottom: float
    top: float


def panels(page: PageData, known: Mapping[str, Look]) -> list[dict[str, Any]]:
    """Draw every picture with its legend and table.

    A metric is one picture with a line per label. With more than six lines it is one picture per defense, with the
    undefended run beside it and the same axes.
    """
    logged = [row for logs in page.curves.values() for log in logs for row in log]
    rewarded = any("reward" in row for row in logged)
    first = ("reward", "Reward", "sum of its terms") if rewarded else ("task_loss", "Task loss", "nats per token")
    series = _series(page, first[0])
    drawn = [
        _panel(part, known, f"{first[1]}{name and ': '}{name}", first[2], axes(series))
        for name, part in _split_by_defense(series, page.rows).items()
    ]
    if validated := _series(page, "validation_loss"):
        drawn.append(_panel(validated, known, "Validation loss", "nats per token", axes(validated)))
    for number in sorted(name for name in set().union(*logged) if re.split(r"[./]", name)[0] not in _TRAINERS_OWN):
        unit = "nats per token" if number.split(".")[0] in _IN_NATS else "in its own unit"
        if series := _series(page, number):
            drawn.append(_panel(series, known, f"{number}: its own number", unit, axes(series)))
    return drawn


def axes(series: Series) -> Axes:
    """Compute axes that contain every line and every run."""
    heights = [y for points in series.values() for _, *ys in points for y in ys]
    bottom = -round_up(-min(heights)) if min(heights) < 0 else 0.0
    return Axes(max(points[-1][0] for points in series.values()), bottom, round_up(max(heights)))


def curves(series: Series, known: Mapping[str, Look], title: str, unit: str, ends: Axes) -> str:
    """Draw a line per label over optimizer steps, with a band from its lowest to its highest run."""
    longest = max(len(f"{ends.bottom + (ends.top - ends.bottom) * i / 4:g}") for i in range(5))  # of the ticks' numbers
    left = max(48, 20 + 7 * longest)
    plot = Plot(410, 230, left, bottom=40, right=14, top=14, x_max=ends.last, y_max=ends.top, y_min=ends.bottom)
    parts = [plot.frame("optimizer step", unit)]
    for label, points in series.items():
        if any(low < high for _, _, low, high in points):
            there, back = [(x, high) for x, _, _, high in points], [(x, low) for x, _, low, _ in reversed(points)]
            parts.append(f'<polygon class="band f{known[label].colour}" points="{_path(plot, [*there, *back])}"/>')
    for number, (label, points) in enumerate(series.items()):
        line = _path(plot, _thinned([(x, middle) for x, middle, _, _ in points]))
        parts.append(
            f'<polyline class="line c{known[label].colour}" stroke-dasharray="{dash(number)}" points="{line}">'
            f"<title>{escape(label)}</title></polyline>"
        )
    ends_at = "; ".join(f"{label} ends at {points[-1][1]:.3g}" for label, points in series.items())
    return svg(plot, title, f"{ends_at}.", parts)


def _series(page: PageData, number: str) -> dict[str, list[Point]]:
    """Return the line of a metric for each label that logged it at two steps or more."""
    lines = {label: _over_runs(logs, number) for label, logs in page.curves.items()}
    return {label: points for label, points in lines.items() if len(points) > 1}


def _over_runs(logs: Sequence[Sequence[Row]], number: str) -> list[Point]:
    """Step, mean, lowest and highest over the runs that logged the metric at that step."""
    values: dict[float, list[float]] = {}
    for log in logs:
        for row in log:
            if row.get(number) is not None:
                values.setdefault(row["step"], []).append(row[number])
    return [(step, sum(v) / len(v), min(v), max(v)) for step, v in sorted(values.items())]


def _split_by_defense(series: Series, rows: Sequence[Row]) -> dict[str, Series]:
    """All lines under "" for one picture, or the lines of each defense and of the undefended run under its name."""
    if len(series) <= _MOST:
        return {"": series} if series else {}
    roles, defenses = ({row["label"]: of(row) for row in rows} for of in (role, lambda row: row["defense"]))
    names = dict.fromkeys(defenses[label] for label in series if roles[label] not in (UNTUNED, UNDEFENDED))
    return {
        name: {label: p for label, p in series.items() if roles[label] == UNDEFENDED or defenses[label] == name}
        for name in names
    }


def _panel(series: Series, known: Mapping[str, Look], title: str, unit: str, ends: Axes) -> dict[str, Any]:
    """Return a picture with its legend and its table."""
    return {
        "title": title,
        "picture": Markup(curves(series, known, title, unit, ends)),
        "legend": [(label, Markup(key(known[label], number))) for number, label in enumerate(series)],
        "table": _table(series),
    }


def _table(series: Series) -> Table:
    """About ten steps of every line."""
    values = {label: {step: middle for step, middle, _, _ in points} for label, points in series.items()}
    steps = sorted({step for points in values.values() for step in points})
    shown = [*steps[:: max(1, len(steps) // 10)], *steps[-1:]]
    body = [
        [f"{step:g}", *(_number(v[step]) if step in v else "" for v in values.values())]
        for step in dict.fromkeys(shown)
    ]
    return [["step", *values], *body]


def _number(value: float) -> str:
    """A value with four decimals, or with four digits where these would show too little of it."""
    return f"{value:.4g}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def _path(plot: Plot, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in points)


def _thinned(points: Sequence[tuple[float, float]], most: int = 200) -> Sequence[tuple[float, float]]:
    return points[:: max(1, math.ceil(len(points) / most))]
