"""Checks the values of `train:` by the types that trl's config declares and by their ranges; no model is loaded.

trl and transformers check few values themselves, and many of them only inside of `train()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from enum import Enum
from numbers import Real
from typing import Any, Literal, get_args, get_origin, get_type_hints

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
            "save_total_limit pad_to_multiple_of"
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
    "above 0": (
        lambda value: value > 0,
        (
            "learning_rate adam_epsilon logging_steps save_steps repetition_penalty sapo_temperature_neg "
            "sapo_temperature_pos"
        ),
    ),
    "above 0, since completions are sampled": (lambda value: value > 0, "temperature"),
    "above 0 and at most 1": (lambda value: 0 < value <= 1, "top_p"),
}
_RANGE_OF = by_key({range_: keys for range_, (_, keys) in _RANGES.items()})
_LOSSES = {
    "sft": ("nll", "dft"),
    "grpo": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
}
# trl and transformers compare these after a model was loaded, many of them after the first completions.
_CHOICES: dict[str, tuple[str, ...]] = {
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("server", "colocate"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    "packing_strategy": ("bfd", "bfd_split", "wrapped"),
    "truncation_mode": ("keep_start", "keep_end"),
    **dict.fromkeys(
        ("log_level", "log_level_replica"), ("passive", "detail", "debug", "info", "warning", "error", "critical")
    ),
}

_MOST = 2**31 - 1  # of steps, rows and tokens: what libraries hold in 32 bits
_LATE_RANGES = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "adam_beta1", "adam_beta2"),
    *("max_grad_norm", "warmup_steps", "dataloader_num_workers", "adam_epsilon"),
    *("temperature", "top_p", "min_p", "repetition_penalty", "max_completion_length", "num_iterations", "epsilon"),
    *("top_entropy_quantile", "sapo_temperature_neg", "sapo_temperature_pos", "pad_to_multiple_of"),
)
_TAKEN_BY_SCRIPTS = (("adam_epsilon", 0.0),)  # torch takes it, and the weights are checked at the end of training
_GENERATION = ("generation_kwargs", "temperature", "use_vllm")
_ELSEWHERE = {  # keys of generation_kwargs that trl does not expect there
    "temperature": "log-probabilities are computed at {where}temperature, so set that one",
    "num_return_sequences": "{where}num_generations is the number of completions of a prompt",
    "return_dict_in_generate": "trl reads the tokens alone, so take it out",
    "stop_strings": "it needs the tokenizer, which trl does not pass on, so set eos_token_id there instead",
}


def checked(key: str, value: Any, hint: Any, trainer: str) -> Any:
    """A value of `train:`; a float without a fraction becomes the whole number where one is needed.

    Args:
        key: the setting.
        value: the value in the recipe.
        hint: the type that trl's config declares.
        trainer: "sft" or "grpo".

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
    if (type(value) is int or key == "num_train_epochs") and abs(value) > _MOST:
        raise RecipeError(f"train.{key} is {value}; write a number of at most {_MOST:,}.")
    refuse_value(f"train.{key}", value, trainer)
    return value


def refuse_value(where: str, value: Any, trainer: str) -> None:
    """Refuse a value that trl does not know, or that is out of range.

    Args:
        where: the setting, with the mapping that holds it: "train.top_p", "generation_kwargs.top_p" or "top_p".
        value: of its type.
        trainer: "sft" or "grpo".

    Raises:
        RecipeError: the setting, its value and what to write.
    """
    key = where.rpartition(".")[2]
    choices = _LOSSES[trainer] if key == "loss_type" else _CHOICES.get(key)
    if choices and value not in choices:
        raise RecipeError(f"{where} is {value!r}; write one of {', '.join(choices)}.")
    if key in _RANGE_OF and isinstance(value, int | float) and not _RANGES[_RANGE_OF[key]][0](value):
        raise RecipeError(f"{where} is {value}; it is {_RANGE_OF[key]}.")


def refuse_late_values(config: Any, trainer: str) -> None:
    """Refuse values of a script's trainer config at which trl fails after it has loaded a model, or does nothing.

    A float without a fraction becomes the whole number that is needed, as in a recipe.

    Args:
        config: trl's config, or None.
        trainer: "sft" or "grpo".

    Raises:
        RecipeError: the setting, its value and what to write.
    """
    _refuse_other_types(config)
    for key in ("loss_type", *_CHOICES, *_LATE_RANGES):
        if (value := getattr(config, key, None)) is not None and (key, value) not in _TAKEN_BY_SCRIPTS:
            refuse_value(key, value, trainer)
    weights = getattr(config, "reward_weights", None) or ()
    if weights and not (all(map(math.isfinite, weights)) and any(weights)):
        raise RecipeError(f"reward_weights is {weights}; write finite numbers, of which at least one is not 0.")
    refuse_generation_kwargs({key: getattr(config, key, None) for key in _GENERATION})


