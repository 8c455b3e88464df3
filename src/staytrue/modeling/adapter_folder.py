"""Checks an adapter's folder before PEFT loads from it: its configuration, key by key, and its weights. No torch.

PEFT's configuration can name modules to import and pickles to read. So only the keys of plain LoRA are accepted.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import shown
from staytrue.errors import ModelError
from staytrue.modeling.model_folder import check_links, read_settings
from staytrue.modeling.safetensors_header import FLOATS, read_header

_LORA = {
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "lora_bias", "fan_in_fan_out"),
    *("target_modules", "exclude_modules", "target_parameters", "modules_to_save", "trainable_token_indices"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
    *("init_lora_weights", "ensure_weight_tying"),
}
_DEFAULTS = {"megatron_core": "megatron.core", "qalora_group_size": 16}  # written by PEFT, and not used
_RANKS = ("lora_A", "lora_embedding_A")


def check_adapter_folder(folder: Path) -> None:
    """Check an adapter's folder.

    Raises:
        ModelError: it is no LoRA adapter with safetensors weights, or names code or files; the sentence names file and
            key.
    """
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not config.is_file() or not weights.is_file():
        old = next((file for kind in ("bin", "pt", "pth", "pkl") for file in folder.glob(f"adapter*.{kind}")), None)
        reason = f" ({old.name} is a pickle, which staytrue does not load)" if old else ""
        if (folder / "config.json").is_file() and not config.is_file():
            reason = " (it is a whole model; name it as the model)"
        raise ModelError(
            f"{folder} is not an adapter: it lacks adapter_config.json or adapter_model.safetensors{reason}. Name the "
            "folder that has both; a run keeps its adapter in RUN/model."
        )
    check_links(folder)
    settings = read_settings(config)
    if settings.get("peft_type") != "LORA":
        raise ModelError(
            f"{config} has the `peft_type` {shown(settings.get('peft_type'))}; staytrue loads adapters of LORA."
        )
    for key, value in settings.items():
        if fault := _fault(key, value):
            raise ModelError(f"{config} has the key `{key}` ({shown(value)}), {fault}")
    ranks = []
    for name, (dtype, shape) in read_header(weights).items():
        if dtype not in FLOATS:
            raise ModelError(f"{weights}: the matrix {shown(name)} has the dtype {dtype}, but weights are floats.")
        if any(part in _RANKS for part in name.split(".")):
            ranks.append(max(shape, default=0) if len(shape) != 2 else shape[0])
    _check_ranks(config, settings, weights, max(ranks, default=0))


def settings_hash(folder: Path) -> str:
    """SHA-256 of an adapter's configuration, without the name of its base, which a user may write anew."""
    settings = read_settings(folder / "adapter_config.json")
    kept = {key: value for key, value in settings.items() if key not in ("base_model_name_or_path", "revision")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _fault(key: str, value: Any) -> str | None:
    """The reason why a setting is refused."""
    if key in _LORA or value in (None, False, "", [], {}) or value == _DEFAULTS.get(key):
        return None
    if key == "auto_mapping" and _is_transformers_class(value):
        return None
    return "which is no setting of plain LoRA: PEFT may import a module or read a file by it. Take the key out."


def _is_transformers_class(mapping: Any) -> bool:
    """Whether an `auto_mapping` is the one that PEFT itself writes for a model of transformers; it is not used."""
    if not isinstance(mapping, dict) or mapping.keys() != {"base_model_class", "parent_library"}:
        return False
    library, name = mapping["parent_library"], mapping["base_model_class"]
    texts = isinstance(library, str) and isinstance(name, str)
    return texts and library.startswith("transformers.models.") and name.isidentifier()


def _check_ranks(config: Path, settings: dict[str, Any], weights: Path, largest: int) -> None:
    """Refuse ranks that the weights do not have, since PEFT allocates matrices of the configuration's ranks first."""
    if not largest:
        raise ModelError(f"{weights} has no matrix of LoRA (lora_A). Give the folder that PEFT saved.")
    pattern = settings.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise ModelError(f"{config} has the key `rank_pattern` ({shown(pattern)}), which is not an object.")
    for key, rank in {
        "r": settings.get("r", 8),
        **{f"rank_pattern.{name}": rank for name, rank in pattern.items()},
    }.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
            raise ModelError(
                f"{config} has the key `{key}` ({shown(rank)}), but the ranks in {weights.name} are 1 to {largest}. "
                "Give the weights and the configuration of one adapter."
            )
