"""Rehearse safe answers beside the task.

What: beside every batch a few safe conversations, whose answers are learnt as in ordinary fine-tuning. It is what
`interleave` does to a data set, for reinforcement learning, whose data are prompts only.
Cost: `share` of a training row per task row (in GRPO, per completion); no reference.
Paper: arXiv 2508.06249 alternates reinforcement learning with supervised batches of safe rows; published follow-up code
takes one such batch every 4, 8 or 16 steps at weight 0.5 or 1. Differs: the rows are spread evenly over all steps and
join the same gradient.
It teaches rather than anchors: its penalty is the rows' own loss, so it is above zero from the first step.
Not done here: choosing rows by score (give it a pool that holds the chosen ones), a schedule on the share.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from staytrue.data.examples import Example, read_examples
from staytrue.defense import Base, Defense, Share, Weight
from staytrue.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.step import Step


@dataclass(frozen=True)
class Rehearse(Defense):
    """A penalty that adds the negative log-likelihood of safe answers, a mean over their tokens in nats.

    Attributes:
        pool: a JSONL file of safe {"messages": [...]} rows.
        share: safe rows per task row, on top of the batch, evenly spread.
        weight: times the rows' loss.
    """

    teaches: ClassVar[bool] = True
    reads_reference: ClassVar[bool] = False

    pool: Path
    share: Share = 0.05
    weight: Weight = 1.0

    def beside(self, base: Base, seed: int) -> list[Example]:
        """Return the pool, without repeated rows and evaluation questions."""
        pool, evaluated = read_examples(self.pool, source="rehearse"), base.evaluation_questions()
        distinct = list({row.identity: row for row in pool}.values())
        rows = [row for row in distinct if row.question not in evaluated]
        base.note("rehearse/repeated_rows_left_out", len(pool) - len(distinct))
        base.note("rehearse/evaluation_questions_left_out", len(distinct) - len(rows))
        if not rows:
            raise RecipeError(
                f"rehearse: {self.pool} holds nothing but evaluation questions, which are left out. Give `pool` a file "
                "with other rows."
            )
        return rows

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean loss of the safe rows' answer tokens, in nats per token."""
        span = step.span()
        return step.mean(step.nll(span), span)
