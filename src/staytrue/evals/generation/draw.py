"""`draw`: tokens from logits and uniform numbers, one number a token.

For a vocabulary of V that is 1/V of the random numbers that `multinomial` draws.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256  # tokens of the vocabulary


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """One token (n,) from logits (n, V) and uniform numbers (n,) in [0, 1); the likeliest at temperature 0.

    First a block of tokens is drawn, then a token in it: sums over whole blocks are short enough for float32, and only
    n numbers a block and one block a row are summed in float64, where a sum over a whole vocabulary would lose its
    tail.
    """
    if temperature == 0:
        return logits.argmax(-1)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    weights = torch.sub(scaled, scaled.amax(-1, keepdim=True)).exp_()
    if short := -weights.shape[-1] % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, short))
    blocks = weights.view(len(weights), -1, _BLOCK)
    sums = blocks.sum(-1).to(exact)
    block, left = _place(sums, uniforms.to(exact))
    inside = blocks[torch.arange(len(block), device=block.device), block].to(exact)
    return (block * _BLOCK + _place(inside, left)[0]).clamp(max=logits.shape[-1] - 1)


def _place(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Which of some weights (n, m) a number in [0, 1) falls on, (n,); and where within it, again in [0, 1)."""
    cumulative = weights.cumsum(-1)
    point = (uniforms * cumulative[:, -1]).unsqueeze(-1)
    place = torch.searchsorted(cumulative, point, right=True).clamp(max=weights.shape[-1] - 1)
    mass = weights.gather(-1, place)
    left = (point - (cumulative.gather(-1, place) - mass)) / mass
    return place.squeeze(-1), left.squeeze(-1).clamp(0, 1 - torch.finfo(weights.dtype).eps)
