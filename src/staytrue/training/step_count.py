"""`StepCount` is the callback by which a guarded trainer counts its optimizer steps and task rows."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class StepCount(TrainerCallback):  # type: ignore[misc]
    """Starts a guarded trainer's counts where training begins, and ends its plan of an optimizer step.

    The count of task rows goes into the trainer's state, and with it into checkpoints.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the counts where the trainer starts: at 0, or after a checkpoint's steps."""
        self._trainer._begin(state.global_step, state.stateful_callbacks.get("staytrue", {}).get("task_rows"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the defenses saw the whole step, and keep its count of rows."""
        self._trainer._end_step()
        state.stateful_callbacks["staytrue"] = {"task_rows": self._trainer.guard.task_rows}
