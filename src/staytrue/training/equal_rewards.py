"""Warns of a reward that does not tell completions apart, long before such a training ends."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainerCallback

from staytrue.errors import StaytrueWarning

_STEPS, _FEWEST = 10, 3  # optimizer steps after which is warned: during a training, and at the end of a shorter one
_ROUNDING = 1e-5  # of the size of rewards: the spread of equal ones in float32


class EqualRewards(TrainerCallback):  # type: ignore[misc]
    """Warns, once, where the completions of each prompt have earned equal rewards since training began.

    Their advantages are 0, so the reward teaches nothing; a penalty or weight decay may move the weights all the same.
    With `scale_rewards: batch` trl logs the spread over a whole batch, so there all its rewards must be equal. A
    training that is resumed is not watched.
    """

    def __init__(self, moved: Callable[[], bool]) -> None:
        """Warn at the end only if `moved` says that a weight has; where none has, `Outcome` says why."""
        self._moved = moved
        self._watching, self._equal = False, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with no reward seen."""
        self._watching, self._equal = state.global_step == 0 and state.is_world_process_zero, False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Read trl's numbers on the rewards of the steps since the last line."""
        if not self._watching or "frac_reward_zero_std" not in (logs or {}):
            return
        if logs.get("reward", 0.0) is None:  # no completion was scored
            return
        self._equal = self._watching = _are_equal(logs)
        if self._equal and state.global_step >= _STEPS:
            self._warn(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn after a training of fewer steps."""
        if self._watching and self._equal and state.global_step >= _FEWEST and self._moved():
            self._warn(state.global_step)

    def _warn(self, steps: int) -> None:
        self._watching = False
        warnings.warn(
            f"In the first {steps} optimizer steps all completions of a prompt earned the same reward, so the reward "
            "has taught nothing. Look at some completions and their rewards; a higher temperature or more "
            "num_generations may make them differ.",
            StaytrueWarning,
            stacklevel=2,
        )


def _are_equal(logs: Mapping[str, Any]) -> bool:
    """Whether all completions of each prompt earned the same; by rounding, equal rewards can have a spread."""
    spread, size = float(logs.get("reward_std", 1.0)), abs(float(logs.get("reward", 0.0)))
    return float(logs["frac_reward_zero_std"]) == 1 or spread <= _ROUNDING * max(1.0, size)
