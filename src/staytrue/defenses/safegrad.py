"""SafeGrad: the task may not undo what a few safe answers hold.

What: beside every batch a few safe conversations, on which the model is held to the reference. Where the task's
gradient opposes theirs, the opposing component is removed before the two are added.
Cost: `share` of a training row and of a reference row per task row; one more copy of the adapter's gradient.
Paper: Yi et al. 2025 (arXiv 2508.07172), gradient surgery: with g the task's gradient and a the alignment gradient, g
becomes g - (g . a / |a|^2) a where g . a < 0; a KL divergence from the aligned model as alignment loss. It reports that
20 rows of alignment data are enough.
Differs: the two gradients are those of a whole optimizer step, so accumulation and the number of processes change
nothing; all trained weights are one vector; in GRPO the task's gradient is that of the rewards.
Not done here: other weights for the two gradients than `weight`, surgery on single layers, a safety subspace from
several rows (SPF, arXiv 2601.10141).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from staytrue.data.examples import Example, read_examples
from staytrue.defense import Base, Defense, Share, Weight, pulled
from staytrue.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Step
    from staytrue.verify.evidence import Evidence

_NEAR = 0.002  # of a cosine between gradients in float32


@dataclass(frozen=True)
class SafeGrad(Defense):
    """A penalty on KL over safe answers, in nats per token, whose gradient the task may not oppose.

    Attributes:
        pool: a JSONL file of safe {"messages": [...]} rows, such as refusals of harmful questions.
        share: safe rows per task row, on top of the batch, evenly spread.
        weight: times the rows' gradient.
        forward: True for KL(reference || trained), False for KL(trained || reference).
    """

    pool: Path
    share: Share = 0.0625
    weight: Weight = 1.0
    forward: bool = True

    def beside(self, base: Base, seed: int) -> list[Example]:
        """Return the pool, without evaluation questions."""
        rows, evaluated = read_examples(self.pool, source="safegrad"), base.evaluation_questions()
        kept = [row for row in rows if row.question not in evaluated]
        base.note("safegrad/evaluation_questions_left_out", len(rows) - len(kept))
        if not kept:
            raise RecipeError(
                f"safegrad: {self.pool} holds nothing but evaluation questions, which are left out. Give `pool` a file "
                "with other rows."
            )
        return kept

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a head that is trained, or that staytrue cannot compute."""
        _ = parts.head

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean divergence over the safe rows' answer tokens."""
        span = step.span()
        return step.mean(step.divergence(span, forward=self.forward), span)

    def combine(self, task: Sequence[Tensor], own: Sequence[Tensor]) -> list[Tensor]:
        """Remove from the task's gradient what opposes the safe rows' gradient, then add that gradient."""
        import torch

        along = torch.stack([(g * a).sum() for g, a in zip(task, own, strict=True)]).sum()
        size = torch.stack([a.square().sum() for a in own]).sum()
        opposing = along.clamp(max=0) / size.clamp(min=torch.finfo(size.dtype).tiny)
        return [g + (1 - opposing) * a for g, a in zip(task, own, strict=True)]

    def evidence(self, run: Evidence) -> list[str]:
        """Return where the gradient that was used opposes that of the safe rows otherwise than it should."""
        if any("combine" in pulled(other) for label, other in run.defenses.items() if label != run.label):
            return []  # another defense has changed it since
        for row, numbers in zip(run.rows, run.numbers(), strict=True):
            for products in numbers.get("gradients", []):
                expected, measured = cosines(*products[:5])
                if abs(expected - measured) > _NEAR:
                    cosine = f"the used gradient has the cosine {measured:.3f} with that of the safe rows"
                    return [f"step {row['step']}: {cosine}, not {expected:.3f}"]
        return []


def cosines(task: float, along: float, own: float, used: float, used_along: float) -> tuple[float, float]:
    """Compute the cosine of the used gradient with that of the safe rows: as it should be, and as it was.

    Args:
        task: g . g, of the task's gradient g.
        along: g . a, with the safe rows' gradient a.
        own: a . a.
        used: u . u, of the gradient u that the optimizer used, at any length.
        used_along: u . a.
    """
    if own == 0 or used == 0:
        return 0.0, 0.0
    times = 1 - min(along, 0.0) / own
    length = task + 2 * times * along + times**2 * own
    return (along + times * own) / (max(length, 0.0) * own) ** 0.5, used_along / (used * own) ** 0.5
