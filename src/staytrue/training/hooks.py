"""`BackboneHooks`: forward hooks on a model's backbone and blocks. They record the trainer's call and can repeat it.

The hook receives the arguments of the trainer's own call, so position ids, packing and lengths are those of training.
Only calls that build a gradient are recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakMethod, finalize

import torch
from torch import Tensor

from staytrue.errors import ForwardPassError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.block_outputs import on_output
from staytrue.modeling.reference_model import AdapterOff
from staytrue.step import Activations, Marks

Steer = Callable[[Tensor, int, Marks], Tensor]  # hidden (B, T, D), layer, marks (B, T) -> hidden (B, T, D)


# Arguments of a backbone that hold one entry a row, wherever they are as long as the batch.
_BY_ROW = frozenset({"input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids"})


class _ForwardStopped(Exception):  # noqa: N818
    """Ends a forward after the deepest layer that is read; transformers has no argument for it."""


def refuse_other_shape(read: tuple[int, ...], marks: Marks) -> None:
    """Refuse a batch of another shape (B, T) than its micro-batch was planned with.

    Raises:
        ForwardPassError: the shapes differ.
    """
    if read != marks.real.shape:
        shape, planned = (" x ".join(map(str, sizes)) for sizes in (read, marks.real.shape))
        raise ForwardPassError(
            f"The trainer's forward read {shape} positions (rows x tokens), but its micro-batch was planned with "
            f"{planned}: a subclass changes the batch after get_batch_samples, or trains on one batch twice. "
            "Change batches in the data collator."
        )


@dataclass
class RecordedCall:
    """The arguments and activations of one call of the backbone.

    Attributes:
        args: the call's positional arguments.
        kwargs: its keyword arguments.
        autocast: device type, whether autocast was on, and its dtype.
        hidden: by layer, the output (B, T, D) of each block that is kept.
        final: (B, T, D) the last hidden states, after the final norm; None if the forward ended before.
        depth: the number of blocks.
        rows: (b,) which rows of the recorded call these are; None for all.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: tuple[str, bool, torch.dtype]
    hidden: dict[int, Tensor] = field(default_factory=dict)
    final: Tensor | None = None
    depth: int = 0
    rows: Tensor | None = None

    def again(self) -> RecordedCall:
        """Return the same call, not run yet."""
        return RecordedCall(self.args, self.kwargs, self.autocast, depth=self.depth)

    def nothing(self) -> Activations:
        """Return the activations of a call in which no row was computed: NaN everywhere."""
        hidden = {layer: torch.full_like(output.detach(), torch.nan) for layer, output in self.hidden.items()}
        return Activations(
            hidden, None if self.final is None else torch.full_like(self.final.detach(), torch.nan), self.depth
        )

    def check_shape(self, marks: Marks) -> None:
        """Refuse a call that read other rows or tokens than its micro-batch was planned with.

        Raises:
            ForwardPassError: the shapes differ.
        """
        if self.final is not None:
            refuse_other_shape(self.final.shape[:2], marks)

    def by_row(self) -> dict[str, Any] | None:
        """Return the call's arguments if each is known to be per row or the same for all rows; else None."""
        known = all(key in _BY_ROW or not isinstance(value, Tensor) for key, value in self.kwargs.items())
        plain = all(value is None or isinstance(value, Tensor | bool | int) for value in self.kwargs.values())
        if self.args or not (known and plain) or self.tokens is None:
            return None
        places = self.kwargs.get("position_ids")  # several kinds of positions: rows are not their first axis
        return None if isinstance(places, Tensor) and places.ndim > 2 else self.kwargs

    def of_rows(self, rows: Tensor) -> RecordedCall:
        """Return the same call for some of its rows (b,), or for all if an argument cannot be divided by rows."""
        arguments, tokens = self.by_row(), self.tokens
        if arguments is None or tokens is None:
            return self.again()
        chosen = {k: v[rows] if isinstance(v, Tensor) and len(v) == len(tokens) else v for k, v in arguments.items()}
        return RecordedCall((), chosen, self.autocast, depth=self.depth, rows=rows)

    @property
    def tokens(self) -> Tensor | None:
        """Token ids (B, T) of the call; None if its input is embeddings."""
        ids: Tensor | None = self.kwargs.get("input_ids", self.args[0] if self.args else None)
        return ids

    def result(self, whole: int = 0) -> Activations:
        """Return the activations of the call; if it ran only some of `whole` rows, NaN elsewhere."""
        rows = self.rows
        if rows is None:
            return Activations(self.hidden, self.final, self.depth)

        def spread(hidden: Tensor) -> Tensor:
            return hidden.new_full((whole, *hidden.shape[1:]), torch.nan).index_copy_(0, rows, hidden)

        final = None if self.final is None else spread(self.final)
        return Activations({layer: spread(hidden) for layer, hidden in self.hidden.items()}, final, self.depth)


# Repeats a call: its marks (B, T), the rows (b,) to compute (None for all), the last layer to run (None for all).
ReferenceReplay = Callable[[RecordedCall, Marks, Tensor | None, int | None], Activations]


