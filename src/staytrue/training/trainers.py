"""`GuardedSFT` and `GuardedGRPO`: TRL's trainers with defenses. The only file that imports trl's trainers.

`SFTTrainer(...)` becomes `GuardedSFT(..., defenses=[...])`, `GRPOTrainer(...)` the same with `GuardedGRPO`, and nothing
else changes. What is added to both is in `trainer_mixin.py`; `examples/flat_sft_kl.py` is supervised training with KL
as one flat, readable loop.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from trl import GRPOTrainer, SFTTrainer, pack_dataset
from trl.data_utils import get_dataset_column_names

try:
    from trl.trainer.utils import FusedCausalLMOutput
except ImportError:  # a trl whose trainers take whole logits, or another kind of head
    FusedCausalLMOutput = None

from staytrue.data.position_table import table_length
from staytrue.data.vocabulary import embedding_count
from staytrue.defense import pulled
from staytrue.errors import ForwardPassError, RecipeError
from staytrue.step import SOURCE_COLUMN, SOURCES, Marks
from staytrue.training import known_tokens, signatures
from staytrue.training.equal_rewards import EqualRewards
from staytrue.training.idle_penalties import refuse_absent_sources
from staytrue.training.learnt_prompts import learnt_prompts
from staytrue.training.lost_text import cut_rows, lost_text, warn_of
from staytrue.training.outcome import naming_divergence
from staytrue.training.packing_check import refuse_mixed_rows
from staytrue.training.padded_batch import marks_of
from staytrue.training.readable_rows import check_prompts, naming_template, refuse_unread_columns, without_effect
from staytrue.training.reward_checks import checked_rewards
from staytrue.training.row_schedule import EvenSampler, PromptSampler, epochs_done
from staytrue.training.row_tracking import (
    CheckedFormat,
    TrackingCollator,
    marks_of_batch,
    packed_with_sources,
    sources_of,
    task_rows_of,
)
from staytrue.training.sampling_check import refuse_unequal_comparisons, sample_one_token, stop_at_the_end_of_turn
from staytrue.training.signatures import shown_as
from staytrue.training.stream_check import StreamCheck
from staytrue.training.trainer_mixin import Guarded
from staytrue.training.turn_weights import has_weights, tokenized, without_weights


class GuardedSFT(Guarded, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with `defenses=[...]`; its scored positions are those whose label is not -100.

    Args:
        defenses: their penalties are added to the loss, and they act in listed order. Or a `Guard` that has curated the
            training rows already; then call its `project` after training.
        reference_cache: a folder that stores the reference's hidden states by row, for later runs on the same rows.
            None computes them in every run. Refused beside a `Guard`, which has its own.
        reference: the model that penalties compare with: "base" (the model with its adapter off), "start" (the model as
            it is now), the name of another adapter of the model, or a loaded model. None is the model before training;
            it is refused where a trained adapter is trained again. Refused beside a `Guard`, which has its own.
        *args: those of `SFTTrainer`, unchanged.
        **kwargs: those of `SFTTrainer`, unchanged.

    Attributes:
        projected: after `train`, the numbers of the defenses that changed the weights after the last step.

    Raises:
        RecipeError: a defense cannot work with these trainer settings.
        ModelError: a defense cannot work with this model, or the reference must be named.
        RequestError: the folder of the cache cannot be used, or not with these defenses.
        ForwardPassError: from `train`, where the loss does not call the model exactly once for each batch.
        TrainingError: from `train`, where training ends without a usable model.

    Example:
        The model is held to its own answers to general prompts::

            trainer = GuardedSFT(
                model="Qwen/Qwen2.5-7B-Instruct",
                args=SFTConfig(output_dir="out"),
                train_dataset=rows,
                peft_config=LoraConfig(target_modules="all-linear"),
                defenses=[Anchor()],
            )
            trainer.train()
    """

    @shown_as(signatures.sft)
    @signatures.shown_as_trls(SFTTrainer, Guarded)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def _settle(self) -> None:
        known_tokens.refuse_unknown_rows(self)
        warn_of(learnt_prompts(self.train_dataset, self._tokenizer, self.guard.defenses))
        columns = self.train_dataset.column_names or ()
        self._source = SOURCE_COLUMN in columns
        codes = self.train_dataset[SOURCE_COLUMN][:] if self._source else [0]
        refuse_absent_sources(self.guard.defenses, {SOURCES[i] for code in codes for i in sources_of(code)})
        self._joins_rows = bool(self.args.packing or self.padding_free or "seq_lengths" in columns)
        if self._joins_rows and self.guard.reference_cache is not None:
            raise RecipeError("Packed rows come in other packs in every run; set packing=False with a reference cache.")
        if self._joins_rows and self.args.packing_strategy != "wrapped":
            refuse_mixed_rows(self.model, refused=bool(self.guard.defenses))
        if self._source and self.args.train_sampling_strategy not in ("random", "sequential"):
            raise RecipeError(
                f"train_sampling_strategy={self.args.train_sampling_strategy!r} orders rows by length, and the rows "
                'that a data defense adds are spread evenly. Set it to "random" or "sequential".'
            )

    def _tracks_rows(self) -> bool:
        """Whether a batch must tell which rows it holds: of several sources, or joined beside auxiliary rows."""
        return self._source or (self._joins_rows and self.guard.pulls("beside"))

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, name: str
    ) -> Any:
        """TRL's own preparation in two steps: tokens, and then cutting and packing.

        Weights of turns are heeded, and packing gets each token's source where it matters. What the rows lose on the
        way into tokens is warned of.
        """
        if formatting_func is None and has_weights(dataset):
            dataset = tokenized(dataset, self._tokenizer, whole=args.completion_only_loss is False)
        elif formatting_func is None and isinstance(dataset, IterableDataset):
            dataset = without_weights(dataset)
        prepare = super()._prepare_dataset
        if name != "train":
            return prepare(dataset, processing_class, args, packing, formatting_func, name)
        sources = SOURCE_COLUMN in get_dataset_column_names(dataset)
        format_row = CheckedFormat(formatting_func) if formatting_func else None
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        with naming_template("train_dataset"):
            rows = prepare(dataset, processing_class, whole, False, format_row, name)
        if isinstance(rows, IterableDataset):
            self._streams = [StreamCheck(self._tokenizer, args.max_length)]
            rows = rows.map(self._streams[0], with_indices=True)
        if packing and args.max_length is not None and (sources or self.guard.pulls("beside")):
            prepared = packed_with_sources(rows, args, pack_dataset)
        else:
            prepared = prepare(rows, processing_class, args, packing, None, name)
        if isinstance(rows, Dataset):
            notes = cut_rows(rows, None if packing else len(prepared), args.max_length)
            notes += without_effect(get_dataset_column_names(dataset), formatting_func, args)
            warn_of([*notes, *lost_text(rows, self._tokenizer)])
        return prepared

    def get_train_dataloader(self) -> Any:
        """TRL's own data loader; its collator carries the source of each row where the defenses need it."""
        collator: Any = self.data_collator
        checked = known_tokens.CheckedTokens(collator, embedding_count(self.model), table_length(self.model))
        self.data_collator: Any = TrackingCollator(checked) if self._tracks_rows() else checked
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _ready(self, batches: list[Any]) -> list[Any]:
        penalties = [d for d in self.guard.defenses.values() if "penalty" in pulled(d)]
        if not (self.guard.pulls("beside") or any(d.on != "all" for d in penalties)) or not self._tracks_rows():
            return batches
        if any(SOURCE_COLUMN not in batch for batch in batches):
            raise ForwardPassError(
                f"{type(self).__name__} makes a data loader of its own, so the defenses cannot know where its rows "
                "come from. Take the one of super().get_train_dataloader()."
            )
        return batches

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
        if not self._source or self.args.packing:
            return super()._get_train_sampler(train_dataset)
        if SOURCE_COLUMN not in (train_dataset or self.train_dataset).column_names:
            raise RecipeError(
                "train_dataset was replaced after the trainer was made, and the rows of a data defense are gone. "
                "Pass it to the trainer's constructor."
            )
        shuffled = self.args.train_sampling_strategy != "sequential"
        sources = (train_dataset or self.train_dataset)[SOURCE_COLUMN][:]
        return EvenSampler(sources, self.args.seed, shuffled, partial(epochs_done, self))

    def _task_share(self) -> float:
        codes = self.train_dataset[SOURCE_COLUMN][:] if self._source else [0]
        return sum(task_rows_of(code) for code in codes) / len(codes)

    def _marks(self, batch: dict[str, Any]) -> Marks:
        return marks_of_batch(batch)


