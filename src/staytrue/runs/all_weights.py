"""Writes the model folder of a run with `lora: none`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from staytrue.modeling import model_source
from staytrue.modeling.chat_tokenizer import own_tokenizer


def save_model(model: Any, source: model_source.Source, folder: Path) -> None:
    """Write an ordinary model folder: the trained weights in their precision, and the untuned model's own tokenizer.

    trl switches the key-value cache off in the configuration, for training; it is written as the untuned model has it.
    """
    from transformers import AutoConfig

    before = AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
    during, model.config.use_cache = model.config.use_cache, before.use_cache
    try:
        model.save_pretrained(str(folder), safe_serialization=True)
    finally:
        model.config.use_cache = during
    own_tokenizer(source).save_pretrained(str(folder))
