"""The measurements of a defense in a few words: the line that `staytrue verify` prints where all is well."""

from __future__ import annotations

from staytrue.defense import Defense, pulled
from staytrue.verify.evidence import Evidence


def shown(defense: Defense, run: Evidence) -> str:
    """The measurements of each method that a defense overrides, joined."""
    levers = pulled(defense)
    return "; ".join(describe(defense, run) for lever, describe in _DESCRIBED.items() if lever in levers)


def _penalty(defense: Defense, run: Evidence) -> str:
    logged = [row[run.label] for row in run.log if row.get(run.label) is not None]
    last = f"; its last value is {logged[-1]:.4g}" if logged else ""
    evaluated = f"weight {defense.weight:g} in the gradient of {run.total('in_gradient'):.0f} micro-batches"
    if getattr(defense, "on", "all") != "all":  # a step may have no row that it counts
        values = [value for numbers in run.numbers() for _, value, *_ in numbers.get("steps", [])]
        evaluated += f", not 0 in {sum(map(bool, values))} of {sum(len(row['task_rows']) for row in run.rows)} steps"
    return evaluated + last


def _beside(defense: Defense, run: Evidence) -> str:
    own, either = run.seen(run.label)
    unsure = f" and {either} that could be of another defense too" if either else ""
    return f"{own} of its rows{unsure} were read beside {sum(run.seen('task'))} task rows"


def _curate(defense: Defense, run: Evidence) -> str:
    task, held = run.seen("task")[0], run.total("rows_with_text")
    if "text" in run.own:
        looked_at = run.total("rows_sampled")
        among = f"{looked_at:.0f} that were looked at" if looked_at else f"{task} of the task"
        return f"its text stood in {held:.0f} rows that were read, of {among}"
    if (added := run.seen("interleaved")[0]) > 0:
        return f"{added} added rows were read among {task} task rows"
    curated = run.facts.get("curated", {})
    return f"{curated.get('new', 0)} rows were edited or added"


def _steer(defense: Defense, run: Evidence) -> str:
    layers = [str(layer) for layer in run.own.get("layers", [])]
    parts = []
    for layer in layers:
        sums = [numbers.get("shift", {}).get(layer, {}).get("trained", {}) for numbers in run.numbers()]
        moved, along = (sum(one.get(name) or 0 for one in sums) for name in ("moved", "along"))
        mean = f", by {along / moved:.4g} along its vector" if moved and layer in run.own.get("onto", {}) else ""
        parts.append(f"layer {layer} was moved at {moved:.0f} positions{mean}")
    return ", ".join(parts)


def _combine(defense: Defense, run: Evidence) -> str:
    steps = [step for numbers in run.numbers() for step in numbers.get("gradients", [])]
    return f"its gradient was above 0 and combined in {sum(step[2] > 0 for step in steps)} of {len(steps)} steps"


def _freeze(defense: Defense, run: Evidence) -> str:
    return f"the adapter of layers {', '.join(map(str, run.own.get('frozen', [])))} did not change"


def _project(defense: Defense, run: Evidence) -> str:
    numbers = ", ".join(f"{name} {number:.4g}" for name, number in run.projected.items())
    return f"{numbers}; the weights moved by {run.own.get('change') or 0:.3g}"


_DESCRIBED = {
    "penalty": _penalty,
    "beside": _beside,
    "curate": _curate,
    "steer": _steer,
    "combine": _combine,
    "freeze": _freeze,
    "project": _project,
}
