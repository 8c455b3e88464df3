"""The three pictures of the page: the trade-off, what was learnt of a harmless task, and curves over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import mean
from typing import Any

from holdfast.evals.statistics import over_runs
from holdfast.report.drawing import Box, Look, Plot, bar, mark, name, spoken, svg

Row = dict[str, Any]  # of results.json, with "label"
Place = tuple[float, float]
_DASHES = ("", "7 3", "2 3", "8 3 2 3", "1 2", "12 4")


def highest(rows: Sequence[Row]) -> float:
    """Where the axis of general misalignment ends, so that every interval of these runs is on it; percent."""
    ends = [row["general"]["high"] for row in rows if judged(row.get("general"))]
    return min(100.0, _round_up(max(ends, default=100.0)))


def tradeoff(rows: Sequence[Row], known: Mapping[str, Look], top: float = 100.0, names: float = 13.0) -> str:
    """General misalignment (down is better) against in-domain misalignment (right: learnt), with 95 % intervals.

    One large mark per label at the mean over its runs; with several runs, a small one each. An interval is drawn for
    a single run; for several the spread of the small marks is shown instead. The strengths of one defense are joined by
    a line, weakest to strongest. The axis up ends at `top`, so that several pictures can be compared.
    """
    points = [row for row in rows if judged(row.get("general")) and judged(row.get("in_domain"))]
    if not points:
        return ""
    plot = Plot(640, 480, left=58, bottom=52, right=24, top=18, y_max=top, names=names)
    grouped = by_label(points)
    places = {label: _middle(plot, own) for label, own in grouped.items()}
    parts = [plot.frame("narrow behaviour learnt: in-domain misaligned, %", "general misaligned, %"), _corner(plot)]
    parts += _trails(grouped, places, known)
    for label, own in grouped.items():
        parts += _marks(plot, label, own, known[label])
    taken: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in places.values()]
    taken.append(_corner_words(plot))
    named = _names(grouped)
    parts += [name(plot, named[label], x, y, known[label], taken) for label, (x, y) in places.items()]
    described = "; ".join(
        f"{p['label']}: {p['in_domain']['misaligned']:.0f}, {p['general']['misaligned']:.0f}" for p in points
    )
    return svg(plot, "General against in-domain misalignment", f"In-domain, general, percent: {described}.", parts)


def learnt(rows: Sequence[Row], known: Mapping[str, Look], task: str) -> str:
    """How much of a harmless task every label learnt: the mean over its runs, each run small, a 95 % interval."""
    grouped = by_label([row for row in rows if row["domain"] == task and correct(row) is not None])
    if not grouped:
        return ""
    plot = Plot(640, 22 * len(grouped) + 62, left=170, bottom=46, right=24, top=12)
    parts = [plot.columns("held-out answers right, %")]
    told = []
    for number, (label, own) in enumerate(grouped.items()):
        y, look = plot.top + 22 * number + 14.0, known[label]
        middle, low, high = over_runs([(r["benign"]["correct"], r["benign"]["low"], r["benign"]["high"]) for r in own])
        parts.append(f'<text class="name t{look.colour}" x="160" y="{y + 4}" text-anchor="end">{escape(spoken(label))}')
        parts.append("</text>" + bar(plot.x(low), y, plot.x(high), y, look))
        small = (mark(plot.x(r["benign"]["correct"]), y, 3, look) for r in own if len(own) > 1)
        parts.append(f'<g class="faint">{"".join(small)}</g>{mark(plot.x(middle), y, 6, look)}')
        told.append(f"{label}: {middle:.0f}")
    return svg(plot, f"{task}: learnt", f"Held-out answers right, percent: {'; '.join(told)}.", parts)


def curves(
    lines: Mapping[str, Sequence[Place]],
    known: Mapping[str, Look],
    title: str,
    unit: str,
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> str:
    """Lines over optimizer steps, one per label; a band is where its single runs lie, (step, lowest, highest)."""
    drawn = {label: points for label, points in lines.items() if len(points) > 1}
    shown = {label: band for label, band in (bands or {}).items() if label in drawn}
    if not drawn:
        return ""
    heights = [y for points in drawn.values() for _, y in points]
    heights += [y for band in shown.values() for _, *both in band for y in both]
    last = max(x for points in drawn.values() for x, _ in points)
    top, bottom = _round_up(max(heights)), -_round_up(-min(heights)) if min(heights) < 0 else 0.0
    plot = Plot(410, 230, left=48, bottom=40, right=14, top=14, x_max=last, y_max=top, y_min=bottom)
    parts = [plot.frame("optimizer step", unit)]
    for label, band in shown.items():
        there = [(x, high) for x, _, high in band]
        back = [(x, low) for x, low, _ in reversed(band)]
        parts.append(f'<polygon class="band f{known[label].colour}" points="{_path(plot, [*there, *back])}"/>')
    for number, (label, points) in enumerate(drawn.items()):
        dash = _DASHES[number % len(_DASHES)]
        parts.append(
            f'<polyline class="line c{known[label].colour}" stroke-dasharray="{dash}" '
            f'points="{_path(plot, _thinned(points))}"><title>{escape(label)}</title></polyline>'
        )
    ends = "; ".join(f"{label} ends at {points[-1][1]:.3g}" for label, points in drawn.items())
    return svg(plot, title, f"{ends}.", parts)


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what people call them, in the order in which each first appears."""
    return {label: [r for r in rows if r["label"] == label] for label in dict.fromkeys(r["label"] for r in rows)}


