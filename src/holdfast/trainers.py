"""`GuardedSFT`: TRL's trainer with defenses. The only file that imports trl, and all that is added to it.

`SFTTrainer(...)` becomes `GuardedSFT(..., defenses=[...])` and nothing else changes. The same training as one flat,
readable loop stands in `examples/flat_sft_kl.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # trl sends a usage ping when a trainer is constructed

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from holdfast.base import Untouched
from holdfast.defense import Defense
from holdfast.encoding import Encoded, encode_all
from holdfast.errors import ModelError, RecipeError
from holdfast.examples import Example, Message
from holdfast.guard import Guard
from holdfast.rhythm import EvenSampler
from holdfast.sides import marks_of
from holdfast.step import SOURCES, Marks

_Trainer: Any = object  # whichever trainer stands beside Guarded among a class's bases


class Guarded(_Trainer):  # type: ignore[misc]
    """Mixin over a transformers Trainer whose loss makes one forward: watches it, adds the penalties, logs them.

    Args:
        defenses: in listed order; or a Guard that has curated the training rows already.
        *args: the trainer's own arguments, unchanged.
        **kwargs: the trainer's own arguments, unchanged.

    Raises:
        RecipeError: a defense cannot work with these trainer settings.
        ModelError: a defense cannot work with this model.
    """

    def __init__(self, *args: Any, defenses: Sequence[Defense] | Guard = (), **kwargs: Any) -> None:
        if isinstance(defenses, Guard):
            self.guard = defenses
        else:
            self.guard = Guard(defenses, seed=getattr(kwargs.get("args"), "seed", 0))
            if self.guard.pulls("curate"):
                kwargs["train_dataset"] = self._curated(kwargs)
        super().__init__(*args, **kwargs)
        self._source = "source" in (self.train_dataset.column_names or ())
        self._refuse_lost_rows()
        self.data_collator: Any = _SourceCollator(self.data_collator)
        self._task_loss = torch.zeros(())
        self._logged_steps = 0
        self._slot = 0
        tokenizer = self._tokenizer
        base = Untouched(lambda: self.model, tokenizer)
        self.guard.attach(self.model, base, self._encode_side_rows, _pad_id(tokenizer))

    def _send_telemetry(self) -> None:
        """Send no usage ping; trl's would go out, since its environment variable is read before this file is."""

    # --- before training ----------------------------------------------------------------------------------------

    def _curated(self, kwargs: dict[str, Any]) -> Dataset:
        """The user's dataset after the data defenses, with a column that says where each row came from."""
        rows = kwargs["train_dataset"]
        if isinstance(rows, Dataset) and "input_ids" in rows.column_names:
            raise RecipeError("Rows are tokenized already, so a data defense cannot read them; pass messages instead.")
        if not isinstance(rows, Dataset) or "messages" not in rows.column_names:
            raise RecipeError("A data defense needs a map-style train_dataset with a 'messages' column.")
        base = Untouched(lambda: kwargs["model"], kwargs.get("processing_class"))
        examples = [Example(tuple(Message(m["role"], m["content"]) for m in r["messages"])) for r in rows]
        return Dataset.from_list([_row(example) for example in self.guard.curate(examples, base)])

    def _refuse_lost_rows(self) -> None:
        packed = self.args.packing or getattr(self, "padding_free", False)
        if packed and (self._source or self.guard.pulls("curate") or self.guard.pulls("beside")):
            raise RecipeError("Packing loses where each row came from; set packing=False with these defenses.")

    def _encode_side_rows(self, examples: list[Example]) -> list[Encoded]:
        encoded, _ = encode_all(self._tokenizer, examples, self.args.max_length)
        shared = [encoded]
        if self.accelerator.num_processes > 1:  # answers sampled on several machines need not agree to the bit
            broadcast_object_list(shared)
        return shared[0]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: list[str]
        if "source" not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, "source"]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self._source:
            return super()._get_train_sampler(train_dataset)
        return EvenSampler((train_dataset or self.train_dataset)["source"], self.args.seed)

    # --- every optimizer step -----------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Fetch a whole optimizer step's micro-batches, and count what the penalties will be means over."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            counts = [self._marks(batch).counts().to(device) for batch in batches]
            rows = [_sources(batch).eq(0).sum().to(device) for batch in batches]
            numbers = torch.cat([torch.stack(counts).sum(0).flatten(), torch.stack(rows).sum().reshape(1)])
            numbers = self.accelerator.reduce(numbers, "sum")
            slots = len(batches) * self.accelerator.num_processes
            self.guard.plan(numbers[:-1].view(len(SOURCES), 2), int(numbers[-1]), slots)
            self._slot = 0
        return batches, items

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch, forward and backward, under the defenses' steering."""
        inputs = self._prepare_inputs(inputs)
        with self.guard.steering(self._marks(inputs)):
            loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own loss plus the weighted penalties."""
        if not model.training or not torch.is_grad_enabled():
            inputs.pop("source", None)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        marks = self._marks(inputs)
        inputs.pop("source", None)
        with self.guard.watch(marks) as calls:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task = loss[0] if return_outputs else loss
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        penalty = self.guard.penalty(calls[0], marks, self._slot * processes + rank)
        self._slot += 1
        self._task_loss = self._task_loss.to(task.device) + task.detach() / self._later_division(num_items_in_batch)
        if penalty is None:
            return loss
        # Gradients are averaged over processes, and some losses are divided by the micro-batches afterwards; the
        # penalty is already a share of the whole optimizer step, so both are undone here.
        task = task + penalty * processes * self._later_division(num_items_in_batch)
        return (task, loss[1]) if return_outputs else task

    def _later_division(self, num_items_in_batch: Any) -> int:
        scaled = self.loss_is_scaled_for_ga
        if scaled is None:
            scaled = (self.model_accepts_loss_kwargs and num_items_in_batch is not None) or bool(self.compute_loss_func)
        return 1 if scaled else self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the task's loss and each defense's own number, reduced over processes."""
        steps = self.state.global_step - self._logged_steps
        if "loss" in logs and steps > 0:
            numbers = {"task_loss": self._task_loss / steps / self.accelerator.num_processes} | self.guard.drain()
            device = self.accelerator.device
            shared = self.accelerator.reduce({k: v.float().to(device) for k, v in numbers.items()}, "sum")
            logs.update({name: value.item() for name, value in shared.items()})
            self._task_loss, self._logged_steps = torch.zeros(()), self.state.global_step
        super().log(logs, *args, **kwargs)

    def _marks(self, batch: dict[str, Any]) -> Marks:
        labels = batch["labels"]
        mask = batch.get("attention_mask")
        real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
        return marks_of(labels, real, _sources(batch))


class GuardedSFT(Guarded, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with `defenses=[...]`; its scored positions are those whose label is not -100."""


class _SourceCollator:
    """Carries each row's source past the trainer's collator."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sources = [row.pop("source", 0) for row in rows]
        batch: dict[str, Any] = self._inner(rows)
        return batch | {"source": torch.tensor(sources)}


def _sources(batch: dict[str, Any]) -> Tensor:
    labels: Tensor = batch["labels"]
    source: Tensor | None = batch.get("source")
    if source is None or source.shape[0] != labels.shape[0]:  # packed: one row of labels holds many of the data
        return torch.zeros(labels.shape[0], dtype=torch.long, device=labels.device)
    return source


def _row(example: Example) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in example.messages]
    return {"messages": messages, "source": SOURCES.index(example.source)}


def _pad_id(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ModelError("The tokenizer has neither a padding nor an end token; set tokenizer.pad_token.")
    return int(pad)
