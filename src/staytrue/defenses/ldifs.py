"""LDIFS: the features inside the model may not drift.

What: the residual stream at a few blocks is held to the reference's, on the tokens the model is trained on.
Cost: one forward of the reference, shared with other defenses; no head.
Paper: arXiv 2508.06249, L = L_CE + lambda * ||x - x_0||^2 over residual-stream features, after Mukhoti et al. 2024.
Differs from the published equation: per token the mean over the width of the squared difference, then the mean over
layers and over scored tokens, so neither width, depth, length nor padding changes what a weight means; published code
flattens tokens into one vector, scales it to length 1 and counts padding. Differs from published code: it has a
gradient; there the features are detached and the weight does nothing, so numbers cannot match.
Not done here: normalised features, a learnt weighting of layers, comparing attention or MLP outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from staytrue.defense import Defense, Rows, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.step import Step


@dataclass(frozen=True)
class LDIFS(Defense):
    """A penalty on the mean squared drift of the residual stream, in squared activation units per token.

    Attributes:
        weight: times the penalty in the loss.
        blocks: which layers, 1 to depth, negative from the end; none means five, evenly from the first to the last.
        on: the rows that it counts.
    """

    weight: Weight = 1.0
    blocks: tuple[int, ...] = ()
    on: Rows = "all"

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the given blocks, or linspace(1, depth, min(5, depth)) rounded down."""
        if self.blocks:
            return self.blocks
        count = min(5, depth)
        return tuple(1 + (depth - 1) * i // max(count - 1, 1) for i in range(count))

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean over layers of the mean squared difference, over scored tokens."""
        span = step.span(self.on)
        layers = self.layers(step.policy.depth)
        drift = step.policy.final.new_zeros(int(span.mask.sum())).float()
        for layer in layers:
            ours, theirs = step.policy.at(layer)[span.mask], step.reference.at(layer)[span.mask]
            drift = drift + (ours.float() - theirs.float()).square().mean(-1)
        return step.mean(drift / len(layers), span)
