"""Anchor: hold the model to its own answers elsewhere.

What: beside every batch a few general prompts with answers from the untouched model, on which only the divergence
from it counts. Nothing is taught there, so what the model says elsewhere stays, and the narrow rows stay free.
Cost: `share` of a training row and of a reference row per task row; with `answers: sampled` also one answer, written
before training, to each prompt that the run will use: `share` x the task rows that it trains on, at most all prompts.
The answers are written side by side, as many as memory allows. The prompts are taken in a random order that depends on
the seed. The rows are kept as `anchor.jsonl` in the run's folder; another run reads them with `prompts:
RUN/anchor.jsonl` and `answers: given`, and samples nothing. A reasoning model's answers begin with its thoughts; the
row is what the model wrote, token by token, so a short `max_new_tokens` holds it to the beginning of its thoughts.
Source: KL on data outside the narrow domain, related to Soligo et al. (arXiv 2602.07852) and to selective
generalisation (Azarbal et al.); not one of the paper's methods.
Not done here: choosing prompts by what the fine-tune moves most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from staytrue.data import general_prompts
from staytrue.data.due_order import first_due
from staytrue.data.examples import Example, read_examples
from staytrue.data.sampled_tokens import without_tokens
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
        prompts: a file of {"prompt": ...}, {"question": ...} or {"messages": [...]} rows; without it, the 120
            general prompts in English that come with staytrue.
        share: anchor rows per task row, on top of the batch, evenly spread.
        weight: times the penalty in the loss.
        answers: "sampled" from the untouched model before training, or "given" in the file.
        max_new_tokens: the longest sampled answer.
        forward: True for KL(reference || trained).
    """

    prompts: Path | None = None
    share: Share = 0.0625
    weight: Weight = 0.3
    answers: Literal["sampled", "given"] = "sampled"
    forward: bool = False
    max_new_tokens: Annotated[int, Field(ge=1)] = 256  # an ordinary answer; its opening matters more than its end

    def beside(self, base: Base, seed: int) -> list[Example]:
        """Return the prompts with their answers; of sampled ones only those that the run will use.

        Raises:
            RecipeError: a length of sampled answers where none is sampled, given answers without a file, or a file
                without a row to use.
        """
        if self.answers == "given" and self.max_new_tokens != Anchor.max_new_tokens:
            raise RecipeError(
                f"anchor: max_new_tokens is {self.max_new_tokens}, and answers is 'given', so no answer is sampled. "
                "Take max_new_tokens out, or set answers: sampled."
            )
        prompts, evaluated = self._prompts(), base.evaluation_questions()
        rows = [row for row in prompts if row.question not in evaluated]
        base.note("anchor/evaluation_questions_left_out", len(prompts) - len(rows))
        if not rows:
            raise RecipeError(
                f"anchor: {self._place} holds nothing but questions of the run's own evaluation, and no row may teach "
                "an answer to one. Give `prompts` a file with other questions."
            )
        if self.answers == "sampled":
            bare = [replace(row, messages=row.prompt, extra=without_tokens(row.extra)) for row in rows]
            return base.keep("anchor", lambda: self._sampled(bare, base, seed))
        unanswered = next((i for i, row in enumerate(prompts, start=1) if not row.answer), None)
        if unanswered is not None:
            raise RecipeError(
                f"anchor: answers is 'given', but row {unanswered} of {self.prompts} ends without an answer. "
                "Add one, or set answers: sampled."
            )
        return rows

    @property
    def _place(self) -> str:
        return "the shipped file" if self.prompts is None else str(self.prompts)

    def _prompts(self) -> list[Example]:
        if self.prompts is not None:
            return read_examples(self.prompts, source="anchor", prompts_only=True)
        if self.answers == "given":
            raise RecipeError(
                "anchor: answers is 'given', and the prompts that come with staytrue have none. Give `prompts` a file "
                "of conversations, or set answers: sampled."
            )
        return general_prompts.shipped("anchor")

    def _sampled(self, prompts: list[Example], base: Base, seed: int) -> list[Example]:
        """Sample answers to the prompts that are due first."""
        needed = None if base.task_rows is None else max(1, ceil(self.share * base.task_rows))
        chosen = first_due(len(prompts), needed, seed)
        rows = base.answers(prompts, seed, self.max_new_tokens, chosen)
        base.note("anchor/prompts_unused", len(prompts) - len(chosen))
        base.note("anchor/empty_answers_left_out", len(chosen) - len(rows))
        if not rows:
            raise RecipeError(
                f"anchor: the untouched model answers none of the {len(chosen)} prompts of {self._place}: every "
                "answer is empty. Ask other questions, or give answers in the file with answers: given."
            )
        return rows

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a head that is trained, or that staytrue cannot compute."""
        _ = parts.head

    def penalty(self, step: Step) -> Tensor:
        """Compute the mean divergence over the anchor rows' answer tokens."""
        span = step.span()
        return step.mean(step.divergence(span, forward=self.forward), span)
