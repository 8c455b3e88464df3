"""How a trainer saves: its checkpoints are committed whole, and SIGTERM ends training with one."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from staytrue.errors import RecipeError
from staytrue.runs.checkpoints import Checkpoints
from staytrue.utils import processes

_UNREAD = ("training_args.bin", "README.md")  # a pickle and a model card, which no code reads


def fit_save_steps(arguments: Any, steps: int) -> None:
    """Let every checkpoint come after a whole log line, and in GRPO after a whole round of generated completions.

    trl keeps the numbers since the last log line, and the completions that are still to be trained on, in memory only.

    Args:
        arguments: the trainer's.
        steps: the optimizer steps of the run.

    Raises:
        RecipeError: `save_steps` is a number of steps (a share is rounded up), and checkpoints would come between.
    """
    every = arguments.save_steps if arguments.save_steps >= 1 else max(math.ceil(steps * arguments.save_steps), 1)
    logged = arguments.logging_steps if arguments.logging_steps >= 1 else math.ceil(steps * arguments.logging_steps)
    whole = math.lcm(int(logged), steps_of_a_round(arguments))
    if arguments.save_steps >= 1 and every % whole:
        raise RecipeError(
            f"train.save_steps is {arguments.save_steps:g}, so that checkpoints would come between log lines or rounds "
            f"of completions, which trl keeps in memory only. Set it to a multiple of {whole}."
        )
    arguments.save_steps = math.ceil(every / whole) * whole


def steps_of_a_round(arguments: Any) -> int:
    """After how many optimizer steps no completions are left to be trained on, in GRPO; 1 in other trainings.

    trl generates completions for `steps_per_generation` micro-batches at once, and trains `num_iterations` times on
    each.
    """
    accumulated: int = arguments.gradient_accumulation_steps
    micro_batches = getattr(arguments, "steps_per_generation", None) or accumulated
    return math.lcm(micro_batches * getattr(arguments, "num_iterations", 1), accumulated) // accumulated


def save_whole(trainer: Any, checkpoints: Checkpoints, logs: Sequence[Path] = ()) -> None:
    """Let a trainer write its checkpoints through `Checkpoints.commit`.

    Of several processes the main one commits, and each writes its random states into the folder.

    Args:
        trainer: a guarded trainer.
        checkpoints: where they go.
        logs: files that are flushed to disk first, since a resumed run needs their rows up to the checkpoint.
    """
    save = trainer._save_checkpoint

    def committed(model: Any, trial: Any) -> None:
        def saved(folder: Path) -> Path:
            scratch, own = folder / "scratch", trainer.args.output_dir
            processes.wait()  # until the folder is there
            trainer.args.output_dir = str(scratch)
            try:
                with _without_what_is_not_read(trainer):
                    save(model, trial)
            finally:
                trainer.args.output_dir = own
            processes.wait()  # until all have written
            return scratch

        def write(folder: Path) -> None:
            scratch = saved(folder)
            for file in (scratch / f"checkpoint-{trainer.state.global_step}").iterdir():
                if file.name not in _UNREAD:
                    os.rename(file, folder / file.name)
            shutil.rmtree(scratch)
            for part in trainer.callback_handler.callbacks:
                if hasattr(part, "save_to"):
                    part.save_to(folder)

        if not processes.is_main():
            saved(checkpoints.unfinished)
            return
        for log in logs:
            if log.exists():
                with log.open("rb") as file:
                    os.fsync(file.fileno())
        checkpoints.commit(trainer.state.global_step, write)

    trainer._save_checkpoint = committed


@contextmanager
def _without_what_is_not_read(trainer: Any) -> Iterator[None]:
    """Keep trl and peft from writing the tokenizer and rendering model cards, half of a small model's time to save."""
    cards = [(trainer, "create_model_card"), (trainer.model, "create_or_update_model_card")]
    tokenizer, trainer.processing_class = trainer.processing_class, None
    for owner, name in cards:
        owner.__dict__[name] = lambda *arguments, **keywords: None
    try:
        yield
    finally:
        trainer.processing_class = tokenizer
        for owner, name in cards:
            del owner.__dict__[name]


def is_last(checkpoint: Path) -> bool:
    """Whether a checkpoint was made after the last step of its run."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return bool(state.global_step >= state.max_steps)


def load_last(trainer: Any, checkpoint: Path) -> None:
    """Load the weights of a checkpoint after the last step, and check them as at the end of training.

    transformers would make one more step from such a checkpoint.

    Raises:
        TrainingError: no trained weight had moved, or some are not finite.
    """
    untrained, state = TrainerState(), TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.outcome.on_train_begin(trainer.args, untrained, trainer.control, model=trainer.model)
    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = state
    trainer.outcome.on_step_end(trainer.args, state, trainer.control, model=trainer.model)
    trainer.outcome.on_train_end(trainer.args, state, trainer.control, model=trainer.model)


class EndsAtNextStep(TrainerCallback):  # type: ignore[misc]
    """Ends training with a checkpoint after the current step, when the process receives SIGTERM.

    In GRPO it is the last step of the current round of completions, since trl keeps completions in memory only. A
    training that ends anyway with that step ends as usual.

    Args:
        arguments: the trainer's.
    """

    def __init__(self, arguments: Any) -> None:
        self._round = steps_of_a_round(arguments)
        self._stop_requested = self._ended = False
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
        except Exception:
            if processes.count() > 1:  # a launcher sends the signal when one process has failed
                self._before = signal.SIG_IGN
            raise
        finally:
            signal.signal(signal.SIGTERM, self._before)
        if self._ended:
            if callable(self._before):
                self._before(signal.SIGTERM, None)  # a command notes that it stops
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if a signal came."""
        ends_anyway = state.global_step >= state.max_steps or control.should_training_stop
        requested = processes.anywhere(self._stop_requested)
        if requested and not ends_anyway and state.global_step % self._round == 0:
            self._ended = True
            control.should_save = control.should_log = control.should_training_stop = True

    def _note(self, number: int, frame: Any) -> None:
        self._stop_requested = True
        signal.signal(signal.SIGTERM, self._before)  # a second one stops at once
