"""Warns of a reward that does not tell completions apart, long before such a training ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from staytrue.errors import StaytrueWarning

_STEPS = 10  # optimizer steps


class EqualRewards(TrainerCallback):  # type: ignore[misc]
    """Warns, once, where the completions of each prompt have earned equal rewards since training began.

    Their advantages are 0, so the reward teaches nothing; a penalty or weight decay may move the weights all the same.
    """

    def __init__(self, moved: Callable[[], bool]) -> None:
        """Warn at the end only if `moved` says that a weight has; where none has, `Outcome` says why."""
        self._moved = moved
        self._first, self._told, self._equal = 0, False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with no reward seen."""
        self._first, self._told, self._equal = state.global_step, False, False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Read trl's share of prompts whose completions earned equal rewards."""
        share = (logs or {}).get("frac_reward_zero_std")
        if share is None or self._told or not state.is_world_process_zero:
            return
        self._equal = float(share) == 1
        self._told = not self._equal
        if self._equal and state.global_step - self._first >= _STEPS:
            self._warn(state.global_step - self._first)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn after a training of fewer steps."""
        if self._equal and not self._told and self._moved():
            self._warn(state.global_step - self._first)

    def _warn(self, steps: int) -> None:
        self._told = True
        warnings.warn(
            f"In the first {steps} optimizer steps all completions of a prompt earned the same reward, so the reward "
            "has taught nothing. Look at some completions and their rewards; a higher temperature or more "
            "num_generations makes them differ.",
            StaytrueWarning,
            stacklevel=2,
        )
