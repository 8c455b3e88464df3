"""SVG elements of the plots: axes, marks, labels. The page's style sheet sets the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from staytrue.report.rows import UNDEFENDED, UNTUNED, Row, role

COLOURS = 8  # classes c0 to c7 of the style sheet, a palette for colour-blind readers
_ARM = 0.4  # half the width of a cross's arms
_CORNERS: dict[str, tuple[tuple[float, float], ...]] = {  # of every shape but the circle, at radius 1
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "up": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    "cross": tuple(
        (x * a, y * b)
        for x, y, corner in ((-1, -1, 0), (1, -1, 1), (1, 1, 0), (-1, 1, 1))
        for a, b in (((1.2, _ARM), (_ARM, _ARM), (_ARM, 1.2)), ((_ARM, 1.2), (_ARM, _ARM), (1.2, _ARM)))[corner]
    ),
}
SHAPES = ("circle", *_CORNERS)
_DASHES = ("", "7 3", "2 3", "8 3 2 3", "1 2", "12 4")


@dataclass(frozen=True)
class Look:
    """The colour and shape of a label everywhere on the page; either alone is enough to tell labels apart."""

    colour: int
    shape: str


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Choose a look for each label: one for untuned, one for undefended, one per defense whatever its strength.

    With more than six defenses, some share a colour; up to 36, no two share colour and shape.
    """
    names = {row["label"]: role(row) if role(row) in (UNTUNED, UNDEFENDED) else row["defense"] for row in rows}
    order = [UNTUNED, UNDEFENDED, *sorted(set(names.values()) - {UNTUNED, UNDEFENDED})]
    return {label: _look(order.index(name)) for label, name in names.items()}


def _look(place: int) -> Look:
    """Return the look of the name at an index: untuned, undefended, then the defenses."""
    again, colour = divmod(place - 2, COLOURS - 2) if place > 1 else (0, place - 2)
    return Look(colour + 2, SHAPES[(place + again) % len(SHAPES)])


def swatch(look: Look) -> str:
    """Draw a label's mark as a small SVG, for a table."""
    return f'<svg class="swatch" width="14" height="14" aria-hidden="true">{mark(7, 7, 5, look)}</svg>'


def key(look: Look, number: int) -> str:
    """Draw a label's mark and line as a small SVG, for the legend of a picture with lines."""
    line = f'<line class="line c{look.colour}" stroke-dasharray="{dash(number)}" x1="16" y1="7" x2="52" y2="7"/>'
    return f'<svg class="swatch" width="54" height="14" aria-hidden="true">{mark(7, 7, 5, look)}{line}</svg>'


def dash(number: int) -> str:
    """Return the dash pattern of a picture's line with this index."""
    return _DASHES[number % len(_DASHES)]


@dataclass(frozen=True)
class Plot:
    """A plot area with margins and scales; lengths in pixels."""

    width: int
    height: int
    left: int
    bottom: int
    right: int
    top: int
    x_max: float = 100.0
    y_max: float = 100.0
    y_min: float = 0.0
    names: float = 13.0  # font size of names; larger in pictures that the page shrinks

    def x(self, value: float) -> float:
        """Return the x position of a value, in pixels."""
        return self.left + value / self.x_max * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Return the y position of a value, in pixels."""
        share = (value - self.y_min) / (self.y_max - self.y_min)
        return self.height - self.bottom - share * (self.height - self.bottom - self.top)

    def frame(self, across: str, up: str) -> str:
        """Draw grid, ticks and labels of both axes."""
        parts = [self._across(across)]
        for i in range(5):
            value = self.y_min + (self.y_max - self.y_min) * i / 4
            y, end = self.y(value), self.width - self.right
            parts.append(f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.left - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        turned = f'transform="translate(13,{(self.top + self.height - self.bottom) / 2}) rotate(-90)"'
        parts.append(f'<text class="axis" {turned} text-anchor="middle">{escape(up)}</text>')
        return "".join(parts)

    def columns(self, across: str) -> str:
        """Draw vertical grid lines, with ticks and label of the x axis, for a picture whose rows are names."""
        places = (self.x(self.x_max * i / 4) for i in range(5))
        low, high = self.height - self.bottom, self.top
        lines = (f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{low}" y2="{high}"/>' for x in places)
        return "".join(lines) + self._across(across)

    def _across(self, title: str) -> str:
        parts, y = [], self.height - self.bottom + 17
        for i in range(5):
            value = self.x_max * i / 4
            parts.append(f'<text class="tick" x="{self.x(value):.1f}" y="{y}" text-anchor="middle">{value:g}</text>')
        middle = (self.left + self.width - self.right) / 2
        y = self.height - 8
        return "".join(parts) + f'<text class="axis" x="{middle}" y="{y}" text-anchor="middle">{escape(title)}</text>'


Box = tuple[float, float, float, float]  # left, top, right, bottom of an area that is taken, in pixels


def place_name(plot: Plot, text: str, x: float, y: float, look: Look, taken: list[Box]) -> str:
    """Place a name beside its mark, moved up or down until it covers nothing; a thin line joins distant ones."""
    long, above, below = 0.63 * plot.names * len(text), plot.names, 0.4 * plot.names
    right = x + 12 + long < plot.width
    at_x = x + 12 if right else x - 12
    left = at_x if right else at_x - long
    lowest, highest = plot.height - plot.bottom - 4.0, plot.top + 10.0
    nearest = min(max(y - 9, highest), lowest)
    places = (nearest + sign * 6 * i for i in range(90) for sign in (-1, 1))
    boxes = ((left, p - above, left + long, p + below) for p in places if highest <= p <= lowest)
    box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), None)
    at_y = nearest if box is None else box[3] - below
    taken.append(box or (left, nearest - above, left + long, nearest + below))
    anchor, edge = ("start", at_x - 3) if right else ("end", at_x + 3)
    lead = f'<line class="lead" x1="{x:.1f}" y1="{y:.1f}" x2="{edge:.1f}" y2="{at_y - 4:.1f}"/>'
    tag = f'<text class="name t{look.colour}" x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}">'
    return (lead if abs(at_y - y) > 24 else "") + f"{tag}{escape(text)}</text>"


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def bar(x1: float, y1: float, x2: float, y2: float, look: Look) -> str:
    """Draw an interval as a line."""
    return f'<line class="bar c{look.colour}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def mark(x: float, y: float, r: float, look: Look, hollow: bool = False) -> str:
    """Draw a label's shape at a position, filled unless hollow."""
    css = f'class="hollow c{look.colour}"' if hollow else f'class="mark f{look.colour}"'
    if look.shape == "circle":
        return f'<circle {css} cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'
    points = " ".join(f"{x + a * r:.1f},{y + b * r:.1f}" for a, b in _CORNERS[look.shape])
    return f'<polygon {css} points="{points}"/>'


def svg(plot: Plot, title: str, description: str, parts: Sequence[str]) -> str:
    """Compose the whole picture, with a title and a description for screen readers."""
    return (
        f'<svg class="plot" viewBox="0 0 {plot.width} {plot.height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def round_up(value: float) -> float:
    """Return the smallest round number that is at least `value`, as the end of an axis."""
    scale = 10 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(m * scale for m in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if m * scale >= value)
