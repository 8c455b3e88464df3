"""`RunLog` writes what a run logs: one JSONL row for each logged step, and the progress bar's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from staytrue.utils.files import append_row

VALIDATION = "validation.jsonl"  # beside metrics.jsonl


class RunLog(TrainerCallback):  # type: ignore[misc]
    """Writes `metrics.jsonl`, and `validation.jsonl` where a validation loss is computed.

    A row of the first holds step, total loss, task loss, each defense's own number. The last step has a row too, in
    which every step since the row before counts.

    With GRPO also trl's own numbers: `reward`, `reward_std`, each term, lengths of completions, entropy.

    Args:
        path: of `metrics.jsonl`.
        progress: shows the steps.
        labels: of the defenses that have a number; one that was not measured since the last row is null.
    """

    def __init__(self, path: Path, progress: Any = None, labels: Sequence[str] = ()) -> None:
        self._path = path
        self._progress = progress
        self._labels = labels
        self._first = 0
        self._shown: dict[str, float] = {}  # the numbers that were logged last

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the progress bar with the number of steps."""
        self._first = state.global_step  # above 0 in a resumed run
        if self._progress is not None and state.is_world_process_zero:
            resumed = {"done": self._first} if self._first else {}
            self._progress.begin(state.max_steps, **resumed)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one row per logged step; the trainer's closing summary has no loss and is left out."""
        if state.is_world_process_zero and logs and "eval_loss" in logs:
            loss = logs["eval_loss"] if math.isfinite(logs["eval_loss"]) else None
            append_row(self._path.with_name(VALIDATION), {"step": state.global_step, "loss": loss})
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float) and k != "num_tokens"}
        if "task_loss" not in numbers:  # a run without defenses
            numbers["task_loss"] = numbers["loss"]
        row = {"step": state.global_step} | {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        append_row(self._path, row | {label: None for label in self._labels if label not in row})
        self._shown = numbers
        self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step; show a step that is not logged, with the numbers of the last one that was."""
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_log = True
        if not control.should_log:
            self._show(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log the last step where a validation has ended training after it; the trainer logs no step twice."""
        if control.should_training_stop:
            control.should_log = True

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show during a validation that the run goes on."""
        self._show(state)

    def _show(self, state: Any) -> None:
        if self._progress is not None and state.is_world_process_zero:
            work = work_of(state.global_step, self._first, state.max_steps)
            self._progress.step(state.global_step, self._shown | work)


def work_of(step: int, first: int, steps: int) -> dict[str, float]:
    """Return the `work` that a progress shows the time left by, in a run that was resumed after step `first`."""
    return {"work": (step - first) / (steps - first) * steps} if first else {}
