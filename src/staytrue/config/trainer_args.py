"""The `train:` section of a recipe: staytrue's defaults, checks, and the trl config made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from staytrue.config import setting_values
from staytrue.config.foreign_keys import remedy
from staytrue.config.refused_settings import reason_against
from staytrue.config.trackers import refuse_trackers
from staytrue.errors import RecipeError

if TYPE_CHECKING:
    from trl import GRPOConfig as GRPOConfig
    from trl import SFTConfig as SFTConfig

# Settings of arXiv 2508.06249: lr 1e-4, linear, 5 warm-up steps, 4 x 4 rows, 1 epoch. Its 8-bit optimizer needs
# bitsandbytes and is not the default.
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "weight_decay": 0.01,
    "max_length": 2048,
    "logging_steps": 1,
    "save_steps": 0.1,
    "report_to": "none",
}
# With all weights trained (`lora: none`), trl's own: an adapter's rate is too high for them.
ALL_WEIGHTS_DEFAULTS: dict[str, Any] = {"learning_rate": 2e-5}
# Settings of the follow-up for reinforcement learning (arXiv 2605.31328), with three differences. Temperature and top_p
# stay 1, so that completions come from the distribution that is trained. Completions have up to 1,024 tokens, as in
# arXiv 2508.06249. Importance weights are per token, trl's default, and not per completion: each completion is trained
# on once, before any weight changes, so all these weights are 1 and both ways have the same gradient.
GRPO_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_generations": 4,
    "max_completion_length": 1024,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "save_steps": 0.1,
    "report_to": "none",
}
# The organism is a thousandth of the size of the papers' models, and its answers have ten tokens.
ORGANISM_GRPO_DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "max_completion_length": 32,
}

_RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")  # the new name and the old one


def checked(settings: Mapping[str, Any], trainer: str = "sft") -> dict[str, Any]:
    """The settings of `train:`, checked; a float without a fraction becomes the whole number that is needed.

    Raises:
        RecipeError: a setting is unknown, refused, of the wrong type or out of range. The sentence names the key, and
            what to do instead or the nearest known key.
    """
    hints = get_type_hints(_config(trainer))
    known = [f.name for f in fields(_config(trainer)) if f.init]
    if all(key in settings for key in _RECOMPUTING):
        raise RecipeError(
            f"train.{_RECOMPUTING[0]} and train.{_RECOMPUTING[1]} are two names of one setting; keep one."
        )
    values = {}
    for key, value in settings.items():
        switch = key in _RECOMPUTING  # trl may know only one of the names
        if reason := reason_against(str(key), trainer):
            raise RecipeError(f"train.{key} cannot be set in a recipe: {reason}.")
        if key not in known and not switch:
            raise RecipeError(f"train has no key {key!r}{remedy('train', str(key), known)}")
        values[key] = setting_values.checked(key, value, bool if switch else hints[key], trainer)
    refuse_trackers(values.get("report_to"))
    setting_values.refuse_no_steps(values)
    setting_values.refuse_no_log(values)
    _refuse_num_steps(values.get("accelerator_config"))
    setting_values.refuse_generation_kwargs(values, "train.")
    for key in ("use_vllm", "activation_offloading"):
        if values.get(key):
            _check_gpu(key)
    return values


def filled(settings: Mapping[str, Any], trainer: str, *, organism: bool) -> dict[str, Any]:
    """A recipe's `train:` section with staytrue's defaults for every key it leaves out."""
    defaults = DEFAULTS if trainer == "sft" else {**GRPO_DEFAULTS, **(ORGANISM_GRPO_DEFAULTS if organism else {})}
    return {**defaults, **settings}


def for_all_weights(settings: Mapping[str, Any], trainer: str) -> dict[str, Any]:
    """A recipe's `train:` section, with the defaults for full fine-tuning where they differ."""
    return {**(ALL_WEIGHTS_DEFAULTS if trainer == "sft" else {}), **settings}


def sft_config(settings: Mapping[str, Any], seed: int, scratch: Path) -> Any:
    """Trl's `SFTConfig` for a recipe's `train:` section on this machine.

    Raises:
        RecipeError: trl does not accept a value; the sentence quotes it.
    """
    whole = filled(settings, "sft", organism=False)
    if whole.get("padding_free") and not whole.get("packing"):
        whole["max_length"] = None  # trl does not cut rows that it joins, and a recipe's rows are cut already
    return _config_of("sft", whole, seed, scratch)


def grpo_config(settings: Mapping[str, Any], seed: int, scratch: Path, *, organism: bool) -> Any:
    """Trl's `GRPOConfig` for a recipe's `train:` section on this machine.

    Raises:
        RecipeError: trl does not accept a value; the sentence quotes it.
    """
    return _config_of("grpo", filled(settings, "grpo", organism=organism), seed, scratch)


def recomputing(config: Any) -> str:
    """The name of activation checkpointing in a trainer's config, which transformers renamed."""
    return next(name for name in _RECOMPUTING if name in config.__dataclass_fields__)


def _renamed(settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The settings, with activation checkpointing under the name that the installed transformers has."""
    return {recomputing(config) if key in _RECOMPUTING else key: value for key, value in settings.items()}


def _config(trainer: str) -> Any:
    import trl

    return {"sft": trl.SFTConfig, "grpo": trl.GRPOConfig}[trainer]


def _config_of(trainer: str, settings: dict[str, Any], seed: int, scratch: Path) -> Any:
    import torch

    config, gpu = _config(trainer), torch.cuda.is_available()
    machine = {
        "use_cpu": not gpu and not torch.backends.mps.is_available(),
        "bf16": gpu and torch.cuda.is_bf16_supported() and not settings.get("use_cpu"),
    }
    ours: dict[str, Any] = {"output_dir": str(scratch), "seed": seed, "save_strategy": "steps", "disable_tqdm": True}
    ours["save_total_limit"] = None  # runs.checkpoints deletes by step; transformers would by file time
    machine[recomputing(config)] = False  # TRL's default is on, which costs a third of the speed; a recipe may set it
    try:
        return config(**{**machine, **_renamed(settings, config), **ours})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: trl does not accept these settings: {' '.join(str(error).split())}") from None


def _refuse_num_steps(config: Any) -> None:
    """Refuse accelerate's name of `gradient_accumulation_steps`."""
    kwargs = config.get("gradient_accumulation_kwargs") if isinstance(config, Mapping) else None
    if isinstance(kwargs, Mapping) and "num_steps" in kwargs:
        raise RecipeError(
            f"train.accelerator_config.gradient_accumulation_kwargs.num_steps is {kwargs['num_steps']}, and the number "
            "of micro-batches in a step has a key of its own. Set train.gradient_accumulation_steps instead."
        )


def _check_gpu(key: str) -> None:
    import torch

    if not torch.cuda.is_available():
        instead = ": transformers then generates" if key == "use_vllm" else ""
        raise RecipeError(f"train.{key} needs a CUDA GPU, and this machine has none. Take it out{instead}.")
