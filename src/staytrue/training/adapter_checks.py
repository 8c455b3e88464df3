"""Faults of a script's `peft_config`: peft's errors without a sentence, and names in it that match nothing."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from staytrue.errors import RecipeError, StaytrueError
from staytrue.utils.validation import in_one_line

_PATTERNS = ("rank_pattern", "alpha_pattern")
_NAMES = ("target_modules", "modules_to_save")


@contextmanager
def naming_adapter(config: Any) -> Iterator[None]:
    """Around the making of a trainer: an error inside of peft that is no sentence becomes one.

    Args:
        config: the trainer's `peft_config`, or None.

    Raises:
        RecipeError: peft cannot add the adapter.
    """
    if getattr(config, "trainable_token_indices", None) == []:
        raise RecipeError("peft_config.trainable_token_indices is [], which names no token. Take it out.")
    try:
        yield
    except StaytrueError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        if not any("peft" in Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)):
            raise
        raise RecipeError(
            f"peft cannot add the adapter of peft_config: {in_one_line(error).rstrip('.')}. Correct the "
            "setting that this names, such as r, layer_replication, trainable_token_indices or runtime_config."
        ) from error


def unmatched_names(model: Any) -> list[str]:
    """Sentences about names in the settings of a model's LoRA adapters that match none of its modules."""
    modules = [name.removeprefix("base_model.model.") for name, _ in model.named_modules()]
    weights = [
        name.removeprefix("base_model.model.").replace(".base_layer", "") for name, _ in model.named_parameters()
    ]
    adapted = [name for name in modules if ".lora_" in name]
    layers = {int(number) for name in adapted for number in re.findall(r"\.(\d+)\.", name)}
    notes = []
    for config in (getattr(model, "peft_config", None) or {}).values():
        if not hasattr(config, "rank_pattern"):  # no LoRA
            continue
        named = {key: getattr(config, key, None) or () for key in (*_PATTERNS, *_NAMES, "target_parameters")}
        for key, listed in named.items():
            known = weights if key == "target_parameters" else modules
            for name in () if isinstance(listed, str) else listed:
                if not _matches(name if key in _PATTERNS else re.escape(name), known):
                    notes.append(_note(key, name))
        chosen = config.layers_to_transform
        chosen = [chosen] if isinstance(chosen, int) else chosen or ()
        notes += [_note("layers_to_transform", layer) for layer in chosen if layer not in layers]
    return notes


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names)


def _note(key: str, name: Any) -> str:
    return (
        f"peft_config.{key} names {name!r}, which matches nothing in the model, so it does nothing. Check its spelling."
    )
