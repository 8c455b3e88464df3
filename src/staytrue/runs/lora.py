"""The peft config of a recipe's `lora:` section."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from staytrue.config.lora import Lora
from staytrue.errors import RecipeError
from staytrue.runs.second_training import adapter_folder


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
    for key, pattern in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        _refuse_unmatched(key, {name: rf"(.*\.)?({name})" for name in pattern}, leaves)
    ranks, alphas = _by_module(lora, leaves)
    return LoraConfig(
        r=lora.r,
        lora_alpha=_alpha(lora, lora.r, lora.alpha),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_rslora=False,
        use_dora=lora.dora,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        exclude_modules=_excluded(lora, model),
        modules_to_save=list(lora.modules_to_save) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )


def adapted(lora: Lora | None, model: Any) -> Any:
    """The model with a fresh adapter, of the shape of `lora.adapter` if it is set; as it is where `lora` is None."""
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    if lora.adapter is None:
        return get_peft_model(model, lora_config(lora, model))
    config = LoraConfig.from_pretrained(str(adapter_folder(lora.adapter)))
    config.inference_mode = False
    return get_peft_model(model, config)


def _alpha(lora: Lora, r: int, alpha: float) -> float:
    """Peft's lora_alpha without rank stabilisation, for a module of rank `r` and scale `alpha`."""
    return alpha / (math.sqrt(r) if lora.rslora else r) * r


def _by_module(lora: Lora, names: list[str]) -> tuple[dict[str, int], dict[str, float]]:
    """Rank and lora_alpha of each module that a pattern names, by the whole name of the module.

    A rank changes the scale too, so peft gets both for each of these modules.
    """
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name in names:
        rank, alpha = _first(lora.rank_pattern, name), _first(lora.alpha_pattern, name)
        if rank is not None or alpha is not None:
            whole, r = re.escape(name), rank or lora.r
            ranks[whole] = r
            alphas[whole] = _alpha(lora, r, alpha or lora.alpha)
    return ranks, alphas


def _first(pattern: Mapping[str, Any], name: str) -> Any:
    """The value of the first key that matches the end of a module's name, as peft chooses it; None without one."""
    return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", name)), None)


def _refuse_unmatched(key: str, setting: str | tuple[str, ...] | dict[str, str], names: list[str]) -> None:
    """Refuse a pattern or a name that matches none of the model's modules; a dict has the pattern of each name."""
    if isinstance(setting, str):
        patterns = {setting: setting}
    elif isinstance(setting, tuple):
        patterns = {name: rf"(.*\.)?{re.escape(name)}" for name in setting}
    else:
        patterns = setting
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