class BackboneHooks:
    """Hooks that record the backbone's calls, steer them, and repeat them with the reference model.

    The model knows them weakly, so they go with their guard: a further training of the same model neither keeps an
    earlier one's reference in memory nor copies it.
    """

    def __init__(
        self,
        parts: ModelParts,
        kept: Sequence[int],
        steers: Mapping[int, Sequence[Steer]],
        reference: AdapterOff | None = None,
    ) -> None:
        self._parts = parts
        self._reference = reference or AdapterOff(parts)
        self._kept = frozenset(kept)
        self._steers = steers
        self._depth = len(parts.blocks) if kept or steers else 0
        self._marks: Marks | None = None  # the micro-batch's marks while steering is on
        self._added: dict[torch.Size, Marks] = {}  # those of auxiliary batches, whose layers a backward pass may repeat
        self._calls: list[RecordedCall] | None = None  # where recorded calls go while recording is on
        self._open: RecordedCall | None = None
        self._last: int | None = None  # the layer at which a replay stops
        backbone = parts.backbone
        handles: list[Any] = [
            backbone.register_forward_pre_hook(_weak(self._enter), with_kwargs=True),
            backbone.register_forward_hook(_weak(self._leave)),
        ]
        models = [parts, self._reference.parts] if self._reference.is_copy else [parts]
        if self._reference.is_copy:
            handles.append(self._reference.parts.backbone.register_forward_hook(_weak(self._leave)))
        block = _weak(self._block)
        for layer in sorted(self._kept | set(steers)):
            handles += [on_output(model.blocks[layer - 1], partial(block, layer)) for model in models]
        self._handles = finalize(self, _remove, handles)

    def remove(self) -> None:
        """Take all hooks away."""
        self._handles()

    @contextmanager
    def recording(self) -> Iterator[list[RecordedCall]]:
        """Collect the backbone's calls that build a gradient."""
        calls: list[RecordedCall] = []
        self._calls, before = calls, self._calls
        try:
            yield calls
        finally:
            self._calls, self._open = before, None

    @contextmanager
    def steering(self, marks: Marks | None) -> Iterator[None]:
        """Steer every call, with `marks` as its masks; None steers none."""
        self._marks, before = marks, self._marks
        try:
            yield
        finally:
            self._marks = before
            if before is None:
                self._added = {}

    def replay(
        self, call: RecordedCall, marks: Marks, rows: Tensor | None = None, deepest: int | None = None
    ) -> Activations:
        """Repeat a call with the reference model: steering kept, no gradient.

        Args:
            call: a call that `recording` collected.
            marks: its masks (B, T).
            rows: (b,) the rows to compute, the others being NaN; None for all. A call whose arguments cannot be
                divided by rows is repeated whole.
            deepest: the last layer to run; None for all, and the final norm.
        """
        again = call.again() if rows is None else call.of_rows(rows)
        seen = marks if again.rows is None else marks.of_rows(again.rows)
        with torch.no_grad(), self._reference.active(), self.steering(seen), _autocast(call.autocast):
            self._open, self._last = again, deepest
            try:
                self._reference.parts.backbone(*again.args, **again.kwargs)
            except _ForwardStopped:
                pass
            finally:
                self._open, self._last = None, None
        return again.result(len(marks.real))

    def call(self, like: RecordedCall, marks: Marks, **inputs: Tensor) -> RecordedCall:
        """Make a new call with gradients, in the precision of another.

        Its marks stay known until steering ends: with gradient checkpointing the backward pass repeats its layers. They
        are found by their shape, so they must not have that of the micro-batch's.
        """
        self._added[marks.real.shape] = marks
        with self.recording() as calls, self.steering(marks), _autocast(like.autocast):
            self._parts.backbone(**inputs, use_cache=False)
        return calls[0]

    def _enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module is not self._parts.backbone:  # but a copy of the model, which has the same hooks
            return
        if self._calls is not None and torch.is_grad_enabled():
            device = next(module.parameters()).device.type
            state = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            self._open = RecordedCall(args, dict(kwargs), state, depth=self._depth)
            self._calls.append(self._open)

    def _leave(self, module: Any, args: tuple[Any, ...], output: Any) -> None:
        if self._open is not None and module in (self._parts.backbone, self._reference.parts.backbone):
            self._open.final = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
            self._open = None

    def _block(self, layer: int, hidden: Tensor) -> Tensor:
        marks = self._marks
        if marks is not None and marks.real.shape != hidden.shape[:2]:
            marks = self._added.get(hidden.shape[:2], marks)
        if marks is not None:
            for steer in self._steers.get(layer, ()):
                hidden = steer(hidden, layer, marks)
        if self._open is not None and layer in self._kept:
            self._open.hidden[layer] = hidden
            if layer == self._last:
                raise _ForwardStopped
        return hidden


def _weak(method: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls a method of an object while that lives, and returns None afterwards.

    `copy.deepcopy` takes a function as it is, so a copy of the model does not copy the object.
    """
    known = WeakMethod(method)

    def call(*args: Any, **kwargs: Any) -> Any:
        alive = known()
        return None if alive is None else alive(*args, **kwargs)

    return call


def _remove(handles: Sequence[Any]) -> None:
    for handle in handles:
        handle.remove()


def _autocast(state: tuple[str, bool, torch.dtype]) -> torch.autocast:
    device, enabled, dtype = state
    return torch.autocast(device, dtype=dtype, enabled=enabled)
