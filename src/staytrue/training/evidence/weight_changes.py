"""`WeightChanges` compares trained weights with what they were: of each block, and before and after a projection."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from staytrue.modeling.architecture import ModelParts


class WeightChanges:
    """The trained weights at one moment, kept in memory: the adapter's, or the model's own.

    Args:
        parts: the model.
    """

    def __init__(self, parts: ModelParts) -> None:
        self._parts = parts
        self._before = {name: weight.detach().cpu().clone() for name, weight in _trained(parts.model)}

    def by_block(self) -> dict[str, float]:
        """Return the largest change of such a weight in each block, 1 to depth."""
        names = {id(weight): name for name, weight in self._parts.model.named_parameters()}
        return {
            str(number): max(
                (self._change(names[id(w)], w) for w in block.parameters() if names[id(w)] in self._before), default=0.0
            )
            for number, block in enumerate(self._parts.blocks, start=1)
        }

    def whole(self) -> float:
        """Return the length of the change of all weights together."""
        changes = [w.detach().cpu().float() - self._before[name].float() for name, w in _trained(self._parts.model)]
        return float(torch.stack([change.square().sum() for change in changes]).sum().sqrt())

    def _change(self, name: str, weight: Tensor) -> float:
        return float((weight.detach().cpu() - self._before[name]).abs().max())


def _trained(model: Any) -> list[tuple[str, Tensor]]:
    """The weights that training may change: of a model with an adapter its own, frozen blocks included."""
    adapted = ModelParts(model).has_adapter
    return [(name, weight) for name, weight in model.named_parameters() if not adapted or "lora_" in name]
