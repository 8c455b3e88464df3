"""Rounding: how far half precision moves a number, what two matrices differ by, and matrices of few values."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_BLOCK, _BLOCKS = 32, 1024  # numbers with one scale; blocks that are looked at
_DIFFERENT = 0.9  # values for each number that is not 0; of normal numbers 0.96 in bfloat16, 0.82 and less in fp8


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


def has_few_values(matrix: Tensor) -> bool:
    """Return whether a matrix is rounded to few values, as by a format of 6 bits or fewer, or of 8-bit floats.

    Of 32 neighbours, which share a scale in such formats, hardly two are equal in bfloat16 or more, unless they are 0.
    Some formats of 8-bit integers look like bfloat16 and are not seen. Of several matrices the first is looked at.
    """
    while matrix.dim() > 2:
        matrix = matrix[0]
    return matrix.is_floating_point() and (_recurs(matrix.detach()) or _recurs(matrix.detach().mT))


def _recurs(rows: Tensor) -> bool:
    """Whether the numbers of many blocks of each row recur."""
    width = rows.shape[-1] // _BLOCK * _BLOCK
    if width == 0:
        return False
    blocks = rows[:_BLOCKS, :width].float().reshape(-1, _BLOCK)[:_BLOCKS].sort(dim=-1).values
    different = len(blocks) + (blocks.diff(dim=-1) != 0).sum()
    return bool(different < _DIFFERENT * (blocks != 0).sum())


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether every number is one of `dtype`."""
    return torch.equal(values.to(dtype).float(), values)
