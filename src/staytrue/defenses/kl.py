"""KL to the safe reference, in the batch.

What: the trained model's next-token distribution may not drift far from the untouched model's on the training rows.
Cost: one forward of the reference, shared with other defenses.
Paper: arXiv 2508.06249, L = L_CE + lambda * D_KL(theta, theta_0); lambda 0.1 there. Published code sums over prompt
tokens too and scales with gradient accumulation, so its 0.1 is not this 0.1: here the term is a mean over the chosen
tokens of the whole optimizer step.
Not done here: sampled estimators (k1 to k3), temperature, a schedule on the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from staytrue.defense import Base, Defense, Rows, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Step


@dataclass(frozen=True)
class KL(Defense):
    """A penalty that adds KL(trained || reference) over the full vocabulary, a token mean in nats.

    Attributes:
        weight: times the penalty in the loss.
        on: the rows that it counts; "interleaved" alone is the paper's interleaved KL.
        tokens: answer tokens, prompt tokens, or both.
        forward: True for KL(reference || trained).
    """

    weight: Weight = 0.1
    on: Rows = "all"
    tokens: Literal["scored", "prompt", "all"] = "scored"
    forward: bool = False

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a head that is trained, or that staytrue cannot compute."""
        _ = parts.head

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean divergence over its tokens."""
        span = step.span(self.on, self.tokens)
        return step.mean(step.divergence(span, forward=self.forward), span)