def _refuse_other_types(config: Any) -> None:
    """Refuse settings of a trainer config whose values are no number, no whole number, not finite, or no text.

    A float without a fraction, such as 1e2, is replaced by its whole number.

    Raises:
        RecipeError: the first such setting.
    """
    for key, hint in _hints(type(config)).items() if is_dataclass(config) else ():
        value = getattr(config, key, None)
        kinds = set(_kinds(hint))
        if value is None and kinds and kinds <= {int, float}:
            raise RecipeError(f"{key} is None; write a number.")
        kinds -= {type(None)}
        if value is None or not kinds <= {int, float, bool, str, dict} or kinds == set():
            continue
        way_out = ""
        if dict in kinds:
            way_out = "a mapping" if key.endswith("_kwargs") and not isinstance(value, Mapping) else ""
        elif str not in kinds and not isinstance(value, Real):
            way_out = "a whole number" if kinds == {int} else "a number" if kinds - {bool} else "True or False"
        elif kinds == {int} and isinstance(value, float):
            if value.is_integer():
                setattr(config, key, int(value))
            else:
                way_out = "a whole number"
        elif isinstance(value, float) and not math.isfinite(value) and (key, value) != ("max_grad_norm", math.inf):
            way_out = "a finite number"
        elif kinds == {str} and isinstance(value, Real | list | dict) and key != "fsdp":  # transformers takes True too
            way_out = "text"
        if way_out:
            raise RecipeError(f"{key} is {value!r}; write {way_out}.")


def _hints(kind: type) -> dict[str, Any]:
    """The types of a config's settings; without those of a subclass that names types which only a type checker sees."""
    try:
        return get_type_hints(kind)
    except NameError:
        return _hints(kind.__mro__[1])


def refuse_generation_kwargs(settings: Mapping[str, Any], where: str = "") -> None:
    """Refuse keys of `generation_kwargs` that change what GRPO computes, or that transformers would ignore.

    Args:
        settings: of the trainer; of them `generation_kwargs`, `temperature` and `use_vllm` are read.
        where: what stands before a setting's name, such as "train.".

    Raises:
        RecipeError: the key, its value and what to do instead.
    """
    sampling = settings.get("generation_kwargs") or {}
    for key, value in sampling.items():
        name = f"{where}generation_kwargs.{key}"
        refuse_value(name, value, "grpo")
        if key == "do_sample" and not value:
            raise RecipeError(
                f"{name} is {value}, so all completions of a prompt would be equal and none would be better than "
                "another. Take it out."
            )
        harmless = settings.get("temperature", 1.0) if key == "temperature" else 1 if key.startswith("num") else None
        if key in _ELSEWHERE and value and value != harmless:
            raise RecipeError(f"{name} is {value!r}; {_ELSEWHERE[key].format(where=where)}.")
        if not settings.get("use_vllm"):
            _refuse_unknown(name, key)


def _refuse_unknown(name: str, key: str) -> None:
    """Refuse a key that transformers does not know, and would ignore."""
    from transformers import GenerationConfig

    known = [*vars(GenerationConfig())]
    if key not in known:
        near = get_close_matches(key, known, 1)
        way_out = f"did you mean {near[0]!r}?" if near else "it would be ignored, so take it out."
        raise RecipeError(f"{name} is no setting of transformers' GenerationConfig; {way_out}")


def refuse_no_steps(settings: Mapping[str, Any]) -> None:
    """Refuse a number of epochs that makes no step.

    Raises:
        RecipeError: `num_train_epochs` is 0 or less, and no `max_steps` replaces it.
    """
    epochs = settings.get("num_train_epochs", 1)
    if settings.get("max_steps", -1) < 1 and epochs <= 0:
        raise RecipeError(f"train.num_train_epochs is {epochs}, so nothing would be trained; it is above 0.")


def refuse_no_log(settings: Mapping[str, Any]) -> None:
    """Refuse a run without a log, from which nothing could be verified.

    Raises:
        RecipeError: `logging_strategy` is "no".
    """
    if settings.get("logging_strategy") == "no":
        raise RecipeError(
            "train.logging_strategy is 'no', and a run's log is the evidence of what its defenses did. Take it out; "
            "for a short log, raise train.logging_steps: the last step is always logged."
        )


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
