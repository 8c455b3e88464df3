"""Counts of optimizer steps and task rows: `StepCount` keeps them in training, `task_rows_ahead` knows them before."""

from __future__ import annotations

from collections.abc import Sized
from math import ceil
from typing import Any

from transformers import TrainerCallback

from staytrue.errors import RecipeError
from staytrue.training.same_defenses import SameDefenses


class StepCount(TrainerCallback):  # type: ignore[misc]
    """Starts a guarded trainer's counts where training begins, and ends its plan of an optimizer step.

    The count of task rows and the defenses go into the trainer's state, and with it into checkpoints.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._same = SameDefenses(trainer.guard)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the counts where the trainer starts: at 0, or after a checkpoint's steps.

        Raises:
            RecipeError: the checkpoint is of a training with other defenses.
        """
        began = state.stateful_callbacks.get("staytrue", {})
        self._same.refuse_others(began, resumed=state.global_step > 0)
        self._trainer._begin(state.global_step, began.get("task_rows"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the defenses saw the whole step, and keep its count of rows."""
        self._trainer._end_step()
        state.stateful_callbacks["staytrue"] = {
            "task_rows": self._trainer.guard.task_rows,
            **self._same.description(),
        }


def later_division(trainer: Any, num_items_in_batch: Any) -> int:
    """By how much transformers divides a micro-batch's loss after it was computed; 1 where it is scaled already."""
    scaled = getattr(trainer, "loss_is_scaled_for_ga", None)  # absent before transformers 5.18
    if scaled is None:
        items = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        scaled = items or bool(trainer.compute_loss_func)
    return 1 if scaled else int(trainer.current_gradient_accumulation_steps)


def task_rows_ahead(args: Any, rows: int | None, share: float, *, prompts: bool = False) -> int | None:
    """Count the task rows that a training will read; None if the trainer joins rows, or their number is not known.

    Args:
        args: of the trainer.
        rows: of its data set; None for a stream.
        share: of the rows that are the task's own.
        prompts: whether the rows are prompts (GRPO), each answered and trained on several times in an epoch.
    """
    if getattr(args, "packing", False) or (args.max_steps <= 0 and rows is None):
        return None
    if args.max_steps > 0:
        read: int = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * args.max_steps
    else:
        uses = args.num_generations * args.num_iterations if prompts else 1
        read = ceil(args.num_train_epochs * (rows or 0) * uses)
    return ceil(read * share)


def refuse_no_batch(loader: Any, trainer: Any) -> None:
    """Refuse a data loader without a batch, for which transformers asks for max_steps.

    Raises:
        RecipeError: the rows fill no batch.
    """
    if not isinstance(trainer.train_dataset, Sized) or len(loader):  # the loader of a stream has no length
        return
    raise RecipeError(too_few_rows(len(trainer.train_dataset), trainer.args))


def too_few_rows(rows: int, args: Any) -> str:
    """A sentence for rows that fill no batch of a trainer with these arguments."""
    reason, way_out = "", "take dataloader_drop_last out"
    if getattr(args, "generation_batch_size", None):
        reason = (
            f" trl generates for {args.generation_batch_size // args.num_generations} prompts at a time "
            f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations})."
        )
        way_out = f"lower num_generations, {args.num_generations}, or gradient_accumulation_steps"
    return (
        f"The {rows} rows fill no batch of per_device_train_batch_size={args.per_device_train_batch_size}, so nothing "
        f"would be trained.{reason} Give more rows, lower the batch size, or {way_out}."
    )
