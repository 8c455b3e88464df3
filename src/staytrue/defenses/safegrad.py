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
from staytrue.defense import Base, Defense, Share, Weight
from staytrue.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Step


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
            raise RecipeError(f"safegrad: {self.pool} holds nothing but evaluation questions; bring another pool.")
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
