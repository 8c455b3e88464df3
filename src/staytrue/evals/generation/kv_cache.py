"""A model's cache with a buffer for coming tokens, where transformers copies all keys and values for each token.

Keys and values of a long prompt with many samples are far more bytes than anything else that one token touches.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

_SPARE = 32  # tokens that a new buffer has room for; as many are then written without a copy


def buffered(cache: Any) -> Any:
    """Replace the plain layers of a cache by buffered ones; sliding and recurrent layers stay as they are."""
    layers = getattr(cache, "layers", [])
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layers[i] = _BufferedLayer.of(layer)
    return cache


class _BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values `(B, heads, T, d)` are the filled part of two longer buffers."""

    _buffers: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, layer: DynamicLayer) -> _BufferedLayer:
        """Continue another layer."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        return made

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens and return all."""
        held, new = self.keys.shape[-2], key_states.shape[-2]
        if self._buffers is None or held + new > self._buffers[0].shape[-2]:
            self._buffers = _buffer(self.keys, held + new), _buffer(self.values, held + new)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., held : held + new, :] = states
        return self._filled(held + new)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only, and the buffers, so that one copy is enough."""
        if self._buffers is None:
            super().batch_select_indices(indices)
            return
        held = self.keys.shape[-2]
        self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
        self._filled(held)

    def _filled(self, tokens: int) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        self.keys, self.values = (buffer[..., :tokens, :] for buffer in self._buffers)
        return self.keys, self.values


def _buffer(states: Tensor, needed: int) -> Tensor:
    """A copy of keys or values at the start of a tensor for `needed` tokens and some spare ones."""
    buffer = states.new_empty(*states.shape[:-2], needed + _SPARE, states.shape[-1])
    buffer[..., : states.shape[-2], :] = states
    return buffer
