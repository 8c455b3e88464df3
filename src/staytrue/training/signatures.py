"""The constructors' parameters of guarded trainers, written out for editors and type checkers.

At run time `shown_as_trls` takes the signature of the installed trl instead; a test compares the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias

from staytrue.defense import Defense
from staytrue.training.guard import Guard

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
        TrainerCallback,
        TrainingArguments,
    )

    from staytrue.config.trainer_args import GRPOConfig, SFTConfig
    from staytrue.modeling.loading import PeftConfig

    _Rows: TypeAlias = Dataset | IterableDataset | None
    _EvalRows: TypeAlias = Dataset | IterableDataset | DatasetDict | dict[str, Dataset | IterableDataset] | None
    _Processing: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin | None
    _Reward: TypeAlias = str | PreTrainedModel | Callable[..., Any]

_P = ParamSpec("_P")


def shown_as(parameters: Callable[_P, None]) -> Callable[[Callable[..., None]], Callable[_P, None]]:
    """Give an `__init__` the parameters of another function, for type checkers alone."""
    return lambda init: init


def shown_as_trls(trls: Any, guarded: Any) -> Callable[[Any], Any]:
    """Give an `__init__` the signature of a class of trl at run time, with the arguments of a guarded trainer."""

    def decorate(init: Any) -> Any:
        ours, theirs = inspect.signature(guarded.__init__).parameters, inspect.signature(trls.__init__)
        added = [ours[name].replace(annotation=kind) for name, kind in _ADDED.items()]
        *named, last = theirs.parameters.values()
        in_order = [*named, *added, last] if last.kind is last.VAR_KEYWORD else [*named, last, *added]
        init.__wrapped__ = trls.__init__  # whose module knows the names in its annotations
        init.__annotations__ = trls.__init__.__annotations__ | _ADDED
        init.__signature__ = theirs.replace(parameters=in_order)
        return init

    return decorate


_ADDED: dict[str, Any] = {
    "defenses": Sequence[Defense] | Guard,
    "reference_cache": Path | str | None,
    "reference": Any,  # "base", "start", the name of an adapter, or a model
}


def by_name(parent: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name.

    Raises:
        TypeError: as Python raises it for the parent itself: too many, two for one name, an unknown name.
    """
    parent_signature = inspect.signature(parent)
    parent_signature.bind(*args, **kwargs)
    return {**dict(zip(parent_signature.parameters, args, strict=False)), **kwargs}


def sft(
    self: Any,
    model: str | PreTrainedModel,
    args: SFTConfig | TrainingArguments | None = None,
    data_collator: Callable[[list[Any]], Any] | None = None,
    train_dataset: _Rows = None,
    eval_dataset: _EvalRows = None,
    processing_class: _Processing = None,
    compute_loss_func: Callable[..., Any] | None = None,
    compute_metrics: Callable[[Any], dict[str, Any]] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: tuple[Any, Any] = (None, None),
    optimizer_cls_and_kwargs: tuple[type[Any], dict[str, Any]] | None = None,
    preprocess_logits_for_metrics: Callable[..., Any] | None = None,
    quantization_config: Any = None,
    peft_config: PeftConfig | None = None,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
    *,
    defenses: Sequence[Defense] | Guard = (),
    reference_cache: Path | str | None = None,
    reference: str | PreTrainedModel | None = None,
) -> None:
    """The parameters of trl's SFTTrainer, with those of a guarded trainer."""


def grpo(
    self: Any,
    model: str | PreTrainedModel,
    reward_funcs: _Reward | list[_Reward] | None = None,
    args: GRPOConfig | None = None,
    train_dataset: _Rows = None,
    eval_dataset: _EvalRows = None,
    processing_class: _Processing = None,
    reward_processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase] | None = None,
    callbacks: list[TrainerCallback] | None = None,
    optimizers: tuple[Any, Any] = (None, None),
    quantization_config: Any = None,
    peft_config: PeftConfig | None = None,
    tools: list[Callable[..., Any]] | None = None,
    rollout_func: Callable[..., Any] | None = None,
    environment_factory: Any = None,
    *,
    defenses: Sequence[Defense] | Guard = (),
    reference_cache: Path | str | None = None,
    reference: str | PreTrainedModel | None = None,
) -> None:
    """The parameters of trl's GRPOTrainer, with those of a guarded trainer."""
