"""`over_processes` adds up the evidence of several processes, each of which saw its own rows of the same steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object


def over_processes(row: dict[str, Any]) -> dict[str, Any]:
    """Return this process's row of evidence and those of all others as one; each process has to call it."""
    return row if PartialState().num_processes == 1 else added_up(gather_object([row]))


def added_up(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up rows of evidence of the same steps.

    Counts and sums are added, and `steps` are joined by optimizer step. Step, `moved` and `gradients` are the same in
    all, since the weights are, and so are the gradients once they are summed.
    """
    first = rows[0]
    by_label = {label: [other["defenses"][label] for other in rows] for label in first["defenses"]}
    added = {key: _sum([other[key] for other in rows]) for key in first if key not in ("step", "moved", "defenses")}
    return {**first, **added, "defenses": {label: _of_defense(numbers) for label, numbers in by_label.items()}}


def _of_defense(numbers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up the numbers of one defense; a process in which none of its rows was due lacks some."""
    total: dict[str, Any] = {}
    for key in sorted({key for one in numbers for key in one}):
        values = [one[key] for one in numbers if key in one]
        total[key] = _steps(values) if key == "steps" else values[0] if key == "gradients" else _sum(values)
    return total


def _steps(processes: Sequence[Sequence[Sequence[Any]]]) -> list[list[Any]]:
    """Join [step, sum of values, least weight, greatest weight] of several processes."""
    joined: dict[int, list[Any]] = {}
    for step, value, least, most in (entry for entries in processes for entry in entries):
        known = joined.setdefault(step, [step, 0.0, least, most])
        known[1] += value
        known[2:] = [_first_of(min, known[2], least), _first_of(max, known[3], most)]
    return [joined[step] for step in sorted(joined)]


def _first_of(choose: Any, one: float | None, other: float | None) -> float | None:
    """The less or the greater of two weights; None where a process has none, so that it shows."""
    return None if one is None or other is None else choose(one, other)


def _sum(values: Sequence[Any]) -> Any:
    """Add numbers; in lists place by place, in mappings key by key."""
    first = values[0]
    if isinstance(first, Mapping):
        keys = dict.fromkeys(key for value in values for key in value)
        return {key: _sum([value[key] for value in values if key in value]) for key in keys}
    if isinstance(first, list):
        return [_sum(places) for places in zip(*values, strict=True)]
    return sum(values)
