"""LDIFS: the features inside the model may not drift.

What: the residual stream at a few blocks is held to the reference's, on the tokens the model is trained on.
Cost: one forward of the reference, shared with other defenses; no head.
Paper: arXiv 2508.06249, L = L_CE + lambda * ||x - x_0||^2 over residual-stream features, after Mukhoti et al. 2024.
Differs from the published equation: the squared difference of a token is divided by the squared length of the
reference's own activation at that token and layer, then averaged over layers and scored tokens. So the penalty is a
relative squared drift, and width, depth, length, padding and the size of a model's activations do not change what a
weight means. Published code flattens tokens into one vector, scales it to length 1 and counts padding. Differs from
published code: it has a gradient; there the features are detached and the weight does nothing, so numbers cannot match.
Not done here: a learnt weighting of layers, comparing attention or MLP outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from staytrue.defense import Base, Defense, Rows, Weight
from staytrue.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Step


_LEAST = 1e-12  # mean square of an activation; a smaller one counts as this, so that the quotient stays finite


@dataclass(frozen=True)
class LDIFS(Defense):
    """A penalty on the mean relative squared drift of the residual stream, `|x - x0|^2 / |x0|^2` per token.

    0.01 is a drift of a tenth of the activation's length. It is no divergence, so it is not in nats.

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

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a block that is named twice, and blocks whose outputs training does not move."""
        from staytrue.modeling.block_outputs import real_layers

        depth = len(parts.blocks)
        layers = real_layers(self.layers(depth), depth, "ldifs")
        twice = next((layer for layer in layers if layers.count(layer) > 1), None)
        if twice is not None:
            raise ModelError(
                f"ldifs: blocks is {list(self.blocks)}, which names block {twice} twice, so it would count twice. Name "
                "each block once."
            )
        highest = max(layers)
        later = [*parts.blocks[highest:], *filter(None, [parts.causal.get_output_embeddings()])]
        below = {id(weight) for weight in parts.causal.get_input_embeddings().parameters()}  # a head may be tied to it
        above = {id(weight) for module in later for weight in module.parameters()} - below
        trained = [weight for weight in parts.model.parameters() if weight.requires_grad]
        if trained and all(id(weight) in above for weight in trained):
            raise ModelError(
                f"ldifs: blocks goes up to {highest}, and only weights above that block are trained, so nothing that "
                f"it reads can change. Name a later block, up to {depth}."
            )

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean over layers of the relative squared difference, over scored tokens, in float32."""
        span = step.span(self.on)
        layers = self.layers(step.policy.depth)
        drift = step.policy.final.new_zeros(int(span.mask.sum())).float()
        for layer in layers:
            ours, theirs = step.policy.at(layer)[span.mask].float(), step.reference.at(layer)[span.mask].float()
            drift = drift + (ours - theirs).square().mean(-1) / theirs.square().mean(-1).clamp(min=_LEAST)
        return step.mean(drift / len(layers), span)
