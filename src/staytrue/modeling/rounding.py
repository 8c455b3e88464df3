"""Rounding: how far half precision moves a number, whether two matrices differ by it alone, and unpacked weights."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_BLOCK, _BLOCKS = 32, 1024  # numbers with one scale; blocks that are looked at
_DIFFERENT = 0.8  # values of each number that is not 0: at least 0.95 in bfloat16, less in 5 bits or fewer


def half_spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute half the distance of neighbouring numbers of `dtype` at each value: the most that rounding moves it."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(values.float().abs().clamp(min=info.smallest_normal)).exponent  # 0.5 <= value / 2^it < 1
    return info.eps / 4 * exponent.float().exp2()


def only_rounded(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two matrices are one, each rounded to the precision that it is stored in.

    The precision is read off the numbers, because files in half precision may have been loaded in float32. Where
    both have the same, they must be equal; each precision that only one of them has allows what rounding to it moves.
    """
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == theirs.dtype and torch.equal(ours, theirs):  # much faster than what follows
        return True
    a, b = ours.float(), theirs.float()
    allowed = torch.zeros_like(a)
    for dtype in _HALF:
        if _fits(a, dtype) != _fits(b, dtype):
            allowed += half_spacing(torch.maximum(a.abs(), b.abs()), dtype)
    return bool(((a - b).abs() <= allowed).all())


def is_unpacked(matrix: Tensor) -> bool:
    """Return whether a matrix was stored in 5 bits or fewer and unpacked: its numbers recur.

    Of the 32 numbers that share a scale hardly two are equal in bfloat16 or more, unless they are 0. Formats
    of more bits are not seen.
    """
    width = matrix.shape[-1] // _BLOCK * _BLOCK
    if width == 0 or not matrix.is_floating_point():
        return False
    rows = matrix.detach().flatten(end_dim=-2)[:_BLOCKS, :width]
    blocks = rows.float().reshape(-1, _BLOCK)[:_BLOCKS].sort(dim=-1).values
    different = len(blocks) + (blocks.diff(dim=-1) != 0).sum()
    return bool(different < _DIFFERENT * (blocks != 0).sum())


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether every number is one of `dtype`."""
    return torch.equal(values.to(dtype).float(), values)
