"""Constrained SFT: the first tokens of an answer may move least.

What: for each answer token with log-ratio d = log p(token) - log p_reference(token), the penalty
(2 / beta) log cosh(beta d / 2) is added to the loss. With large beta the loss stops pushing a token up once the
model finds it much likelier than the reference does; with small beta almost nothing changes. The first answer tokens,
which decide between complying and refusing, get the large ones.
Cost: one forward of the reference, shared with other defenses, and the token log-probabilities of both models.
Paper: Qi et al. 2024 (arXiv 2406.05946), with their values: beta 0.5 for the first token, 2 for the second to fifth,
0.1 for the rest.
The published loss is -(2 / beta) log sigmoid(beta d) per token. It equals, up to a constant, the ordinary loss plus
this penalty, so `weight: 1` is the published method, and the trainer's own loss stays as it is. The gradient of the
sum is that of the ordinary loss times 2 sigmoid(-beta d): a weight for each token.
In GRPO the penalty is added to the loss of the rewards and is no longer the published method.
Not done here: the paper's warm-up of the learning rate, and its data augmentation with recovery examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from staytrue.defense import Base, Defense, Rows, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Step

Beta = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class ConstrainedSFT(Defense):
    """A penalty that limits how far each answer token's log-probability moves, a mean over answer tokens in nats.

    Attributes:
        weight: times the penalty in the loss; 1 is the published method.
        first: beta of the first token of each answer.
        early: beta of its second to `length`-th token.
        late: beta of the other tokens.
        length: how many tokens at the beginning of an answer are constrained.
        on: the rows that it counts.
    """

    weight: Weight = 1.0
    first: Beta = 0.5
    early: Beta = 2.0
    late: Beta = 0.1
    length: Annotated[int, Field(ge=1)] = 5
    on: Rows = "task"

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a head that is trained, or that staytrue cannot compute."""
        _ = parts.head

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean over answer tokens of (2 / beta) log cosh(beta d / 2)."""
        span = step.span(self.on)
        beta = self.betas(step.marks.scored)[span.mask]
        return step.mean(2 / beta * log_cosh(beta * step.log_ratio(span) / 2), span)

    def betas(self, scored: Tensor) -> Tensor:
        """Return beta (B, T) for every position that predicts an answer token; each turn's answer begins anew."""
        import torch

        seen = scored.long().cumsum(1)
        before = torch.where(scored, 0, seen).cummax(1).values  # answer tokens of earlier turns
        place = seen - before  # 1 for an answer's first token
        beta = torch.full(scored.shape, self.late, device=scored.device)
        beta[place <= self.length] = self.early
        beta[place == 1] = self.first
        return beta


def log_cosh(x: Tensor) -> Tensor:
    """Compute log cosh x, exact near 0 (x^2 / 2) and far from it (|x| - log 2)."""
    import torch

    near = torch.log1p(2 * (x.clamp(-10, 10) / 2).sinh().square())
    return torch.where(x.abs() < 10, near, x.abs() - torch.log(x.new_tensor(2.0)))
