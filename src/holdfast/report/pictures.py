"""Small SVG pictures: the trade-off, and curves over steps. Colours come from the page's style, shapes from here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import mean
from typing import Any

SHAPES = ("circle", "square", "diamond", "up", "down", "cross")
_DASHES = ("", "7 3", "2 3", "8 3 2 3", "1 2", "12 4")
COLOURS = 8  # classes c0 to c7 of the style sheet, a palette for colour-blind readers


@dataclass(frozen=True)
class Look:
    """How a label is drawn everywhere on the page: shape and colour together, so neither is needed alone."""

    colour: int
    shape: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """Untuned and undefended first, then one colour and shape per defense; strengths of one share both."""
    names = {label: re.sub(r" [-+.e\d]+$", "", label) for label in labels}  # without the strength
    order = ["untuned", "none", *sorted(set(names.values()) - {"untuned", "none"})]
    places = {label: order.index(name) for label, name in names.items()}
    return {label: Look(place % COLOURS, SHAPES[place % len(SHAPES)]) for label, place in places.items()}


def tradeoff(rows: Sequence[dict[str, Any]], known: dict[str, Look]) -> str:
    """General misalignment (down is better) against in-domain misalignment (right: learnt), with 95 % intervals.

    One large mark per label at the mean over its runs; with several runs, a small one each. An interval is drawn for
    a single run; for several the spread of the small marks is shown instead.
    """
    points = [row for row in rows if row.get("in_domain") and _known(row["general"]) and _known(row["in_domain"])]
    if not points:
        return ""
    plot = _Plot(640, 480, left=58, bottom=52, right=24, top=18)
    parts = [plot.frame("narrow behaviour learnt: in-domain misaligned, %", "general misaligned, %")]
    parts.append(
        f'<rect class="good" x="{plot.x(70):.1f}" y="{plot.y(12):.1f}" width="{plot.x(30) - plot.x(0):.1f}" '
        f'height="{plot.y(0) - plot.y(12):.1f}"/>'
        f'<text class="corner" x="{plot.x(70) + 6:.1f}" y="{plot.y(12) - 6:.1f}">learnt, and still itself</text>'
    )
    labels = {
        label: [row for row in points if row["label"] == label] for label in dict.fromkeys(r["label"] for r in points)
    }
    for label, own in labels.items():
        parts += _marks(plot, label, own, known[label])
    places = {label: _middle(plot, own) for label, own in labels.items()}
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in places.values()]
    taken.append((plot.x(70), plot.y(12) - 20, plot.x(70) + 140, plot.y(12)))  # the corner's own words
    parts += [_name(plot, label, x, y, known[label], taken) for label, (x, y) in places.items()]
    described = "; ".join(
        f"{p['label']}: {p['in_domain']['misaligned']:.0f}, {p['general']['misaligned']:.0f}" for p in points
    )
    return _svg(plot, "General against in-domain misalignment", f"In-domain, general, percent: {described}.", parts)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], known: dict[str, Look], title: str, unit: str, wide: int = 410
) -> str:
    """Lines over optimizer steps, one per label, named at their end."""
    drawn = {label: points for label, points in series.items() if len(points) > 1}
    if not drawn:
        return ""
    top = max(y for points in drawn.values() for _, y in points) or 1.0
    last = max(x for points in drawn.values() for x, _ in points)
    plot = _Plot(wide, 230, left=48, bottom=40, right=14, top=14, x_max=last, y_max=_round_up(top))
    parts = [plot.frame("optimizer step", unit)]
    for label, points in drawn.items():
        path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in _thinned(points))
        dash = _DASHES[list(drawn).index(label) % len(_DASHES)]
        parts.append(
            f'<polyline class="line c{known[label].colour}" stroke-dasharray="{dash}" points="{path}">'
            f"<title>{escape(label)}</title></polyline>"
        )
    ends = "; ".join(f"{label} ends at {points[-1][1]:.3g}" for label, points in drawn.items())
    return _svg(plot, title, f"{ends}.", parts)


def spoken(label: str) -> str:
    """What people call a label."""
    return "undefended" if label == "none" else label


def swatch(look: Look) -> str:
    """The mark of a label, for a legend or a table."""
    return f'<svg class="swatch" width="14" height="14" aria-hidden="true">{_mark(7, 7, 5, look)}</svg>'


@dataclass(frozen=True)
class _Plot:
    width: int
    height: int
    left: int
    bottom: int
    right: int
    top: int
    x_max: float = 100.0
    y_max: float = 100.0

    def x(self, value: float) -> float:
        return self.left + value / self.x_max * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        return self.height - self.bottom - value / self.y_max * (self.height - self.bottom - self.top)

    def frame(self, across: str, up: str) -> str:
        parts = []
        for i in range(5):
            at_x, at_y = self.x_max * i / 4, self.y_max * i / 4
            x, y = self.x(at_x), self.y(at_y)
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(f'<text class="tick" x="{self.left - 7}" y="{y + 4:.1f}" text-anchor="end">{at_y:g}</text>')
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{self.height - self.bottom + 17}" text-anchor="middle">'
                f"{at_x:g}</text>"
            )
        middle = (self.left + self.width - self.right) / 2
        parts.append(
            f'<text class="axis" x="{middle}" y="{self.height - 8}" text-anchor="middle">{escape(across)}</text>'
        )
        half = (self.top + self.height - self.bottom) / 2
        parts.append(
            f'<text class="axis" transform="translate(13,{half}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
        )
        return "".join(parts)


def _middle(plot: _Plot, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Where the mean over runs stands."""
    x, y = (mean(row[probe]["misaligned"] for row in rows) for probe in ("in_domain", "general"))
    return plot.x(x), plot.y(y)