class GuardedGRPO(Guarded, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer` with `defenses=[...]`; its scored positions are those that predict a token of the completion.

    The loss's forward and the reference are steered; generation and old log-probabilities are not. A completion is a
    row: `share` of rows beside the batch counts completions.

    Args:
        defenses: as for `GuardedSFT`; those that add rows with answers to the task's rows are refused.
        reference_cache: None. A folder is refused, because completions differ in every run.
        reference: as for `GuardedSFT`.
        *args: those of `GRPOTrainer`, unchanged.
        **kwargs: those of `GRPOTrainer`, unchanged.

    Attributes:
        projected: as of `GuardedSFT`.

    Raises:
        RecipeError, ModelError, RequestError: as `GuardedSFT`.
        ForwardPassError: from `train`, as `GuardedSFT`.
        TrainingError: from `train`, as `GuardedSFT`, and where a reward function returns no finite numbers.

    Example:
        ::

            trainer = GuardedGRPO(
                model="Qwen/Qwen2.5-7B-Instruct",
                reward_funcs=reward,
                args=GRPOConfig(output_dir="out"),
                train_dataset=prompts,
                peft_config=LoraConfig(target_modules="all-linear"),
                defenses=[Anchor()],
            )
            trainer.train()
    """

    _prompts = True
    eos_token_ids: list[int]  # trl's: each ends a completion
    train_dataset: Any
    _step: int  # trl's: how many micro-batches have been trained on
    _ahead: Sequence[tuple[Any, Any]] = ()  # the optimizer step's batches of prompts, each with its completions

    @shown_as(signatures.grpo)
    @signatures.shown_as_trls(GRPOTrainer, Guarded)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def _settle(self) -> None:
        columns = get_dataset_column_names(self.train_dataset)
        refuse_unread_columns(self.train_dataset, columns, self.tools, self.chat_template_kwargs)
        refuse_absent_sources(self.guard.defenses, SOURCES[:1])
        known_tokens.refuse_unknown_prompts(self)
        if isinstance(self.train_dataset, IterableDataset):
            self._streams = [StreamCheck(self._tokenizer)]
            self.train_dataset = self.train_dataset.map(self._streams[0], with_indices=True)
        else:
            warn_of(lost_text(self.train_dataset, self._tokenizer))
        stop_at_the_end_of_turn(self, self._tokenizer)
        if not (self.use_vllm or self.args.deepspeed or self.args.fsdp):  # which hold the weights in their own way
            sample_one_token(self.model, self.generation_config)
        refuse_unequal_comparisons(self)
        self.add_callback(EqualRewards(lambda: self.outcome.moved))

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return PromptSampler(super()._get_train_sampler(dataset), partial(epochs_done, self))

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
        self._ahead, ready = [], []
        for batch in batches:
            ready.append(self._prepare_inputs(batch))
            self._step += 1
        self._step, self._ahead = first, list(zip(batches, ready, strict=True))
        self._current_train_step_time += time.perf_counter() - begun  # trl's step_time holds generation
        return ready

    def _prepare_inputs(self, batch: Any) -> Any:
        """Completions for a batch of prompts, or the batch itself when it has its completions.

        Raises:
            ForwardPassError: a subclass gives other prompts to a training step than those that were answered.
        """
        if isinstance(batch, dict) and "completion_ids" in batch:
            return batch
        known = next((ready for rows, ready in self._ahead if rows is batch), None)
        if known is None and self._ahead and self.model.training:
            raise ForwardPassError(
                f"{type(self).__name__} passes other rows to training_step than the data loader's, whose prompts are "
                "answered already, for the whole optimizer step. Change the rows in the dataset."
            )
        check_prompts(batch if known is None else ())
        with naming_divergence(self.model):
            return super()._prepare_inputs(batch) if known is None else known

    def _tokenize_prompts(self, prompts: Any) -> Any:
        tokenized = super()._tokenize_prompts(prompts)
        known_tokens.refuse_unreadable_prompts(self, tokenized[0])
        return tokenized

    def _calculate_rewards(self, inputs: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        with checked_rewards(self, len(prompts)):
            return super()._calculate_rewards(inputs, prompts, *args, **kwargs)

    def _marks(self, batch: dict[str, Any]) -> Marks:
        prompt, completion = batch["prompt_mask"], batch["completion_mask"]
        learnt = completion * batch.get("tool_mask", 1)
        labels = torch.cat([torch.zeros_like(prompt), learnt], 1).long()
        real = torch.cat([prompt, completion], 1).bool()
        return marks_of(labels.masked_fill(labels == 0, -100), real, labels.new_zeros(len(labels)))


def _keeps_trls_head(trainer: Any) -> str | None:
    """The reason why both trainers keep trl's head; None without one."""
    if FusedCausalLMOutput is None:
        return "this trl has no fused head"
    if getattr(trainer, "aux_loss_enabled", False):
        return "a mixture of experts adds its routers' loss"
    return None
