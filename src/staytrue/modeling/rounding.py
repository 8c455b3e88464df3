"""Rounding to half precision: how far it moves a number, and whether two matrices differ by nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)


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


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether every number is one of `dtype`."""
    return torch.equal(values.to(dtype).float(), values)
