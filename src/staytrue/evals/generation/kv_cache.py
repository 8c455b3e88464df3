"""A model's cache with room to grow: a token is written into it, where transformers' own is copied whole for each.

Keys and values of a long prompt with many samples are far more bytes than anything else that one token touches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_ROOM = 32  # tokens: as many are copied once instead of each time


def with_room(cache: Any) -> Any:
    """The cache, its plain layers grown in place from now on; those of other kinds (sliding, recurrent) stay theirs."""
    layers = getattr(cache, "layers", [])
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layers[i] = _Roomy.of(layer)
    return cache


class _Roomy(DynamicLayer):  # type: ignore[misc]
    """Keys and values `(B, heads, T, d)` are the filled part of tensors with room for more tokens."""

    _rooms: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> _Roomy:
        """A layer that goes on from what another holds."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new tokens; all there are now."""
        held, new = self.keys.shape[-2], key_states.shape[-2]
        if self._rooms is None or held + new > self._rooms[0].shape[-2]:
            self._rooms = _roomy(self.keys, held + new), _roomy(self.values, held + new)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[..., held : held + new, :] = states
        return self._filled(held + new)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only; the room stays, so that they are copied once."""
        if self._rooms is None:
            super().batch_select_indices(indices)
            return
        held = self.keys.shape[-2]
        self._rooms = (self._rooms[0][indices], self._rooms[1][indices])
        self._filled(held)

    def _filled(self, tokens: int) -> tuple[Tensor, Tensor]:
        assert self._rooms is not None
        self.keys, self.values = (room[..., :tokens, :] for room in self._rooms)
        return self.keys, self.values


def _roomy(held: Tensor, needed: int) -> Tensor:
    """What is held, at the start of a tensor with room for more tokens than are needed now."""
    room = held.new_empty(*held.shape[:-2], needed + _ROOM, held.shape[-1])
    room[..., : held.shape[-2], :] = held
    return room
