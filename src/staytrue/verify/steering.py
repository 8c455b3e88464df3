"""Were activations steered? At each layer that a defense names, in every row of the log."""

from __future__ import annotations

from collections.abc import Iterator

from staytrue.defense import Defense
from staytrue.modeling.block_outputs import real_layers
from staytrue.verify.evidence import Evidence


def faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that activations were not moved, in the trained model or in its reference."""
    depth = run.facts["depth"]
    for layer in real_layers(defense.layers(depth), depth, run.label):
        for row, numbers in zip(run.rows, run.numbers(), strict=True):
            shift = numbers.get("shift", {}).get(str(layer), {})
            still = [name for name, sums in {"trained": {}, **shift}.items() if not sums.get("moved")]
            if still:
                yield f"step {row['step']}: no activation of layer {layer} was moved in the {still[0]} model"
                return
