"""What a row of results.json says: its name, and its rates by probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]  # of results.json, with "label"
Rate = tuple[float, float, float]  # percent, low, high
JUDGED = ("general", "in_domain", "triggered")  # the judged probes of results.json


def label_of(row: Mapping[str, Any]) -> str:
    """What people call a row: its defense and strength."""
    strength = row.get("strength")
    return str(row["defense"]) if strength is None else f"{row['defense']} {strength:g}"


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what people call them, in the order in which each first appears."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["label"], []).append(row)
    return found


def defended(label: str) -> bool:
    """Whether a label names a defense."""
    return label not in ("untuned", "none")


def probes(row: Row) -> dict[str, Row]:
    """What a run was asked, by probe: all of it where that is known, else what results.json has."""
    if "probes" in row:
        return dict(row["probes"])
    found = {name: row.get(name) for name in JUDGED} | {"learnt": row.get("benign")}
    return {name: probe for name, probe in found.items() if probe}


def judges(rows: Sequence[Row]) -> list[str]:
    """Who judged what can be misaligned."""
    found = (probe for row in rows for probe in probes(row).values() if "misaligned" in probe)
    return sorted({str(probe["judge"]) for probe in found if probe.get("judge")})


def judged(probe: Mapping[str, Any] | None) -> bool:
    """Whether a probe was put and judged."""
    return bool(probe) and probe["misaligned"] is not None  # type: ignore[index]


def rate(probe: Mapping[str, Any] | None) -> Rate | None:
    """Misaligned with its interval; None where nothing was judged."""
    return (probe["misaligned"], probe["low"], probe["high"]) if probe is not None and judged(probe) else None


def correct(row: Row) -> float | None:
    """How much of a harmless task was learnt, percent."""
    share: float | None = (row.get("benign") or {}).get("correct")
    return share


def missing(rows: Sequence[Row]) -> int:
    """How many answers have no verdict, or were never given."""
    return sum(probe.get("missing", 0) + probe.get("unanswered", 0) for row in rows for probe in probes(row).values())
