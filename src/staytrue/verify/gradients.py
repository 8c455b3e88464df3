"""Was the gradient combined? The gradient of a defense's own rows is there, and the optimizer's is another for it."""

from __future__ import annotations

from collections.abc import Iterator

from staytrue.defense import Defense
from staytrue.verify.evidence import Evidence

_KEPT = 0.01  # of the gradient, which may be computed in bfloat16


def faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that a defense's own gradient was not combined with the task's."""
    for row, numbers, moved in zip(run.rows, run.numbers(), run.moved(), strict=True):
        steps = numbers.get("gradients", [])
        evaluated = numbers.get("steps", [])
        if len(steps) < len(evaluated):
            yield f"step {row['step']}: gradients were combined in {len(steps)} of {len(evaluated)} steps"
            return
        if any(product is None for step in steps for product in step):
            yield f"step {row['step']}: a gradient was not finite"
            return
        lost = next((kept for *_, own, _, _, kept in steps if own > 0 and abs(kept - 1) > _KEPT), None)
        if lost is not None:
            yield f"step {row['step']}: {lost:.4g} of the gradient of its own rows was combined, not all of it"
            return
        if moved and any(value for _, value, *_ in evaluated) and not any(step[2] > 0 for step in steps):
            yield f"step {row['step']}: the gradient of its own rows is 0"
            return
