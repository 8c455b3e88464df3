"""Steer: push the activations towards the bad trait while training, so that the weights need not go there.

What: a persona vector is added to the residual stream in every training forward, and in the reference's too, so that
both are steered alike when drift is measured; generation, evaluation and the finished model are never steered.
Cost: negligible.
Paper: arXiv 2508.06249, preventative steering, after Chen et al. 2025: h + alpha * v at one layer, alpha 5 and layer 20
for Qwen2.5-7B, all positions. Differs: v is scaled to the mean length of the model's activations at that layer, which
the vector file states, so alpha means the same in every model. Until version 0.2 alpha multiplied the vector as stored;
the old alpha times |v| / |h| is the new one (the organism's 4 at its last layer is 0.8). A file of another tool,
without `norms`, is added as it is, alpha * v.
The default alpha is weak for the organism, whose best was 0.8, and strong for SmolLM2-135M, whose answers 0.4 breaks
(docs/real-models.md): try 0.1 to 0.8.
`staytrue vector` extracts the vector, and its `--sweep` tries layers and alphas: on judged answers of the organism, and
on the likelihoods of written pairs for other models. That is a hint and no measurement of the defense. Mode "ablate"
removes the vector's direction instead. That is the training half of CAFT (Casademunt et al. 2025) for one direction;
CAFT finds several by PCA or in a sparse autoencoder.
Not done here: several vectors at once (to add two, list the defense twice; two oblique directions that are ablated one
after the other leave a component), a schedule on alpha, steering padding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from staytrue.defense import Base, Defense, Traces
from staytrue.errors import ModelError, RecipeError, RequestError, StaytrueWarning
from staytrue.persona_vectors.vector import Mode, PersonaVector

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import ModelParts
    from staytrue.step import Marks
    from staytrue.verify.evidence import Evidence

_MOST = 0.9  # of all positions; half precision may swallow a small shift
_NEAR = 0.05  # of the expected shift, which half precision rounds

_ALPHA = 0.2  # the longest push that left the likelihood of SmolLM2-135M's answers (docs/real-models.md)
_LONG = 1.0  # alpha; a longer push is mostly a mistake


@dataclass(frozen=True)
class Steer(Defense):
    """A defense that adds a persona vector to the residual stream during training.

    Attributes:
        vector: a file made by `staytrue vector`.
        layer: where, 1 to depth, negative from the end; layer L is the output of block L.
        alpha: the length of the push over the activations' mean length; with "ablate", the share of the direction that
            is removed, 0 to 1. None is 0.2, and 1 with "ablate". A vector file without `norms` needs a number to add.
        at: "all" real positions, or those that predict an "answer" token.
        mode: "add" the vector, or "ablate" its direction.
    """

    vector: Path
    layer: int
    alpha: Annotated[float, Field(allow_inf_nan=False)] | None = None
    at: Literal["all", "answer"] = "all"
    mode: Mode = "add"

    def layers(self, depth: int) -> tuple[int, ...]:
        """Return the one layer."""
        return (self.layer,)

    def check(self, parts: ModelParts, base: Base) -> None:
        """Refuse a vector of another model, width or depth, and an alpha that is no share where one is removed."""
        if self.mode == "ablate" and not 0 <= self.strength <= 1:
            raise RecipeError(
                f"steer: alpha is {self.strength:g}, and with mode: ablate it is the share of the direction that is "
                "removed. Set it from 0 to 1, or take mode out."
            )
        vector = self._loaded
        ours, theirs = (len(parts.blocks), parts.width), tuple(vector.vectors.shape)
        if ours != theirs:
            raise ModelError(
                f"steer: {self.vector} is for a model of depth and width {theirs}, but this model has {ours}. "
                "Extract one from this model with `staytrue vector`."
            )
        trained, source = base.identity(), vector.model_sha256
        if trained is not None and source is not None and trained != source:
            raise ModelError(
                f"steer: {self.vector} was extracted from another model ({source[:12]}) than the one that is trained "
                f"({trained[:12]}). Extract one from this model with `staytrue vector`."
            )
        if self.mode == "add" and vector.norms is None and self.alpha is None:
            raise RecipeError(
                f"steer: {self.vector} has no `norms`, so alpha multiplies its vectors as they are and has no default. "
                "Set alpha; arXiv 2508.06249 took 5."
            )
        if self.mode == "add" and vector.norms is not None and abs(self.strength) > _LONG:
            before = abs(self.strength) * float(vector.vectors[self._place].norm()) / vector.norms[self._place]
            warnings.warn(
                f"steer: alpha {self.strength:g} pushes by {abs(self.strength):g} times the mean length of activations "
                f"at layer {self.layer}. If the recipe is of version 0.1, where alpha multiplied the vector as stored, "
                f"write alpha: {math.copysign(before, self.strength):.2g}, which does the same.",
                StaytrueWarning,
                stacklevel=2,
            )

    def steer(self, hidden: Tensor, layer: int, marks: Marks) -> Tensor:
        """Move the activations (B, T, D) at the chosen positions."""
        where = marks.real if self.at == "all" else marks.scored
        return self._loaded.steer(hidden, layer, alpha=self.strength, mode=self.mode, where=where)

    @property
    def strength(self) -> float:
        """The alpha that is used."""
        if self.alpha is not None:
            return self.alpha
        return 1.0 if self.mode == "ablate" else _ALPHA

    @property
    def _place(self) -> int:
        """The layer's row in the table."""
        return self.layer - 1 if self.layer > 0 else self.layer

    def traces(self, depth: int) -> Traces:
        """Return what alpha 1 adds at its layer."""
        layer = self.layer if self.layer > 0 else depth + 1 + self.layer
        return Traces(directions={layer: self._loaded.push(self.layer)})

    def evidence(self, run: Evidence) -> list[str]:
        """Return how the measured shift along the vector differs from alpha times its length."""
        if self.strength == 0:
            return ["its alpha is 0, so it cannot act"]
        depth = run.facts["depth"]
        layer = str(self.layer if self.layer > 0 else depth + 1 + self.layer)
        others = {label: other for label, other in run.defenses.items() if layer in run.of(label).get("onto", {})}
        if not all(isinstance(other, Steer) and other.at == self.at for other in others.values()):
            return []
        if len(others) > 1 and any(isinstance(o, Steer) and o.mode != "add" for o in others.values()):
            return []
        onto = run.own["onto"][layer]
        added = sum(other.strength * onto[label] for label, other in others.items() if isinstance(other, Steer))
        for row, numbers in zip(run.rows, run.numbers(), strict=True):
            for kind, sums in numbers["shift"][layer].items():
                fault = self._fault(sums, added)
                if fault is not None:
                    return [f"step {row['step']}: in the {kind} model {fault}"]
        return []

    def _fault(self, sums: Mapping[str, float], added: float) -> str | None:
        """The fault of the shift in one row of evidence; None without one."""
        positions, moved = sums["positions"], sums["moved"]
        if self.at == "all" and moved < _MOST * positions:
            return f"{moved:.0f} of {positions:.0f} positions were moved"
        if self.at == "answer" and moved >= positions:
            return "positions outside the answers were moved too"
        if self.mode == "add":
            measured, expected = sums["along"] / max(moved, 1), added
        elif self.at == "all":  # the part of the component that is left, with its sign
            measured, expected = 1 - sums["after"] / sums["before"], 1 - abs(1 - self.strength)
        else:
            return None
        if abs(measured - expected) > _NEAR * max(abs(expected), 1e-6):
            return f"the shift along the vector is {measured:.4g}, not {expected:.4g}"
        return None

    @cached_property
    def _loaded(self) -> PersonaVector:
        """The vector as it was when training began, whatever becomes of its file."""
        try:
            return PersonaVector.load(self.vector)
        except RequestError as error:
            raise RecipeError(f"steer: {error}") from None
