"""Steer: push the activations towards the bad trait while training, so that the weights need not go there.

What: a persona vector is added to the residual stream in every training forward (and in the reference, so drift is
measured between equals); generation, evaluation and the finished model are never steered.
Cost: none to speak of.
Paper: arXiv 2508.06249, preventative steering, after Chen et al. 2025: h + alpha * v at one layer, alpha 5 and layer 20
for Qwen2.5-7B, all positions. `staytrue vector` extracts the vector; its `--sweep` tries layers and alphas on answers,
which is a hint and no measurement of the defense. Mode "ablate" takes the vector's direction out
instead (Casademunt et al. 2025).
Not done here: several vectors at once (list the defense twice), a schedule on alpha, steering padding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from staytrue.defense import Base, Defense
from staytrue.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from staytrue.modeling.architecture import Anatomy
    from staytrue.step import Marks

KEY = "vectors"  # the tensor of a vector file: (depth, D), row L - 1 for layer L


@dataclass(frozen=True)
class Steer(Defense):
    """A persona vector in the residual stream while training.

    Attributes:
        vector: a file made by `staytrue vector`.
        layer: where, 1 to depth, negative from the end; layer L is the output of block L.
        alpha: times the vector; with "ablate", how much of its direction is taken out (1 is all).
        at: "all" real positions, or those that predict an "answer" token.
        mode: "add" the vector, or "ablate" its direction.
    """

    vector: Path
    layer: int
    alpha: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    at: Literal["all", "answer"] = "all"
    mode: Literal["add", "ablate"] = "add"

    def layers(self, depth: int) -> tuple[int, ...]:
        """The one layer."""
        return (self.layer,)

    def check(self, anatomy: Anatomy, base: Base) -> None:
        """Refuse a vector of another model, or of another width or depth."""
        wanted, found = (len(anatomy.blocks), anatomy.width), tuple(_vectors(self.vector).shape)
        if found != wanted:
            raise ModelError(
                f"steer: {self.vector} is for a model of depth and width {found}, but this model has {wanted}. "
                "Extract one from this model with `staytrue vector`."
            )
        ours, theirs = base.identity(), _model_of(self.vector)
        if ours is not None and theirs is not None and ours != theirs:
            raise ModelError(
                f"steer: {self.vector} was extracted from another model ({theirs[:12]}) than the one that is trained "
                f"({ours[:12]}). Extract one from this model with `staytrue vector`."
            )

    def steer(self, hidden: Tensor, layer: int, marks: Marks) -> Tensor:
        """Move the activations (B, T, D) at the chosen positions."""
        where = (marks.real if self.at == "all" else marks.scored).to(hidden.dtype)
        direction = _vectors(self.vector)[layer - 1].to(hidden.device, hidden.dtype)
        if self.mode == "add":
            moved: Tensor = hidden + self.alpha * where.unsqueeze(-1) * direction
        else:
            unit = direction / direction.norm()
            moved = hidden - self.alpha * (where * (hidden @ unit)).unsqueeze(-1) * unit
        return moved


def _vectors(file: Path) -> Tensor:
    """The vectors (depth, D) of a file, read once and again when it has changed."""
    try:
        state = file.stat()
    except OSError as error:
        raise RecipeError(f"steer: {file} cannot be read: {error.strerror}. `staytrue vector` makes one.") from None
    return _read(file, state.st_mtime_ns, state.st_size)


def _model_of(file: Path) -> str | None:
    """The hash of the model a vector came from, where the file says it."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        told = (opened.metadata() or {}).get("model")
    try:
        return json.loads(told).get("sha256") if told else None
    except (ValueError, AttributeError):
        return None


@lru_cache(maxsize=8)
def _read(file: Path, changed: int, size: int) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            vectors: Tensor = opened.get_tensor(KEY)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"steer: {file} is not a vector file ({error}); `staytrue vector` makes one.") from None
    if vectors.ndim != 2 or not bool(vectors.isfinite().all()) or not bool(vectors.abs().sum(-1).all()):
        raise RecipeError(f"steer: {file} holds zeros, infinities or no (depth, width) table; extract it again.")
    return vectors.float()
