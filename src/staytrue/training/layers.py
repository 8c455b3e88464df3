"""`read_and_steered` collects the layers at which a run's defenses need forward hooks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from staytrue.defense import Defense, pulled
from staytrue.modeling.block_outputs import real_layers
from staytrue.training.hooks import Steer


def read_and_steered(defenses: Mapping[str, Defense], depth: int) -> tuple[list[int], Mapping[int, list[Steer]]]:
    """Return the layers that penalties read, sorted, and who steers at each steered layer, in listed order.

    A penalty that reads a steered layer reads the steered activations.

    Raises:
        ModelError: a defense names a layer that a model of `depth` blocks does not have.
    """
    read: set[int] = set()
    steers: dict[int, list[Steer]] = defaultdict(list)
    for label, defense in defenses.items():
        layers, levers = real_layers(defense.layers(depth), depth, label), pulled(defense)
        if "penalty" in levers:
            read |= set(layers)
        for layer in layers if "steer" in levers else ():
            steers[layer].append(defense.steer)
    return sorted(read), steers