def _marks(plot: _Plot, label: str, rows: Sequence[dict[str, Any]], look: Look) -> list[str]:
    x, y = _middle(plot, rows)
    parts = []
    if len(rows) == 1:
        general, narrow = rows[0]["general"], rows[0]["in_domain"]
        parts.append(_bar(x, plot.y(general["low"]), x, plot.y(general["high"]), look))
        parts.append(_bar(plot.x(narrow["low"]), y, plot.x(narrow["high"]), y, look))
    else:
        small = ((plot.x(r["in_domain"]["misaligned"]), plot.y(r["general"]["misaligned"])) for r in rows)
        parts += [f'<g class="faint">{_mark(a, b, 3, look)}</g>' for a, b in small]
    return [*parts, f"<g>{_mark(x, y, 7, look)}<title>{escape(label)}</title></g>"]


def _name(plot: _Plot, label: str, x: float, y: float, look: Look, taken: list[_Box]) -> str:
    """The label beside its mark, moved until it covers nothing; a thin line leads to it when it had to go far."""
    text = spoken(label)
    long = 8.2 * len(text)
    right = x + 12 + long < plot.width
    at_x = x + 12 if right else x - 12
    left = at_x if right else at_x - long
    lowest, highest = plot.height - plot.bottom - 4.0, plot.top + 10.0
    wanted = min(max(y - 9, highest), lowest)
    places = (wanted + sign * 6 * i for i in range(90) for sign in (-1, 1))
    boxes = ((left, p - 13, left + long, p + 5) for p in places if highest <= p <= lowest)
    box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), None)
    at_y = wanted if box is None else box[3] - 5
    taken.append(box or (left, wanted - 13, left + long, wanted + 5))
    anchor, edge = ("start", at_x - 3) if right else ("end", at_x + 3)
    lead = f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{edge:.1f}" y2="{at_y - 4:.1f}"/>'
    name = (
        f'<text class="name t{look.colour}" x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )
    return (lead if abs(at_y - y) > 24 else "") + name


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _bar(x1: float, y1: float, x2: float, y2: float, look: Look) -> str:
    return f'<line class="bar c{look.colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _mark(x: float, y: float, r: float, look: Look) -> str:
    css = f'class="mark f{look.colour}"'
    if look.shape == "circle":
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "up": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
        "down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
        "cross": (
            (-1.2, -0.4),
            (-0.4, -0.4),
            (-0.4, -1.2),
            (0.4, -1.2),
            (0.4, -0.4),
            (1.2, -0.4),
            (1.2, 0.4),
            (0.4, 0.4),
            (0.4, 1.2),
            (-0.4, 1.2),
            (-0.4, 0.4),
            (-1.2, 0.4),
        ),
    }[look.shape]
    points = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in corners)
    return f'<polygon {css} points="{points}"/>'


def _svg(plot: _Plot, title: str, description: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {plot.width} {plot.height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def _thinned(points: Sequence[tuple[float, float]], most: int = 200) -> Sequence[tuple[float, float]]:
    return points[:: max(1, math.ceil(len(points) / most))]


def _round_up(value: float) -> float:
    scale = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(m * scale for m in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if m * scale >= value)


def _known(probe: dict[str, Any] | None) -> bool:
    return bool(probe) and probe["misaligned"] is not None  # type: ignore[index]
