"""Plots of rates: a scatter plot of the trade-off, and a strip plot of a harmless task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import mean

from staytrue.evals.stats.intervals import over_runs
from staytrue.report.rows import MOST_INCOHERENT, Rate, Row, by_label, correct, judged, rate, spoken
from staytrue.report.svg import Box, Look, Plot, bar, mark, place_name, round_up, svg

Place = tuple[float, float]


def highest(rows: Sequence[Row]) -> float:
    """Compute the upper end of the axis of general misalignment in percent, above every mark and interval."""
    drawn = [row for row in rows if judged(row.get("general"))]
    ends = [row["general"]["misaligned"] for row in drawn]
    ends += [_over(group, "general")[2] for group in by_label(drawn).values()]
    return min(100.0, round_up(max(ends, default=100.0)))


def hollow(rows: Sequence[Row]) -> bool:
    """Return True if more than 10 % of the general answers of these runs are incoherent, as a mean."""
    return float(mean(row["general"]["incoherent"] for row in rows)) > MOST_INCOHERENT


def shown(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with both rates of the trade-off."""
    return [row for row in rows if judged(row.get("general")) and judged(row.get("in_domain"))]


def tradeoff(rows: Sequence[Row], known: Mapping[str, Look], top: float = 100.0, names: float = 13.0) -> str:
    """Draw a scatter plot, as SVG, of general misalignment (y, lower is better) against in-domain (x, learnt).

    Each label has a large mark at the mean over its runs, with 95 % intervals, and a small mark per run if there are
    several. Hollow marks are often incoherent. A line joins the strengths of one defense, weakest to strongest.

    Args:
        rows: of results.json, with labels.
        known: the look of each label.
        top: the upper end of the y axis in percent, equal for pictures to be compared.
        names: the font size of the names in pixels.
    """
    points = shown(rows)
    if not points:
        return ""
    plot = Plot(640, 480, left=58, bottom=52, right=24, top=18, y_max=top, names=names)
    grouped = by_label(points)
    places = {label: _middle(plot, group) for label, group in grouped.items()}
    parts = [plot.frame("narrow behaviour learnt: in-domain misaligned, %", "general misaligned, %"), _corner(plot)]
    parts += _trails(grouped, places, known)
    for label, group in grouped.items():
        parts += _marks(plot, label, group, known[label])
    taken: list[Box] = [(x - 9, y - 9, x + 9, y + 9) for x, y in places.values()]
    taken.append(_corner_label(plot))
    named = _names(grouped)
    parts += [place_name(plot, named[label], x, y, known[label], taken) for label, (x, y) in places.items()]
    described = "; ".join(
        f"{p['label']}: {p['in_domain']['misaligned']:.0f}, {p['general']['misaligned']:.0f}" for p in points
    )
    return svg(plot, "General against in-domain misalignment", f"In-domain, general, percent: {described}.", parts)


def learnt(rows: Sequence[Row], known: Mapping[str, Look], task: str) -> str:
    """Draw a strip plot, as SVG, of the percent learnt of a harmless task, with 95 % intervals."""
    grouped = by_label([row for row in rows if row["domain"] == task and correct(row) is not None])
    if not grouped:
        return ""
    plot = Plot(640, 22 * len(grouped) + 62, left=170, bottom=46, right=24, top=12)
    parts = [plot.columns("held-out answers right, %")]
    described = []
    for number, (label, group) in enumerate(grouped.items()):
        y, look = plot.top + 22 * number + 14.0, known[label]
        middle, low, high = over_runs(
            [(r["benign"]["correct"], r["benign"]["low"], r["benign"]["high"]) for r in group]
        )
        parts.append(
            f'<text class="name t{look.colour}" x="160" y="{y + 4}" text-anchor="end">{escape(spoken(group[0]))}'
        )
        parts.append("</text>" + bar(plot.x(low), y, plot.x(high), y, look))
        small = (mark(plot.x(r["benign"]["correct"]), y, 3, look) for r in group if len(group) > 1)
        parts.append(f'<g class="faint">{"".join(small)}</g>{mark(plot.x(middle), y, 6, look)}')
        described.append(f"{label}: {middle:.0f}")
    return svg(plot, f"{task}: learnt", f"Held-out answers right, percent: {'; '.join(described)}.", parts)


def _corner(plot: Plot) -> str:
    x, y = plot.x(70), plot.y(min(12, plot.y_max))
    return (
        f'<rect class="good" x="{x:.1f}" y="{y:.1f}" width="{plot.x(30) - plot.x(0):.1f}" '
        f'height="{plot.y(0) - y:.1f}"/>'
        f'<text class="corner" x="{x + 6:.1f}" y="{y - 6:.1f}">learnt, and still itself</text>'
    )


def _corner_label(plot: Plot) -> Box:
    x, y = plot.x(70), plot.y(min(12, plot.y_max))
    return x, y - 1.5 * plot.names, x + 11 * plot.names, y


def _trails(grouped: Mapping[str, list[Row]], places: Mapping[str, Place], known: Mapping[str, Look]) -> list[str]:
    """One line per defense through the marks of its strengths."""
    drawn = []
    for labels in _strengths(grouped).values():
        points = " ".join(f"{places[label][0]:.1f},{places[label][1]:.1f}" for label in labels)
        if len(labels) > 1:
            drawn.append(f'<polyline class="trail c{known[labels[0]].colour}" points="{points}"/>')
    return drawn


def _names(grouped: Mapping[str, list[Row]]) -> dict[str, str]:
    """Return the text beside each mark: the full label, or the strength alone after the first of three strengths."""
    named = {label: spoken(group[0]) for label, group in grouped.items()}
    for labels in _strengths(grouped).values():
        if len(labels) > 2:
            named |= {label: f"{grouped[label][0]['strength']:g}" for label in labels[1:]}
    return named


def _strengths(grouped: Mapping[str, list[Row]]) -> dict[str, list[str]]:
    """Labels with a strength by defense, weakest first."""
    strengths: dict[str, list[str]] = {}
    with_strength = [label for label, group in grouped.items() if group[0].get("strength") is not None]
    for label in sorted(with_strength, key=lambda one: float(grouped[one][0]["strength"])):
        strengths.setdefault(grouped[label][0]["defense"], []).append(label)
    return strengths


def _middle(plot: Plot, rows: Sequence[Row]) -> Place:
    """Return the position of the mean over runs, in pixels."""
    x, y = (mean(row[probe]["misaligned"] for row in rows) for probe in ("in_domain", "general"))
    return plot.x(x), plot.y(y)


def _over(rows: Sequence[Row], probe: str) -> Rate:
    """Return the mean over runs with its interval; for a single run its own interval."""
    return over_runs([one for row in rows if (one := rate(row[probe])) is not None])


def _marks(plot: Plot, label: str, rows: Sequence[Row], look: Look) -> list[str]:
    x, y = _middle(plot, rows)
    _, left, right = _over(rows, "in_domain")
    _, low, high = _over(rows, "general")
    parts = [bar(x, plot.y(low), x, plot.y(high), look), bar(plot.x(left), y, plot.x(right), y, look)]
    if len(rows) > 1:
        small = ((plot.x(r["in_domain"]["misaligned"]), plot.y(r["general"]["misaligned"])) for r in rows)
        parts += [f'<g class="faint">{mark(a, b, 3, look)}</g>' for a, b in small]
    return [*parts, f"<g>{mark(x, y, 7, look, hollow(rows))}<title>{escape(label)}</title></g>"]
