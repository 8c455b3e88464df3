"""How a trainer saves: its checkpoints are committed whole, and SIGTERM ends training with one."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from staytrue.errors import RecipeError
from staytrue.runs.checkpoints import Checkpoints

_UNREAD = ("training_args.bin", "README.md")  # a pickle and a model card, which nothing reads


def fit_save_steps(trainer: Any, steps: int) -> None:
    """Let every checkpoint come after a whole log line, and in GRPO after a whole round of generated completions.

    trl keeps the numbers since the last log line, and the completions that are still to be trained on, in memory only.

    Args:
        trainer: a guarded trainer.
        steps: the optimizer steps of the run.

    Raises:
        RecipeError: `save_steps` is a number of steps (a share is rounded up), and checkpoints would come between.
    """
    arguments = trainer.args
    every = arguments.save_steps if arguments.save_steps >= 1 else max(math.ceil(steps * arguments.save_steps), 1)
    logged = arguments.logging_steps if arguments.logging_steps >= 1 else math.ceil(steps * arguments.logging_steps)
    accumulated = arguments.gradient_accumulation_steps
    round_ = (getattr(arguments, "steps_per_generation", None) or accumulated) * getattr(arguments, "num_iterations", 1)
    whole = math.lcm(int(logged), math.lcm(round_, accumulated) // accumulated)
    if arguments.save_steps >= 1 and every % whole:
        raise RecipeError(
            f"train.save_steps is {arguments.save_steps:g}, so that checkpoints would come between log lines or rounds "
            f"of completions, which trl keeps in memory only. Set it to a multiple of {whole}."
        )
    arguments.save_steps = math.ceil(every / whole) * whole


def save_whole(trainer: Any, checkpoints: Checkpoints) -> None:
    """Let a trainer write its checkpoints through `Checkpoints.commit`."""
    save = trainer._save_checkpoint

    def committed(model: Any, trial: Any) -> None:
        def write(folder: Path) -> None:
            scratch, own = folder / "scratch", trainer.args.output_dir
            trainer.args.output_dir = str(scratch)
            try:
                save(model, trial)
            finally:
                trainer.args.output_dir = own
            for file in (scratch / f"checkpoint-{trainer.state.global_step}").iterdir():
                if file.name not in _UNREAD:
                    os.rename(file, folder / file.name)
            shutil.rmtree(scratch)
            for part in trainer.callback_handler.callbacks:
                if hasattr(part, "save_to"):
                    part.save_to(folder)

        checkpoints.commit(trainer.state.global_step, write)

    trainer._save_checkpoint = committed


class EndsAtNextStep(TrainerCallback):  # type: ignore[misc]
    """Ends training with a checkpoint after the current step, when the process is told to terminate (SIGTERM).

    A training that ends anyway with that step ends as usual.
    """

    def __init__(self) -> None:
        self._asked = self._ended = False
        self._before: Any = signal.SIG_DFL

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM as a request, in the main thread; a second one is not waited for.

        Raises:
            KeyboardInterrupt: at the end, if training was ended.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, self._before)
        if self._ended:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if a signal came."""
        if self._asked and state.global_step < state.max_steps:
            self._ended = True
            control.should_save = control.should_log = control.should_training_stop = True

    def _note(self, number: int, frame: Any) -> None:
        self._asked = True
        signal.signal(signal.SIGTERM, self._before)  # a second one stops at once
