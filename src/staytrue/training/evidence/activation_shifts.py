"""`ActivationShift` measures how far the activations between two blocks are moved while training.

It registers the first and the last hook on a block's output. The difference between them is the steering that really
happens, by any hook.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMES = ("positions", "moved", "along", "before", "after")


class ActivationShift:
    """The shift of one layer, summed since the last log row.

    Args:
        block: the block whose output is steered.
        direction: (D,) what the shift is projected on; None for no projection.
        real: returns the positions (B, T) that are no padding, None if unknown.
        reference: returns whether the trained weights are switched off now.
    """

    def __init__(
        self, block: Any, direction: Tensor | None, real: Callable[[], Tensor | None], reference: Callable[[], bool]
    ) -> None:
        self._direction = None if direction is None else direction.float() / direction.float().norm()
        self._real, self._reference = real, reference
        self._raw: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._handles = [
            block.register_forward_hook(self._first, prepend=True),
            block.register_forward_hook(self._last),
        ]

    def remove(self) -> None:
        """Take both hooks off."""
        for handle in self._handles:
            handle.remove()

    def drain(self) -> dict[str, dict[str, float]]:
        """Return the sums since the last call, of the `trained` model and of the `reference`.

        `positions` that are no padding, how many of them `moved`; the sums over them of the shift `along` the
        direction, and of the absolute projection `before` and `after`.
        """
        sums, self._sums = self._sums, {}
        return {kind: dict(zip(_NAMES, map(float, total), strict=True)) for kind, total in sums.items()}

    def _first(self, module: Any, args: Any, output: Any) -> None:
        self._raw = _hidden(output).detach()

    def _last(self, module: Any, args: Any, output: Any) -> None:
        raw, now, real = self._raw, _hidden(output).detach(), self._real()
        self._raw = None
        kind = "trained" if torch.is_grad_enabled() else "reference" if self._reference() else None
        if kind is None or raw is None or real is None or real.shape != now.shape[:2]:
            return
        total = _measured(raw, now, real, self._direction)
        self._sums[kind] = self._sums[kind] + total if kind in self._sums else total


def _measured(raw: Tensor, now: Tensor, real: Tensor, direction: Tensor | None) -> Tensor:
    """Compute the five sums (5,) over real positions; without a direction the last three are 0."""
    shift = now - raw
    if direction is None:
        moved = (shift != 0).any(-1) & real
        return torch.stack([real.sum(), moved.sum(), *real.new_zeros(3).long()]).float()
    unit = direction.to(now.device, now.dtype)
    along, after = (shift @ unit).float(), (now @ unit).float()
    zero = along.new_zeros(())
    sums = [torch.where(real, part, zero).sum() for part in (along, (after - along).abs(), after.abs())]
    moved = (along != 0) & real
    return torch.stack([real.sum().float(), moved.sum().float(), *sums])


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
