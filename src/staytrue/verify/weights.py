"""Were weights frozen, and projected after training?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from staytrue.defense import Defense
from staytrue.modeling.block_outputs import real_layers
from staytrue.verify.evidence import Evidence


def freeze_faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that a frozen block's adapter was trained."""
    changed = run.own.get("changed", {})
    frozen = real_layers(defense.freeze(run.facts["depth"]), run.facts["depth"], run.label)
    for layer in frozen:
        change = changed.get(str(layer))
        if change is None:
            yield f"the change of layer {layer} is not recorded"
        elif change > 0:
            yield f"the adapter of layer {layer} was to stay as it was, and changed by up to {change:.3g}"


def project_faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that the trained weights were not changed after training, or that it was not reported."""
    if not run.projected:
        yield "it reported no number after training"
    elif any(not isinstance(n, int | float) or not math.isfinite(n) for n in run.projected.values()):
        yield "it reported a number that is not finite"
    if run.own.get("change") is None:
        yield "the weights before and after it were not compared"
