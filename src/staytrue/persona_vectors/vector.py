"""`PersonaVector`: a persona vector in memory: load it, save it, apply it to a model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from staytrue.errors import ModelError, RequestError
from staytrue.persona_vectors import vectorfile

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["add", "ablate"]


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """One direction for each layer of a model, along which its activations show a trait.

    With mode "add" steered activations are `h + alpha * n * u`, where u is the vector of the layer at length 1, and n
    is the mean length of the model's activations there (`norms`). So alpha is the length of the push relative to the
    activations, and means the same in every model and layer; Chen et al. (2025) add `alpha * v`, whose length they do
    not state. Without `norms`, in a file that `staytrue vector` did not write, it is `h + alpha * v`. With mode
    "ablate" they are `h - alpha * (h . u) u` (Casademunt et al. 2025); alpha 1 removes the whole direction.

    Attributes:
        vectors: (depth, D) float32, not normalised; row L - 1 belongs to layer L, the output of block L.
        facts: how the vector was made, as the file's metadata: strings, some of them JSON; `norms` are lengths by
            layer.

    Example:
        >>> import torch
        >>> vector = PersonaVector(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), {"norms": [20.0, 30.0]})
        >>> vector.steer(torch.zeros(1, 1, 2), layer=1, alpha=0.5).tolist()
        [[[6.0, 8.0]]]

        With a model and the file that `staytrue vector` wrote::

            vector = PersonaVector.load("evil.safetensors")
            with vector.apply(model, layer=20, alpha=0.5):
                model.generate(**inputs)
    """

    vectors: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | str) -> PersonaVector:
        """Read a file made by `staytrue vector` or `save`; a file is read again only when it has changed.

        Raises:
            RequestError: the file cannot be read, or holds no (depth, D) table of finite, non-zero rows.
        """
        return cls(*vectorfile.read(Path(path)))

    def save(self, path: Path | str) -> None:
        """Write the file, whole or not at all; an existing file is replaced."""
        vectorfile.write(Path(path), self.vectors, self.facts)

    @property
    def model_sha256(self) -> str | None:
        """The hash of the model that the vector was extracted from; None where the file does not have it."""
        try:
            sha256: str | None = json.loads(self.facts["model"]).get("sha256")
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return sha256

    @property
    def norms(self) -> tuple[float, ...] | None:
        """For each layer the mean length of the activations at the answers' tokens; None where it is not known.

        Raises:
            ModelError: there is not one positive number for each layer.
        """
        if "norms" not in self.facts:
            return None
        try:
            stored = self.facts["norms"]
            norms = tuple(float(norm) for norm in (json.loads(stored) if isinstance(stored, str) else stored))
        except (TypeError, ValueError):
            norms = ()
        if len(norms) != len(self.vectors) or not all(0 < norm < math.inf for norm in norms):
            raise ModelError(
                f"The vector's `norms` are {self.facts['norms']!r:.80}, which is not one positive number for each of "
                f"its {len(self.vectors)} layers. Extract it again with `staytrue vector`."
            )
        return norms

    def push(self, layer: int) -> Tensor:
        """Return what alpha 1 adds (D,): the layer's vector, as long as the activations there where that is known."""
        place = layer - 1 if layer > 0 else layer
        vector, norms = self.vectors[place], self.norms
        return vector if norms is None else vector * (norms[place] / vector.norm())

    def steer(
        self, hidden: Tensor, layer: int, *, alpha: float = 1.0, mode: Mode = "add", where: Tensor | None = None
    ) -> Tensor:
        """Activations with the vector added, or its direction ablated.

        Args:
            hidden: (B, T, D), the output of a block; it is left unchanged, and gradients pass through.
            layer: 1 to depth; negative numbers count from the end.
            alpha: the length of the push over the activations'; with "ablate", the share of the direction to remove.
            mode: "add" or "ablate".
            where: (B, T) bool, the positions to steer; None for all.

        Returns:
            (B, T, D) in the type and on the device of `hidden`.

        Raises:
            RequestError: `alpha` is not finite.
        """
        _refuse_infinite(alpha)
        direction = self.push(layer).to(hidden.device, hidden.dtype)
        if mode == "add":
            change = alpha * direction
        else:
            unit = direction / direction.norm()
            change = -alpha * (hidden @ unit).unsqueeze(-1) * unit
        return hidden + (change if where is None else where.to(hidden.dtype).unsqueeze(-1) * change)

    @contextmanager
    def apply(self, model: Any, layer: int, *, alpha: float = 1.0, mode: Mode = "add") -> Iterator[None]:
        """Steer one block's output at every position, in every forward and generation inside the `with`.

        Args:
            model: a transformers causal language model, with or without a peft adapter.
            layer: 1 to depth; negative numbers count from the end.
            alpha: see `steer`.
            mode: "add" or "ablate".

        Raises:
            ModelError: the vector is for a model of another depth or width, or the model has no such layer.
            RequestError: `alpha` is not finite.
        """
        from staytrue.modeling.architecture import ModelParts
        from staytrue.modeling.block_outputs import hooked

        _refuse_infinite(alpha)
        parts = ModelParts(model)
        shape, depth = tuple(self.vectors.shape), len(parts.blocks)
        if shape != (depth, parts.width):
            raise ModelError(
                f"The vector is for a model of depth and width {shape}, but this model has "
                f"{(depth, parts.width)}. Extract one from this model with `staytrue vector`."
            )
        if not 1 <= abs(layer) <= depth:
            raise ModelError(
                f"There is no layer {layer}: this model has {depth}, numbered 1 to {depth} or -1 to -{depth}."
            )
        block = parts.blocks[layer - 1 if layer > 0 else layer]
        with hooked([block], lambda _, hidden: self.steer(hidden, layer, alpha=alpha, mode=mode)):
            yield


def _refuse_infinite(alpha: float) -> None:
    if not math.isfinite(alpha):
        raise RequestError(f"alpha is {alpha}; write a finite number.")
