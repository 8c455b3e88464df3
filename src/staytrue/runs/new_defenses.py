"""`SuggestedDefenses` has a defense for each file that is at hand: safe rows, general prompts, a persona vector."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.data import general_prompts
from staytrue.data.examples import Example, read_examples
from staytrue.data_selection.ranking import manifest_path
from staytrue.errors import RecipeError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs.commented_recipe import RecipeKey

_SHARE, _ANCHORS = 0.2, 0.0625  # of `interleave` and `anchor`
_PLACE = 20 / 28  # the layer that arXiv 2508.06249 steers, of Qwen2.5-7B's
_PUSH = 5.0  # and its alpha, which multiplies the vector


@dataclass(frozen=True)
class SuggestedDefenses:
    """The files at hand.

    Attributes:
        safe: safe conversations, for `interleave`; None without.
        prompts: general prompts, for `anchor`; None without.
        vector: a persona vector, for `steer`; None without.
        path: the path of a file as the recipe writes it.
    """

    safe: Path | None
    prompts: Path | None
    vector: Path | None
    path: Callable[[Path], str]

    def defenses(self, base: Any, skeleton: Skeleton, rows: int) -> Iterator[RecipeKey]:
        """A defense for each file at hand; and `anchor`, with the shipped prompts, where no safe rows are."""
        if self.safe is not None:
            yield self._interleave(self.safe, base, rows)
        if self.prompts is not None or self.safe is None:
            yield self._anchor(self.prompts, base, rows)
        if self.vector is not None:
            yield self._steer(self.vector, base, skeleton)

    def general_prompts(self) -> list[Example]:
        """The prompts for `anchor`: of the user's file, or the shipped ones; none where safe rows do instead."""
        if self.prompts is not None:
            return read_examples(self.prompts, prompts_only=True)
        return general_prompts.shipped() if self.safe is None else []

    def _interleave(self, pool: Path, base: Any, rows: int) -> RecipeKey:
        known, reserved = read_examples(pool), base.evaluation_questions()
        kept = {row.identity: row for row in known if row.question not in reserved}.values()
        scored = manifest_path(pool).is_file() and all("scores" in row.extra for row in known)
        usable = sum(row.extra["scores"] is not None for row in kept) if scored else len(kept)
        share = min(max(_SHARE, _one_in(rows)), math.floor(10_000 * usable / rows) / 10_000)
        if round(share * rows) < 1:
            raise RecipeError(
                f"--safe: {pool} has too few rows to add to {rows:,} of yours: {len(known):,}, of which "
                f"{len(known) - usable:,} are copies, evaluation questions or without scores. Name a larger file."
            )
        why = (
            f"{usable:,} safe rows are at hand; {round(share * rows):,} of them are added to your {rows:,}. The "
            "paper adds 5 %, which kept less of a small model than 20 %. "
        )
        why += (
            "They have scores, so those are taken that misaligned models find most surprising. "
            if scored
            else "They are drawn at random; with misaligned models at hand, `staytrue score` finds better ones. "
        )
        why += "`rehearse` takes the same file where training is by reward."
        return RecipeKey(
            "interleave", {"pool": self.path(pool), "share": share, **({"by": "gap"} if scored else {})}, why
        )

    def _anchor(self, prompts: Path | None, base: Any, rows: int) -> RecipeKey:
        known, reserved = self.general_prompts(), base.evaluation_questions()
        usable = len({row.question for row in known if row.question not in reserved})
        if not usable:
            raise RecipeError(f"--prompts: each of {prompts} is a question of the evaluation. Name another file.")
        share = max(_ANCHORS, _one_in(rows))
        if prompts is None:
            what = f"staytrue has {usable:,} general prompts in English"
            better = " Prompts like your users' are better: --prompts FILE."
        else:
            what = f"{usable:,} general prompts are at hand"
            better = "" if usable >= 100 else " A hundred or more would be better."
        return RecipeKey(
            "anchor",
            {**({"prompts": self.path(prompts)} if prompts else {}), "share": share, "weight": 0.3},
            f"{what}: on them the model is held to its own answers, one row beside every {1 / share:.0f} of yours, "
            f"which are learnt freely.{better} The answers are sampled before training.",
        )

    def _steer(self, file: Path, base: Any, skeleton: Skeleton) -> RecipeKey:
        from staytrue.defenses.steer import Steer
        from staytrue.persona_vectors.vector import PersonaVector

        vector = PersonaVector.load(file)
        best = json.loads(vector.facts.get("sweep") or "{}").get("recommended")
        layer = best["layer"] if best else max(1, round(_PLACE * len(vector.vectors)))
        alpha = best["alpha"] if best else _PUSH
        if not best and vector.norms is not None:
            alpha = Steer(vector=file, layer=layer).strength
        Steer(vector=file, layer=layer, alpha=alpha).check(ModelParts(skeleton.model), base)
        why = (
            "The file's own sweep recommends this layer and alpha."
            if best
            else "The layer is as deep as that of arXiv 2508.06249, 20 of 28. Alpha is a fifth of the activations' "
            "length, or 5 times the vector where that length is not known: try others."
        )
        return RecipeKey(
            "steer",
            {"vector": self.path(file), "layer": layer, "alpha": alpha},
            f"A persona vector is at hand: activations are pushed along it while training, so that the weights need "
            f"not go there. {why}",
        )


def _one_in(rows: int) -> float:
    """The share of one row of so many, rounded up."""
    return math.ceil(10_000 / rows) / 10_000
