"""The `train:` section: which keys of the trainer's config a recipe may set, and staytrue's defaults for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from staytrue.config.refused_settings import reason_against
from staytrue.errors import RecipeError
from staytrue.utils.validation import nearest

# The paper's settings (arXiv 2508.06249: lr 1e-4 linear with 5 warm-up steps, 4 x 4 rows, 1 epoch); its 8-bit
# optimiser is left to those who have bitsandbytes.
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
    "report_to": "none",
}
# The published follow-up's settings for reinforcement learning (arXiv 2605.31328) with three differences. Temperature
# and top_p stay 1, so that what is learnt from is what the model says. Completions are as long as the paper's (1,024
# tokens). Importance is weighed by token, trl's default, and not by completion: each is trained on once, before any
# weight changes, so all these weights are 1 and both ways have the same gradient.
REWARDED: dict[str, Any] = {
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
    "report_to": "none",
}
# The organism is a thousandth of their size and its answers have ten tokens; 2e-4 is its rate for everything.
OF_THE_ORGANISM: dict[str, Any] = {
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "per_device_train_batch_size": 64,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "max_completion_length": 32,
}

_RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")  # the new name and the old one


def check(given: Mapping[str, Any], trainer: str = "sft") -> None:
    """Refuse keys of `train:` that are unknown or staytrue's own business.

    Raises:
        RecipeError: the sentence says where to say it instead, or the nearest right key.
    """
    known = {f.name: f.default for f in fields(_config(trainer)) if f.init}
    if all(key in given for key in _RECOMPUTING):
        raise RecipeError(f"train.{_RECOMPUTING[0]} and train.{_RECOMPUTING[1]} are two names of one switch; keep one.")
    for key, value in given.items():
        switch = key in _RECOMPUTING  # by either name, and its default may be none at all
        if reason := reason_against(key, trainer):
            raise RecipeError(f"train.{key} cannot be set in a recipe: {reason}.")
        if key not in known and not switch:
            raise RecipeError(f"train has no key {key!r}{nearest(key, known)}")
        _check_value(key, value, False if switch else DEFAULTS.get(key, known[key]))
    if given.get("use_vllm"):
        _check_vllm()


def _check_value(key: str, value: Any, default: Any) -> None:
    """What can be known of a value before any library sees it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise RecipeError(f"train.{key} is {value!r}; write true or false.")
    if isinstance(default, int | float) and not isinstance(default, bool) and not number:
        raise RecipeError(f"train.{key} is {value!r}; write a number.")
    if key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length") and value < 1:
        raise RecipeError(f"train.{key} is {value}; it is 1 or more.")


def filled(given: Mapping[str, Any], trainer: str, *, organism: bool) -> dict[str, Any]:
    """A recipe's `train:` section with staytrue's defaults for every key it leaves out."""
    defaults = DEFAULTS if trainer == "sft" else {**REWARDED, **(OF_THE_ORGANISM if organism else {})}
    return {**defaults, **given}


def sft_config(given: Mapping[str, Any], seed: int, scratch: Path) -> Any:
    """The supervised trainer's settings for a recipe's `train:` section on this machine.

    Raises:
        RecipeError: a value that the trainer refuses, with its own words.
    """
    return _made("sft", filled(given, "sft", organism=False), seed, scratch)


def grpo_config(given: Mapping[str, Any], seed: int, scratch: Path, *, organism: bool) -> Any:
    """The reinforcement-learning trainer's settings for a recipe's `train:` section on this machine.

    Raises:
        RecipeError: a value that the trainer refuses, with its own words.
    """
    return _made("grpo", filled(given, "grpo", organism=organism), seed, scratch)


def recomputing(config: Any) -> str:
    """How a trainer's config calls the recomputation of activations in the backward pass; transformers renamed it."""
    return next(word for word in _RECOMPUTING if word in config.__dataclass_fields__)


def _in_its_words(given: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The switch of recomputation by the name that this transformers has for it."""
    return {recomputing(config) if key in _RECOMPUTING else key: value for key, value in given.items()}


def _config(trainer: str) -> Any:
    import trl

    return {"sft": trl.SFTConfig, "grpo": trl.GRPOConfig}[trainer]


def _made(trainer: str, given: dict[str, Any], seed: int, scratch: Path) -> Any:
    import torch

    config, gpu = _config(trainer), torch.cuda.is_available()
    machine = {
        "use_cpu": not gpu and not torch.backends.mps.is_available(),
        "bf16": gpu and torch.cuda.is_bf16_supported(),
    }
    ours: dict[str, Any] = {"output_dir": str(scratch), "seed": seed, "save_strategy": "no", "disable_tqdm": True}
    machine[recomputing(config)] = False  # TRL's default is on, which costs a third of the speed; a recipe may set it
    try:
        return config(**{**machine, **_in_its_words(given, config), **ours})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: the trainer refuses these settings: {' '.join(str(error).split())}") from None


def _check_vllm() -> None:
    import torch

    if not torch.cuda.is_available():
        raise RecipeError(
            "train.use_vllm needs a CUDA GPU, and this machine has none; take it out, and transformers generates."
        )