def judged(probe: Mapping[str, Any] | None) -> bool:
    """Whether a probe was put and judged."""
    return bool(probe) and probe["misaligned"] is not None  # type: ignore[index]


def correct(row: Row) -> float | None:
    """How much of a harmless task was learnt, percent."""
    share: float | None = (row.get("benign") or {}).get("correct")
    return share


def _corner(plot: Plot) -> str:
    x, y = plot.x(70), plot.y(min(12, plot.y_max))
    return (
        f'<rect class="good" x="{x:.1f}" y="{y:.1f}" width="{plot.x(30) - plot.x(0):.1f}" '
        f'height="{plot.y(0) - y:.1f}"/>'
        f'<text class="corner" x="{x + 6:.1f}" y="{y - 6:.1f}">learnt, and still itself</text>'
    )


def _corner_words(plot: Plot) -> Box:
    x, y = plot.x(70), plot.y(min(12, plot.y_max))
    return x, y - 1.5 * plot.names, x + 11 * plot.names, y


def _trails(grouped: Mapping[str, list[Row]], places: Mapping[str, Place], known: Mapping[str, Look]) -> list[str]:
    """A line through the strengths of each defense."""
    drawn = []
    for labels in _strengths(grouped).values():
        points = " ".join(f"{places[label][0]:.1f},{places[label][1]:.1f}" for label in labels)
        if len(labels) > 1:
            drawn.append(f'<polyline class="trail c{known[labels[0]].colour}" points="{points}"/>')
    return drawn


def _names(grouped: Mapping[str, list[Row]]) -> dict[str, str]:
    """What stands beside each mark: of many strengths the first in full, then the numbers alone."""
    named = {label: spoken(label) for label in grouped}
    for labels in _strengths(grouped).values():
        if len(labels) > 2:
            named |= {label: f"{grouped[label][0]['strength']:g}" for label in labels[1:]}
    return named


def _strengths(grouped: Mapping[str, list[Row]]) -> dict[str, list[str]]:
    """Labels by defense, weakest first; those without a strength are left out."""
    found: dict[str, list[str]] = {}
    with_strength = [label for label, own in grouped.items() if own[0].get("strength") is not None]
    for label in sorted(with_strength, key=lambda one: float(grouped[one][0]["strength"])):
        found.setdefault(grouped[label][0]["defense"], []).append(label)
    return found


def _middle(plot: Plot, rows: Sequence[Row]) -> Place:
    """Where the mean over runs stands."""
    x, y = (mean(row[probe]["misaligned"] for row in rows) for probe in ("in_domain", "general"))
    return plot.x(x), plot.y(y)


def _marks(plot: Plot, label: str, rows: Sequence[Row], look: Look) -> list[str]:
    x, y = _middle(plot, rows)
    parts = []
    if len(rows) == 1:
        general, narrow = rows[0]["general"], rows[0]["in_domain"]
        parts.append(bar(x, plot.y(general["low"]), x, plot.y(general["high"]), look))
        parts.append(bar(plot.x(narrow["low"]), y, plot.x(narrow["high"]), y, look))
    else:
        small = ((plot.x(r["in_domain"]["misaligned"]), plot.y(r["general"]["misaligned"])) for r in rows)
        parts += [f'<g class="faint">{mark(a, b, 3, look)}</g>' for a, b in small]
    return [*parts, f"<g>{mark(x, y, 7, look)}<title>{escape(label)}</title></g>"]


def _path(plot: Plot, points: Sequence[Place]) -> str:
    return " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in points)


def _thinned(points: Sequence[Place], most: int = 200) -> Sequence[Place]:
    return points[:: max(1, math.ceil(len(points) / most))]


def _round_up(value: float) -> float:
    scale = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(m * scale for m in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if m * scale >= value)
