"""The language-model head: from hidden states to logits and back, a tile of positions at a time.

Legend: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# A tile of about two million logits stays in a CPU's cache (measured). Sixteen times as many is a guess for a GPU.
_LOGITS_PER_TILE = {"cpu": 2**21}
_LOGITS_PER_TILE_ELSEWHERE = 2**25
_FEWEST_ROWS = 64


def tile_rows(device: str, vocabulary: int) -> int:
    """Positions in a tile, on a kind of device."""
    return max(_FEWEST_ROWS, _LOGITS_PER_TILE.get(device, _LOGITS_PER_TILE_ELSEWHERE) // vocabulary)


@dataclass(frozen=True)
class Head:
    """From a final hidden state (N, D) to logits (N, V): `softcap * tanh(scale * (h W^T + b) / softcap)`.

    `weight` is (V, D), `bias` (V,) or None. A scale of 1 and no soft cap is the plain head of most models. A frozen
    head is shared by the trained model and its reference; with full fine-tuning each has its own. An adapted head is
    refused elsewhere.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_trained(self) -> bool:
        """Whether the head's own weight is trained, as in full fine-tuning."""
        return self.weight.requires_grad

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """Compute logits (N, V) in float32 for hidden states (N, D); the product runs in the head's own precision.

        `out` (N, V) is an optional buffer for the result.
        """
        if out is not None and self.weight.dtype == hidden.dtype == torch.float32:
            raw = torch.mm(hidden, self.weight.t(), out=out)
            raw = raw if self.bias is None else raw.add_(self.bias)
        else:
            raw = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).float()
        if self.scale != 1.0:
            raw = raw.mul_(self.scale)
        return raw if self.softcap is None else raw.div_(self.softcap).tanh_().mul_(self.softcap)

    def pull_back(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Carry a gradient on the logits (N, V) back to the hidden states (N, D)."""
        return self.before_scaling(gradient, logits).to(self.weight.dtype) @ self.weight

    def before_scaling(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Carry a gradient on the logits (N, V) back to `h W^T + b`, before scale and soft cap."""
        if self.softcap is not None:
            gradient = gradient * (1 - (logits / self.softcap).square())
        return gradient if self.scale == 1.0 else gradient * self.scale

    def tiles(self, hidden: Tensor) -> Iterator[slice]:
        """Yield slices of (N, D) such that no tile's logits exceed a fixed size."""
        rows = tile_rows(hidden.device.type, self.weight.shape[0])
        for start in range(0, hidden.shape[0], rows):
            yield slice(start, start + rows)
