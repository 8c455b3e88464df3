"""`KeptBase` checks in training that the weights under an adapter stay as they were, since they are the reference."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from staytrue.errors import ForwardPassError, StaytrueWarning
from staytrue.modeling.sharded import local
from staytrue.training.guard import Guard

_SAMPLED = 8  # weights that are compared, of all blocks


class KeptBase(TrainerCallback):  # type: ignore[misc]
    """Refuses weights that are trained beside the adapter, and warns if the base has changed in another way.

    The model was checked when its trainer was made; a script or a callback may free other weights afterwards.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._base: list[tuple[str, Tensor]] = []
        self._before: list[Tensor] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember the weights under the adapter."""
        parts = self._guard.parts
        if parts.has_adapter and self._guard.pulls("penalty"):
            added = parts.added
            self._base = [(n, p) for n, p in parts.model.named_parameters() if id(p) not in added]
            self._before = self._sums()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse a weight under the adapter that has a gradient.

        Raises:
            ForwardPassError: the reference would be trained too.
        """
        trained = [name for name, weight in self._base if weight.grad is not None and weight.requires_grad]
        if trained:
            raise ForwardPassError(
                f"{len(trained)} weights under the adapter are trained (the first is {trained[0]}), so the reference "
                "would move with the model. They were freed after the trainer was made; leave them frozen."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn if the weights under the adapter have changed."""
        changed = any(not bool(a == b) for a, b in zip(self._before, self._sums(), strict=True) if a == a)
        if changed and state.is_world_process_zero:
            warnings.warn(
                "The weights under the adapter changed during training, so the reference was not the model before it. "
                "A callback or a subclass of the trainer changes them; let it change the adapter alone.",
                StaytrueWarning,
                stacklevel=2,
            )
        self._base, self._before = [], []

    def _sums(self) -> list[Tensor]:
        """The sum of some weights of the base, from its first to its last."""
        step = max(1, len(self._base) // _SAMPLED)
        return [local(weight).float().sum() for _, weight in self._base[::step]]
