"""`GuardedSFT` and `GuardedGRPO`: TRL's trainers with defenses. The only file that imports trl's trainers.

`SFTTrainer(...)` becomes `GuardedSFT(..., defenses=[...])`, `GRPOTrainer(...)` the same with `GuardedGRPO`, and nothing
else changes. What is added to both is in `trainer_mixin.py`; `examples/flat_sft_kl.py` is supervised training with KL
as one flat, readable loop.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # trl sends a usage ping when a trainer is constructed

import torch
from torch import Tensor
from trl import GRPOTrainer, SFTTrainer

try:
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError:  # a trl whose trainers take whole logits, or another kind of head
    FusedCausalLMOutput = None

from staytrue.data.examples import Example
from staytrue.errors import RecipeError
from staytrue.step import SOURCE_COLUMN, SOURCES, Marks
from staytrue.training.aux_batches import marks_of
from staytrue.training.sampling import EvenSampler
from staytrue.training.trainer_mixin import Guarded


class GuardedSFT(Guarded, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with `defenses=[...]`; its scored positions are those whose label is not -100."""

    def _row(self, example: Example) -> dict[str, Any]:
        return {"messages": _messages(example), SOURCE_COLUMN: SOURCES.index(example.source)}

    def _settle(self) -> None:
        self._source = SOURCE_COLUMN in (self.train_dataset.column_names or ())
        packed = self.args.packing or getattr(self, "padding_free", False)
        if packed and (self._source or self.guard.pulls("curate") or self.guard.pulls("beside")):
            raise RecipeError("Packing loses where each row came from; set packing=False with these defenses.")
        if packed and self.guard.reference_cache is not None:
            raise RecipeError("Packed rows come in other packs in every run; set packing=False with a reference cache.")
        self.data_collator: Any = _SourceCollator(self.data_collator)

    def _keeps_its_head(self) -> str | None:
        smoothed = self.label_smoother is not None or self.compute_loss_func is not None
        return "this loss takes whole logits" if smoothed else _keeps_trls_head(self)

    def _head_of_trl(self) -> tuple[float, Any]:
        return 1.0, FusedCausalLMOutput

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns: list[str]
        if SOURCE_COLUMN not in self._signature_columns:
            self._signature_columns = [*self._signature_columns, SOURCE_COLUMN]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if not self._source:
            return super()._get_train_sampler(train_dataset)
        return EvenSampler((train_dataset or self.train_dataset)[SOURCE_COLUMN][:], self.args.seed)

    def _task_share(self) -> float:
        sources = self.train_dataset[SOURCE_COLUMN][:] if self._source else [0]
        return sources.count(0) / len(sources)

    def _marks(self, batch: dict[str, Any]) -> Marks:
        labels = batch["labels"]
        mask = batch.get("attention_mask")
        real = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
        return marks_of(labels, real, _sources(batch))


class GuardedGRPO(Guarded, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` with `defenses=[...]`; its scored positions are those that predict a token of the completion.

    The loss's forward and the reference are steered; generation and old log-probabilities are not. A completion is a
    row: `share` of rows beside the batch counts completions.
    """

    _turns = "prompt"
    _prompts = True
    _step: int  # trl's: how many micro-batches have been trained on

    def _row(self, example: Example) -> dict[str, Any]:
        return {"prompt": _messages(example), **example.extra}

    def _settle(self) -> None:
        names = {label.split(".")[0] for label in self.guard.defenses}
        if self.beta > 0 and "kl" in names:
            raise RecipeError(
                f"beta={self.beta} is a second divergence from the same reference, logged under the same name as kl. "
                "Set beta to 0, or take kl out."
            )
        if not self.guard.pulls("steer"):
            return
        if self.beta > 0:
            raise RecipeError(
                f"beta={self.beta} compares a steered model with a reference that the trainer does not steer, so a "
                "model that has not moved would be punished. Set beta to 0 and use kl, whose reference is steered."
            )
        if self._remembers_old_probabilities():
            raise RecipeError(
                "With these settings the trainer compares steered probabilities with old ones that are not steered. "
                "Set num_iterations to 1, steps_per_generation to gradient_accumulation_steps, and with vLLM "
                "vllm_importance_sampling_correction to false; or take steering out."
            )

    def _keeps_its_head(self) -> str | None:
        if self.args.cast_lm_head_to_fp32:
            return "cast_lm_head_to_fp32"
        bonus = getattr(self, "_entropy_bonus_enabled", False)  # not in every trl
        return "an entropy bonus needs a gradient" if bonus else _keeps_trls_head(self)

    def _head_of_trl(self) -> tuple[float, Any]:
        return self.temperature, FusedCausalLMOutput

    def _remembers_old_probabilities(self) -> bool:
        """Whether the trainer keeps log-probabilities from generation, as trl's `_generate_and_score_completions` does.

        Otherwise it takes the loss forward's own, and their ratio is 1 with steering or without.
        """
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        every = self.args.steps_per_generation * self.num_iterations
        return bool(corrected or self.args.gradient_accumulation_steps % every)

    def _ready(self, batches: list[Any]) -> list[Any]:
        """Generate for the whole optimizer step before its first forward, so that its tokens can be counted.

        trl makes the completions when a micro-batch is prepared, and knows by `_step` which slice of the generated ones
        is due. No weight changes within an optimizer step, so to make them a little earlier changes nothing.
        """
        self.model.train()  # how trl tells training from evaluation
        begun, first = time.perf_counter(), self._step
        ready = []
        for batch in batches:
            ready.append(self._prepare_inputs(batch))
            self._step += 1
        self._step = first
        self._current_train_step_time += time.perf_counter() - begun  # trl's step_time holds generation
        return ready

    def _prepare_inputs(self, batch: Any) -> Any:
        """Completions for a batch of prompts, or the batch itself when it has its completions."""
        return batch if isinstance(batch, dict) and "completion_ids" in batch else super()._prepare_inputs(batch)

    def _marks(self, batch: dict[str, Any]) -> Marks:
        prompt, completion = batch["prompt_mask"], batch["completion_mask"]
        learnt = completion * batch.get("tool_mask", 1)
        labels = torch.cat([torch.zeros_like(prompt), learnt], 1).long()
        real = torch.cat([prompt, completion], 1).bool()
        return marks_of(labels.masked_fill(labels == 0, -100), real, labels.new_zeros(len(labels)))


class _SourceCollator:
    """Carries each row's source past the trainer's collator."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        sources = [row.pop(SOURCE_COLUMN, 0) for row in rows]
        batch: dict[str, Any] = self._inner(rows)
        return batch | {SOURCE_COLUMN: torch.tensor(sources)}


def _keeps_trls_head(trainer: Any) -> str | None:
    """What both kinds of training keep trl's head for."""
    if FusedCausalLMOutput is None:
        return "this trl has no fused head"
    if getattr(trainer, "aux_loss_enabled", False):
        return "a mixture of experts adds its routers' loss"
    return None


def _sources(batch: dict[str, Any]) -> Tensor:
    labels: Tensor = batch["labels"]
    source: Tensor | None = batch.get(SOURCE_COLUMN)
    if source is None or source.shape[0] != labels.shape[0]:  # packed: one row of labels holds many of the data
        return torch.zeros(labels.shape[0], dtype=torch.long, device=labels.device)
    return source


def _messages(example: Example) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in example.messages]
