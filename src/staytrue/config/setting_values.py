"""Checks the values of `train:` by the types that trl's config declares and by their ranges; no model is loaded.

trl and transformers check few values themselves, and many of them only inside of `train()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from staytrue.config.refused_settings import by_key
from staytrue.errors import RecipeError

_TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
}
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {  # what a number is, by a test of it and the settings
    "1 or more": (
        lambda value: value >= 1,
        (
            "per_device_train_batch_size gradient_accumulation_steps max_length torch_empty_cache_steps num_iterations "
            "dataloader_prefetch_factor max_completion_length generation_batch_size steps_per_generation "
            "save_total_limit"
        ),
    ),
    "1 or more, or -1 to train by num_train_epochs": (lambda value: value >= 1 or value == -1, "max_steps"),
    "2 or more, since completions of one prompt are compared": (lambda value: value >= 2, "num_generations"),
    "0 or more": (
        lambda value: value >= 0,
        "warmup_steps weight_decay max_grad_norm dataloader_num_workers top_k beta epsilon epsilon_high",
    ),
    "0 or more and below 1": (lambda value: 0 <= value < 1, "adam_beta1 adam_beta2"),
    "from 0 to 1": (lambda value: 0 <= value <= 1, "min_p top_entropy_quantile"),
    "above 0": (lambda value: value > 0, "learning_rate adam_epsilon logging_steps save_steps repetition_penalty"),
    "above 0, since completions are sampled": (lambda value: value > 0, "temperature"),
    "above 0 and at most 1": (lambda value: 0 < value <= 1, "top_p"),
}
_RANGE_OF = by_key({range_: keys for range_, (_, keys) in _RANGES.items()})
_CHOICES = {  # trl compares these in the first step only
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo", "nll", "dft"),
    **dict.fromkeys(
        ("log_level", "log_level_replica"), ("passive", "detail", "debug", "info", "warning", "error", "critical")
    ),
}


def checked(key: str, value: Any, hint: Any) -> Any:
    """A value of `train:`; a float without a fraction becomes the whole number where one is needed.

    Args:
        key: the setting.
        value: the value in the recipe.
        hint: the type that trl's config declares.

    Raises:
        RecipeError: the type is another one, the number is not finite or out of range, or trl knows no such word.
    """
    kinds = set(_kinds(hint))
    if type(value) is float and value.is_integer() and int in kinds and float not in kinds:
        value = int(value)  # `1e3` and `2.0` are numbers with a fraction in YAML
    if not kinds or Any in kinds or (value is None and type(None) in kinds):
        return value
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        accepted = [_TYPE_NAMES[kind] for kind in _TYPE_NAMES if kind in kinds and not (kind is int and float in kinds)]
        raise RecipeError(f"train.{key} is {value!r}; write {' or '.join(accepted) or 'another value'}.")
    if not _finite(value):
        raise RecipeError(f"train.{key} is {value!r}; write a finite number.")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise RecipeError(f"train.{key} is {value!r}; write one of {', '.join(_CHOICES[key])}.")
    if key in _RANGE_OF and isinstance(value, int | float) and not _RANGES[_RANGE_OF[key]][0](value):
        raise RecipeError(f"train.{key} is {value}; it is {_RANGE_OF[key]}.")
    return value


def refuse_no_steps(settings: Mapping[str, Any]) -> None:
    """Refuse a number of epochs that makes no step.

    Raises:
        RecipeError: `num_train_epochs` is 0 or less, and no `max_steps` replaces it.
    """
    epochs = settings.get("num_train_epochs", 1)
    if settings.get("max_steps", -1) < 1 and epochs <= 0:
        raise RecipeError(f"train.num_train_epochs is {epochs}, so nothing would be trained; it is above 0.")


def _finite(value: Any) -> bool:
    """Whether every number of a value is finite, also inside of lists and mappings."""
    if isinstance(value, list | dict):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


def _kinds(hint: Any) -> Iterator[Any]:
    """The Python types of the values that a type hint allows."""
    origin = get_origin(hint)
    if origin is Literal:
        yield from map(type, get_args(hint))
    elif origin in (list, dict, tuple):
        yield origin
    elif get_args(hint):
        for part in get_args(hint):
            yield from _kinds(part)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        yield str
    else:
        yield hint
