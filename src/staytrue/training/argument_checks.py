"""What a script hands to a guarded trainer: settings that may not be guarded, the padding token."""

from __future__ import annotations

from typing import Any

from staytrue.config.refused_settings import UNGUARDED
from staytrue.errors import ModelError, RecipeError


def refuse_settings(args: Any) -> None:
    """Refuse what would guard the wrong thing in silence.

    Raises:
        RecipeError: the setting, and why.
    """
    for key, why in UNGUARDED.items():
        if getattr(args, key, None):
            raise RecipeError(f"{key}={getattr(args, key)!r} cannot be guarded: {why}. Turn it off, or the defenses.")


def pad_id(tokenizer: Any) -> int:
    """The token that fills a batch.

    Raises:
        ModelError: there is none, and no end to use instead.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise ModelError("The tokenizer has neither a padding nor an end token; set tokenizer.pad_token.")
    return int(pad)
