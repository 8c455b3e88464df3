"""`GuardedSFT`: TRL's supervised trainer with defenses.

`SFTTrainer(...)` becomes `GuardedSFT(..., defenses=[...])`, and nothing else changes. What is added to it and to
`GuardedGRPO` is in `trainer_mixin.py`; `examples/flat_sft_kl.py` is supervised training with KL as one flat loop.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from trl import SFTTrainer, pack_dataset
from trl.data_utils import get_dataset_column_names

from staytrue.data.vocabulary import embedding_count
from staytrue.defense import pulled
from staytrue.errors import ForwardPassError, RecipeError
from staytrue.step import SOURCE_COLUMN, SOURCES, Marks
from staytrue.training import signatures, trl_head
from staytrue.training.idle_penalties import refuse_absent_sources
from staytrue.training.known_tokens import CheckedTokens, refuse_unknown_rows
from staytrue.training.learnt_prompts import learnt_prompts
from staytrue.training.lost_text import cut_rows, lost_text, warn_of
from staytrue.training.packing_check import refuse_mixed_rows
from staytrue.training.readable_rows import naming_template, without_effect
from staytrue.training.row_schedule import EvenSampler, epochs_done
from staytrue.training.row_tracking import (
    CheckedFormat,
    TrackingCollator,
    marks_of_batch,
    packed_with_sources,
    sources_of,
    task_rows_of,
)
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
        refuse_unknown_rows(self)
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
        checked = CheckedTokens(collator, embedding_count(self.model))
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
        return "this loss takes whole logits" if smoothed else trl_head.keeps_its_own(self)

    def _head_of_trl(self) -> tuple[float, Any]:
        return 1.0, trl_head.FusedCausalLMOutput

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
