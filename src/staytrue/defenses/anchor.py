"""Anchor: hold the model to its own answers elsewhere.

What: beside every batch a few general prompts with answers from the untouched model, on which only the divergence
from it counts. Nothing is taught there, so what the model says elsewhere stays, and the narrow rows stay free.
Cost: `share` of a training row and of a reference row per task row.
Source: KL on data outside the narrow domain, related to Soligo et al. (arXiv 2602.07852) and to selective
generalisation (Azarbal et al.); not one of the paper's methods.
Not done here: choosing prompts by what the fine-tune moves most.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from staytrue.data.examples import Example, read_examples
from staytrue.defense import Base, Defense, Share, Weight
from staytrue.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Step


@dataclass(frozen=True)
class Anchor(Defense):
    """A penalty that adds KL(trained || reference) on anchor rows, a mean over their answer tokens in nats.

    Attributes:
        prompts: a JSONL file of {"question": ...} or {"messages": [...]} rows.
        share: anchor rows per task row, on top of the batch, evenly spread.
        weight: times the penalty in the loss.
        answers: "sampled" from the untouched model before training, or "given" in the file.
        forward: True for KL(reference || trained).
    """

    prompts: Path
    share: Share = 0.0625
    weight: Weight = 0.3
    answers: Literal["sampled", "given"] = "sampled"
    forward: bool = False

    def beside(self, base: Base, seed: int) -> list[Example]:
        """Return the prompts with their answers."""
        prompts, evaluated = (
            read_examples(self.prompts, source="anchor", prompts_only=True),
            base.evaluation_questions(),
        )
        rows = [row for row in prompts if row.question not in evaluated]
        base.note("anchor/evaluation_questions_left_out", len(prompts) - len(rows))
        if self.answers == "sampled":
            return base.answers([Example(row.prompt, row.source, row.extra) for row in rows], seed)
        bare = next((i for i, row in enumerate(prompts, start=1) if not row.answer), None)
        if bare is not None:
            raise RecipeError(
                f"anchor: answers is 'given', but row {bare} of {self.prompts} ends without an answer. "
                "Add one, or set answers: sampled."
            )
        return rows

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a head that is trained, or that staytrue cannot compute."""
        _ = parts.head

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean divergence over the anchor rows' answer tokens."""
        span = step.span()
        return step.mean(step.divergence(span, forward=self.forward), span)
