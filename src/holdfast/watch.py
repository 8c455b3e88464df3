"""`Watch`: hooks on a model's backbone and blocks that see the trainer's own call, and can make it again.

Nothing of a trainer is copied and no batch is put together again: the backbone's hook receives the arguments of the
very call (position ids, packing and lengths come along). Only calls with gradients are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from holdfast.anatomy import Anatomy
from holdfast.step import Marks, Pass

Steer = Callable[[Tensor, int, Marks], Tensor]  # hidden (B, T, D), layer, marks (B, T) -> hidden (B, T, D)


@dataclass
class Call:
    """One call of the backbone: what went in, and what it left behind."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, bool, torch.dtype]
    hidden: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    depth: int = 0

    @property
    def tokens(self) -> Tensor | None:
        """The token ids (B, T) that went in; None when embeddings did."""
        given: Tensor | None = self.kwargs.get("input_ids", self.args[0] if self.args else None)
        return given

    def result(self) -> Pass:
        """What the call left behind, as the defenses see it."""
        assert self.final is not None
        return Pass(self.hidden, self.final, self.depth)


class Watch:
    """Records the backbone's calls, steers them, and makes them again with the trained weights undone."""

    def __init__(self, anatomy: Anatomy, kept: Sequence[int], steers: Mapping[int, Sequence[Steer]]) -> None:
        self._anatomy = anatomy
        self._kept = frozenset(kept)
        self._steers = steers
        self._depth = len(anatomy.blocks) if kept or steers else 0
        self._where: Marks | None = None  # the micro-batch's marks while steering is on
        self._calls: list[Call] | None = None  # where recorded calls go while recording is on
        self._open: Call | None = None
        backbone = anatomy.backbone
        handles: list[Any] = [
            backbone.register_forward_pre_hook(self._enter, with_kwargs=True),
            backbone.register_forward_hook(self._leave),
        ]
        for layer in sorted(self._kept | set(steers)):
            handles.append(anatomy.blocks[layer - 1].register_forward_hook(self._block(layer)))
        self._handles = handles

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def recording(self) -> Iterator[list[Call]]:
        """Collect the backbone's calls that build a gradient."""
        calls: list[Call] = []
        self._calls, before = calls, self._calls
        try:
            yield calls
        finally:
            self._calls, self._open = before, None

    @contextmanager
    def steering(self, where: Marks | None) -> Iterator[None]:
        """Steer every call, whose positions are `where`; None leaves calls alone."""
        self._where, before = where, self._where
        try:
            yield
        finally:
            self._where = before

    def replay(self, call: Call, where: Marks) -> Pass:
        """The same call, trained weights undone, steering kept, no gradient."""
        again = Call(call.args, call.kwargs, call.autocast, depth=call.depth)
        with torch.no_grad(), self._anatomy.untrained(), self.steering(where), _autocast(call.autocast):
            self._open = again
            try:
                self._anatomy.backbone(*call.args, **call.kwargs)
            finally:
                self._open = None
        return again.result()

    def call(self, like: Call, where: Marks, **inputs: Tensor) -> Call:
        """A call of our own, with gradients, in the precision of another."""
        with self.recording() as calls, self.steering(where), _autocast(like.autocast):
            self._anatomy.backbone(**inputs, use_cache=False)
        return calls[0]

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._calls is not None and torch.is_grad_enabled():
            device = next(module.parameters()).device.type
            state = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            self._open = Call(args, dict(kwargs), state, depth=self._depth)
            self._calls.append(self._open)

    def _leave(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if self._open is not None:
            self._open.final = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
            self._open = None

    def _block(self, layer: int) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            if self._where is not None:
                for steer in self._steers.get(layer, ()):
                    hidden = steer(hidden, layer, self._where)
            if self._open is not None and layer in self._kept:
                self._open.hidden[layer] = hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook


def _autocast(state: tuple[str, bool, torch.dtype]) -> torch.autocast:
    device, enabled, dtype = state
    return torch.autocast(device, dtype=dtype, enabled=enabled)
