"""`LossLog` keeps the parts of the loss until they are logged: the task's, and each penalty's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from staytrue.training.idle_penalties import IdlePenalties
from staytrue.training.penalty_log import summed
from staytrue.training.trackers import Trackers


class LossLog:
    """The numbers that a guarded trainer adds to its log, as means over the optimizer steps since the last line.

    Args:
        trainer: with its guard and its callbacks.
        idle: is shown each line.
    """

    def __init__(self, trainer: Any, idle: IdlePenalties) -> None:
        self._trainer, self._idle = trainer, idle
        self._trackers = Trackers(trainer.callback_handler.callbacks, trainer.guard.defenses)
        self._task_loss, self._logged_steps = torch.zeros(()), 0

    def begin(self, steps_done: int) -> None:
        """Begin training, or continue after so many optimizer steps."""
        self._task_loss, self._logged_steps = torch.zeros(()), steps_done

    def add(self, task_loss: Tensor) -> None:
        """Add a micro-batch's share () of the task's own loss in an optimizer step, without its gradient."""
        self._task_loss = self._task_loss.to(task_loss.device) + task_loss

    def extend(self, logs: dict[str, float]) -> None:
        """Add the task's loss and each defense's own number to a line of training, summed over processes."""
        trainer, guard = self._trainer, self._trainer.guard
        steps = trainer.state.global_step - self._logged_steps
        if "loss" not in logs or steps <= 0:
            return
        numbers = guard.drain()
        if guard.defenses:  # without any, it is the loss
            numbers["task_loss"] = self._task_loss / steps / trainer.accelerator.num_processes
        logs.update(summed(trainer.accelerator, numbers))
        self._idle.note(logs)
        weighted = guard.drain_weighted()
        if self._trackers:
            self._trackers.weighted = summed(trainer.accelerator, weighted)
        self.begin(trainer.state.global_step)
