"""The peft config of a recipe's `lora:` section."""

from __future__ import annotations

import math
import re
from typing import Any

from staytrue.config.recipe import Lora
from staytrue.errors import RecipeError


def lora_config(lora: Lora, model: Any) -> Any:
    """Peft's `LoraConfig` for a model.

    Rank-stabilised LoRA scales its update by alpha / sqrt(r). Several readers of adapters (llama.cpp, and so Ollama)
    know the scale lora_alpha / r only. So lora_alpha is alpha * sqrt(r) with use_rslora false: the same scale for all.

    Raises:
        RecipeError: a name or a pattern of the section matches nothing in the model, so that peft would ignore it.
    """
    from peft import LoraConfig

    leaves = [name for name, module in model.named_modules() if next(module.children(), None) is None]
    _refuse_unmatched("targets", () if lora.targets == "all-linear" else lora.targets, leaves)
    _refuse_unmatched("exclude", lora.exclude, leaves)
    _refuse_unmatched("modules_to_save", lora.modules_to_save, [name for name, _ in model.named_modules()])
    scale = lora.alpha / (math.sqrt(lora.r) if lora.rslora else lora.r)
    return LoraConfig(
        r=lora.r,
        lora_alpha=scale * lora.r,
        use_rslora=False,
        use_dora=lora.dora,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=_excluded(lora, model),
        modules_to_save=list(lora.modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _refuse_unmatched(key: str, setting: str | tuple[str, ...], names: list[str]) -> None:
    """Refuse a pattern or a name that matches none of the model's modules."""
    patterns = {setting: setting} if isinstance(setting, str) else {n: rf"(.*\.)?{re.escape(n)}" for n in setting}
    for text, pattern in patterns.items():
        if not any(re.fullmatch(pattern, name) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names} - {""})
            known = [name for name in known if not name.isdecimal()][:20]
            raise RecipeError(
                f"lora.{key} has {text!r}, which matches no module of the model, so it would do nothing. Write a list "
                f"of names, such as {', '.join(known)}, or a regular expression that matches whole names."
            )


def _excluded(lora: Lora, model: Any) -> str | None:
    """A regular expression of the modules that are not adapted; None if there are none."""
    names = [lora.exclude] if isinstance(lora.exclude, str) else [rf"(.*\.)?{re.escape(name)}" for name in lora.exclude]
    text = _text_part(model)
    if text and (lora.targets == "all-linear" or not isinstance(lora.targets, str)):
        names.append(rf"(?!{re.escape(text)}\.).*")
    return "|".join(f"({name})" for name in names) or None


def _text_part(model: Any) -> str:
    """The name of the part of a multimodal model that reads text; "" for a model of text only.

    It is the module that holds the embeddings of tokens. Only text is trained on, so that an adapter of a vision or
    audio tower would never be trained, and servers that load the text part alone refuse or ignore it.
    """
    if model.config.get_text_config() is model.config:
        return ""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    return str(name.rpartition(".")[0])
