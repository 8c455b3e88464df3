"""`Guarded`: all that is added to a trainer. It imports no trl; `trainers.py` puts it in front of trl's classes.

What differs between kinds of training is a few short methods, named at the top of the class: which rows there are, how
a step's micro-batches are made, which of their tokens are scored, and whose head projects them.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from staytrue.config.setting_values import refuse_late_values
from staytrue.data.examples import Example
from staytrue.data.position_table import table_length
from staytrue.data.tokenize import Encoded, padding_id
from staytrue.data.vocabulary import embedding_count
from staytrue.defense import Defense
from staytrue.modeling import quantized
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.sharded import whole_weights
from staytrue.step import SOURCE_COLUMN, Marks
from staytrue.training import all_weights, sharded_training
from staytrue.training.adapter_checks import naming_adapter, unmatched_names
from staytrue.training.auxiliary_batches import encode_rows
from staytrue.training.guard import Guard
from staytrue.training.head_choice import choose_head
from staytrue.training.idle_penalties import IdlePenalties, without_effect
from staytrue.training.kept_gradients import KeptGradients
from staytrue.training.loss_log import LossLog
from staytrue.training.lost_text import warn_of
from staytrue.training.micro_batch import MicroBatch, refuse_untrained
from staytrue.training.outcome import Outcome
from staytrue.training.reference.kept_base import KeptBase
from staytrue.training.signatures import by_name
from staytrue.training.step_count import StepCount, later_division, refuse_no_batch, task_rows_ahead
from staytrue.training.step_plan import StepPlan
from staytrue.training.stream_check import StreamCheck
from staytrue.training.trainer_arguments import edit_datasets, guard_of
from staytrue.utils.console import bar, tell

_Trainer: Any = object  # whichever trainer stands beside Guarded among a class's bases


class Guarded(_Trainer):  # type: ignore[misc]
    """Mixin over a transformers Trainer whose loss makes one forward: watches it, adds the penalties, logs them.

    Its arguments, attributes and errors are described at `GuardedSFT`.
    """

    # --- what a kind of training says of itself -----------------------------------------------------------------

    _prompts = False  # whether rows are asked (and answered by the model) rather than learnt
    _streams: Sequence[StreamCheck] = ()  # one, where the training rows are a stream

    def _settle(self) -> None:
        """After the trainer has made itself: refuse what cannot be guarded, adjust what must be."""

    def _ready(self, batches: list[Any]) -> list[Any]:
        """An optimizer step's micro-batches, as its forwards will see them."""
        return batches

    def _marks(self, batch: Any) -> Marks:
        """The masks of every position that the forward will see."""
        raise NotImplementedError

    def _keeps_its_head(self) -> str | None:
        """The reason why the trainer's loss must keep its own head; None if it need not."""
        raise NotImplementedError

    def _head_of_trl(self) -> tuple[float, Any]:
        """The temperature of the trainer's log-probabilities, and the class of its forward's output."""
        raise NotImplementedError

    # --- before training ----------------------------------------------------------------------------------------

    def __init__(
        self,
        *args: Any,
        defenses: Sequence[Defense] | Guard = (),
        reference_cache: Path | str | None = None,
        reference: Any = None,
        **kwargs: Any,
    ) -> None:
        arguments = by_name(super().__init__, args, kwargs)
        refuse_late_values(arguments.get("args"), "grpo" if self._prompts else "sft")
        self._untouched = Untouched(
            lambda: getattr(self, "model", arguments.get("model")), arguments.get("processing_class")
        )
        self._owns_guard = not isinstance(defenses, Guard)
        self.guard = guard_of(defenses, arguments.get("args"), reference_cache, reference, prompts=self._prompts)
        guarded = bool(self.guard.defenses) or not self._owns_guard
        curating = self.guard if self._owns_guard else None
        arguments |= edit_datasets(arguments, curating, self._untouched, prompts=self._prompts)
        start = quantized.adapter_weights(arguments.get("model"))
        if guarded:
            sharded_training.prepare(arguments.get("args"))
        with naming_adapter(arguments.get("peft_config")):
            super().__init__(**arguments)
        if self.guard.float32_adapter:
            quantized.to_float32(self.model, start)
        warn_of(unmatched_names(self.model))
        self.guard.shards = sharded_training.shards(self.accelerator)
        sharded_training.refuse_processes(self, guarded=guarded)
        self._settle()
        self._add_checks()
        self._attach()
        if self.guard.shards and guarded:
            sharded_training.autocast(self)
        if self._owns_guard:
            all_weights.report(self)
            warn_of(without_effect(self.guard.defenses))

    def _add_checks(self) -> None:
        """Begin with nothing trained, and add the callbacks that check what a training does."""
        self.projected: dict[str, float] = {}
        self._micro_batch: MicroBatch | None = None  # the one in training now
        self._resumed_from: str | None = None
        self._random_from: str | None = None  # the checkpoint whose random states are restored
        self.outcome, self._gradients = Outcome(), KeptGradients()
        idle = IdlePenalties(self.guard, self.outcome)
        self._losses = LossLog(self, idle)
        self._begin(0)
        checks = (StepCount(self), self.outcome, self._gradients, idle, KeptBase(self.guard), *self._streams)
        for check in checks:
            self.add_callback(check)

    def _attach(self) -> None:
        """Attach the defenses to the model, and choose whose head computes the loss."""
        self._untouched.tokenizer = tokenizer = self._tokenizer
        main, ahead = self.accelerator.is_main_process, self._task_rows_ahead()
        with bar("preparation", quiet=self.args.disable_tqdm or not main) as self._untouched.progress:
            self.guard.attach(self.model, self._untouched, self._encode_auxiliary_rows, padding_id(tokenizer), ahead)
        self.fused_head, self.which_head = choose_head(
            self.guard.parts, self.args, self._keeps_its_head(), *self._head_of_trl()
        )

    def _begin(self, steps_done: int, task_rows: int | None = None) -> None:
        """Training begins, or goes on after so many optimizer steps and task rows (None: full batches)."""
        self._losses.begin(steps_done)
        self._step_plan = StepPlan()  # of the optimizer step
        rows = steps_done * self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.guard.begin(round(rows * self._task_share()) if task_rows is None else task_rows)

    def _end_step(self) -> None:
        """An optimizer step was made.

        Raises:
            ForwardPassError: the defenses did not see each of its micro-batches once.
        """
        plan, self._step_plan = self._step_plan, StepPlan()
        if self._acts():
            plan.check_complete(type(self).__name__)

    def _acts(self) -> bool:
        """Whether a defense acts in each micro-batch."""
        return any(self.guard.pulls(lever) for lever in ("penalty", "steer", "combine"))

    def _task_share(self) -> float:
        """Which share of the rows are the task's own."""
        return 1.0

    def _task_rows_ahead(self) -> int | None:
        """Count the task rows that the training will read; None where that is not known."""
        rows = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
        return task_rows_ahead(self.args, rows, self._task_share(), prompts=self._prompts)

    def _send_telemetry(self) -> None:
        """Send no usage ping; trl's would go out, since its environment variable is read before this file is."""

    def _encode_auxiliary_rows(self, examples: list[Example]) -> list[Encoded]:
        """Encode a defense's own rows at the trainer's length, or the guard's where the trainer has none."""
        max_length = getattr(self.args, "max_length", None) or self.guard.max_length
        known, table = embedding_count(self.model), table_length(self.model)
        return encode_rows(self._tokenizer, examples, max_length, known, self.accelerator, table)

    # --- a whole training ---------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the trainer does, then let defenses change the trained weights.

        Checkpoints hold the weights before that change, so that training can go on from them.
        """
        output = super().train(*args, **kwargs)
        if self._owns_guard:
            with bar("projection", quiet=self.args.disable_tqdm or not self.accelerator.is_main_process) as progress:
                divided = self.guard.shards and self.guard.pulls("project")
                with whole_weights(self.model, put_back=True) if divided else nullcontext():
                    say = (lambda line: None) if progress is None else tell  # as quiet as the bar
                    self.projected = self.guard.project(self.model, progress, say)
        return output

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self._resumed_from, self._random_from = checkpoint, None

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore a checkpoint's random states, once: GRPO has drawn completions when transformers does it again."""
        if checkpoint is None or checkpoint != self._random_from:
            super()._load_rng_state(checkpoint)
            self._random_from = checkpoint

    def get_train_dataloader(self) -> Any:
        """The trainer's own data loader, which has a batch."""
        refuse_no_batch(loader := super().get_train_dataloader(), self)
        return loader

    # --- every optimizer step -----------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Fetch a whole optimizer step's micro-batches, and count what the penalties will be means over."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._gradients.forget()
        if self._random_from is None and self._resumed_from is not None:
            self._load_rng_state(self._resumed_from)  # after the rows that are skipped, before completions are drawn
        if batches and self.guard.defenses:
            self._step_plan = StepPlan([self._marks(batch).to(device) for batch in self._ready(batches)])
            counts, task_rows = self._step_plan.counts(self.accelerator)
            self.guard.plan(counts, task_rows, len(batches) * self.accelerator.num_processes)
        return batches, items

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward, with the defenses' steering.

        Raises:
            ForwardPassError: the loss was computed without the penalties of the defenses.
        """
        inputs = self._prepare_inputs(inputs)
        self._gradients.check()
        self._micro_batch = micro_batch = self._next_micro_batch(inputs)
        try:
            with self.guard.steering(micro_batch.marks):  # the backward pass may recompute activations
                loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._micro_batch = None
        micro_batch.check_trained(self._step_plan, type(self).__name__)
        self._step_plan.refuse_faults()
        if self._step_plan.is_complete and self.accelerator.sync_gradients:  # an optimizer step follows
            self.guard.combine(lambda gradient: self.accelerator.reduce(gradient, "sum"))
        if self._step_plan.marks and any(self.guard.pulls(lever) for lever in ("penalty", "combine")):
            self._gradients.keep([weight for weight in model.parameters() if weight.requires_grad])
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own loss plus the weighted penalties.

        Called outside of `training_step`, it returns the loss with penalties that are means over these inputs alone,
        without auxiliary rows, and logs nothing.

        Raises:
            ForwardPassError: it was called a second time in one training step, or its loss has no gradient.
        """
        if not model.training or not torch.is_grad_enabled():
            inputs.pop(SOURCE_COLUMN, None)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        micro_batch = self._micro_batch or MicroBatch(self.guard, self._marks(inputs), None)
        if self._micro_batch is not None and self._acts():
            micro_batch.check_labels(self._marks(inputs), self._step_plan, type(self).__name__)
        inputs.pop(SOURCE_COLUMN, None)
        with micro_batch.recorded(self.fused_head):
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task, division = loss[0] if return_outputs else loss, later_division(self, num_items_in_batch)
        if self._micro_batch is not None:
            refuse_untrained(task, model)
            self._losses.add(task.detach() / division)
        if micro_batch.penalty is None:
            return loss
        # Gradients are averaged over processes, and some losses are divided by the micro-batches afterwards; the
        # penalty is already a share of the whole optimizer step, so both are undone here.
        task = task + micro_batch.penalty * self.accelerator.num_processes * division
        return (task, loss[1]) if return_outputs else task

    def _next_micro_batch(self, inputs: Any) -> MicroBatch:
        """The micro-batch of the next slot, with the masks that were computed when its step was planned."""
        number, marks = self._step_plan.next()
        slot = number * self.accelerator.num_processes + self.accelerator.process_index
        return MicroBatch(self.guard, marks or self._marks(inputs), slot)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the task's loss and each defense's own number, reduced over processes."""
        self._losses.extend(logs)
        super().log(logs, *args, **kwargs)
