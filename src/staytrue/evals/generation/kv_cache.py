"""`CachedModel`: a model that reads prompts once and then one token a row, whatever kind of cache it has.

Plain layers get a buffer for coming tokens, where transformers copies all keys and values for each token: those of a
long prompt with many samples are far more bytes than anything else that one token touches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from staytrue.errors import ModelError
from staytrue.evals.generation.batch_size import RowBytes

_SPARE = 32  # tokens that fit into a new buffer; as many are then written without a copy
_CACHES = ("past_key_values", "cache_params")  # what attention and hybrid models call it; pure state space models


class CachedModel:
    """A causal language model and its cache of B rows.

    Attributes:
        logits: of each row's next token, (B, V).
    """

    logits: Tensor

    def __init__(self, model: Any, ids: Tensor, mask: Tensor | None = None) -> None:
        """Read prompts.

        Args:
            model: a causal language model, with or without an adapter.
            ids: the prompts' tokens, (B, T), padded on the left.
            mask: 1 for a prompt's tokens and 0 for padding, (B, T); None if no row is padded.

        Raises:
            ModelError: the model returns no cache.
        """
        self._model, self._mask = model, mask if mask is not None else ids.new_ones(ids.shape)
        # A trainer switches the routers' loss on, which fails where the mask is longer than what is read.
        self._options: dict[str, Any] = {"use_cache": True}
        if getattr(model.config.get_text_config(), "output_router_logits", False):
            self._options["output_router_logits"] = False
        padded = {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        out = model(input_ids=ids, logits_to_keep=1, **padded, **self._options)
        name = next((name for name in _CACHES if getattr(out, name, None) is not None), None)
        if name is None:
            raise ModelError("it returns none")
        self._name, self._cache, self.logits = name, getattr(out, name), out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep some rows (n,), each as often as it is named."""
        self._select(rows)
        self.logits = self.logits[rows]

    @property
    def refillable(self) -> bool:
        """Whether `put` works: every layer is plain attention, which sees the tokens that the mask shows it."""
        layers = getattr(self._cache, "layers", [])
        return bool(layers) and all(type(x) in (DynamicLayer, _BufferedLayer) and x.is_initialized for x in layers)

    def forget(self, places: Tensor) -> None:
        """Hide all tokens of some rows (n,), which are no longer used, from attention."""
        self._mask[places] = 0

    def widen(self, columns: int) -> None:
        """Add so many hidden tokens to each row, so that attention takes as long as after so many more tokens."""
        self._mask = pad(self._mask, (columns, 0))
        for layer in buffered(self._cache).layers:
            layer.widen(columns)

    def put(self, places: Tensor, other: CachedModel, rows: Tensor) -> None:
        """Replace rows by rows of another cache.

        Args:
            places: the rows (n,) here; tokens before those of all rows are cut off now and then.
            other: a cache of the same model.
            rows: its rows (n,), one a place.
        """
        self.forget(places)
        length = self._mask.shape[1]
        used = length - int(self._mask.any(0).int().argmax())  # all of them where no row is used
        new = other._mask.shape[1]
        added = max(used, new) - length
        if -_SPARE < added < 0:
            added = 0
        self._mask = pad(self._mask, (added, 0))
        self._mask[places, -new:] = other._mask[rows]
        for layer, source in zip(buffered(self._cache).layers, other._cache.layers, strict=True):
            layer.put(places, source, rows, added)
        self.logits[places] = other.logits[rows]

    def advance(self, tokens: Tensor, rows: Tensor | None = None) -> None:
        """Read one more token of each row.

        Args:
            tokens: one a row, (n,).
            rows: the rows (n,) to keep, as for `select`; None for all.
        """
        if rows is not None:
            self._select(rows)
        buffered(self._cache)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        places: dict[str, Tensor] = {}
        if self._name == "past_key_values":  # a pure state space model has no positions and no use for the past's mask
            places = {"attention_mask": self._mask, "position_ids": self._mask.sum(1, keepdim=True) - 1}
        out = self._model(input_ids=tokens.unsqueeze(1), **{self._name: self._cache}, **places, **self._options)
        self.logits = out.logits[:, -1]

    def row_bytes(self) -> RowBytes:
        """The memory of one row."""
        rows, tokens = self._mask.shape
        return RowBytes.of(self._cache, rows, tokens, self.logits.shape[-1])

    def _select(self, rows: Tensor) -> None:
        if any(hasattr(layer, "conv_states") for layer in getattr(self._cache, "layers", [])):
            self._cache.reorder_cache(rows)  # recurrent layers have no batch_select_indices
        else:
            self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]


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
        buffered_layer = cls.__new__(cls)
        buffered_layer.__dict__.update(layer.__dict__)
        return buffered_layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens and return all."""
        length, new = self.keys.shape[-2], key_states.shape[-2]
        if self._buffers is None or length + new > self._buffers[0].shape[-2]:
            self._buffers = _buffer(self.keys, length + new), _buffer(self.values, length + new)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., length : length + new, :] = states
        return self._filled(length + new)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows only, and the buffers, so that one copy is enough."""
        if self._buffers is None:
            super().batch_select_indices(indices)
            return
        length = self.keys.shape[-2]
        self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
        self._filled(length)

    reorder_cache = batch_select_indices

    def put(self, places: Tensor, other: DynamicLayer, rows: Tensor, added: int) -> None:
        """Replace some rows by rows of another layer; `added` columns are added on the left, or cut off if negative."""
        if self._buffers is None or added:
            self.widen(added)
        assert self._buffers is not None
        length, new = self.keys.shape[-2], other.keys.shape[-2]
        for buffer, states in zip(self._buffers, (other.keys, other.values), strict=True):
            buffer[places, :, length - new : length] = states[rows]

    def widen(self, columns: int) -> None:
        """Add so many columns on the left, or cut them off if negative."""
        length = self.keys.shape[-2] + columns
        self._buffers = _buffer(self.keys, length, columns), _buffer(self.values, length, columns)
        self._filled(length)

    def _filled(self, tokens: int) -> tuple[Tensor, Tensor]:
        assert self._buffers is not None
        self.keys, self.values = (buffer[..., :tokens, :] for buffer in self._buffers)
        return self.keys, self.values


def _buffer(states: Tensor, needed: int, added: int = 0) -> Tensor:
    """A copy of keys or values at the start of a tensor for `needed` tokens and some spare ones.

    `added` columns of zeros precede the copy, since attention multiplies hidden values by 0; if negative, as many are
    cut off.
    """
    buffer = states.new_empty(*states.shape[:-2], needed + _SPARE, states.shape[-1])
    states = pad(states, (0, 0, added, 0)) if added else states
    buffer[..., : states.shape[-2], :] = states
    return buffer
