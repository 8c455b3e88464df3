"""`GuardedGRPO`: TRL's trainer by reward with defenses.

`GRPOTrainer(...)` becomes `GuardedGRPO(..., defenses=[...])`, and nothing else changes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import IterableDataset
from trl import GRPOTrainer
from trl.data_utils import get_dataset_column_names

from staytrue.data.vocabulary import embedding_count, refuse_unknown_tokens
from staytrue.errors import ForwardPassError
from staytrue.step import SOURCES, Marks
from staytrue.training import signatures, trl_head
from staytrue.training.equal_rewards import EqualRewards
from staytrue.training.idle_penalties import refuse_absent_sources
from staytrue.training.known_tokens import refuse_unknown_prompts
from staytrue.training.lost_text import lost_text, warn_of
from staytrue.training.outcome import naming_divergence
from staytrue.training.padded_batch import marks_of
from staytrue.training.readable_rows import check_prompts, refuse_unread_columns
from staytrue.training.reward_checks import checked_rewards
from staytrue.training.row_schedule import PromptSampler, epochs_done
from staytrue.training.sampling_check import refuse_unequal_comparisons, sample_one_token, stop_at_the_end_of_turn
from staytrue.training.signatures import shown_as
from staytrue.training.stream_check import StreamCheck
from staytrue.training.trainer_mixin import Guarded


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
        refuse_unknown_prompts(self)
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
        return "an entropy bonus needs a gradient" if bonus else trl_head.keeps_its_own(self)

    def _head_of_trl(self) -> tuple[float, Any]:
        return self.temperature, trl_head.FusedCausalLMOutput

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
        for ids in tokenized[0]:
            refuse_unknown_tokens(ids, embedding_count(self.model), "A prompt")
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
