"""The `train:` section: which keys of `SFTConfig` a recipe may set, and holdfast's defaults for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from holdfast import catalog
from holdfast.errors import RecipeError

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

# Keys that are holdfast's own business, and where to say the thing instead.
OWNED = {
    "output_dir": "use --out",
    "seed": "use the recipe's own `seed:`",
    "data_seed": "use the recipe's own `seed:`",
    "overwrite_output_dir": "a run never overwrites",
    "save_strategy": "the run folder keeps the finished adapter",
    "save_steps": "the run folder keeps the finished adapter",
    "save_total_limit": "the run folder keeps the finished adapter",
    "resume_from_checkpoint": "train again; the same seed gives the same adapter",
    "load_best_model_at_end": "use `holdfast eval` on the finished run",
    "eval_strategy": "use `holdfast eval` on the finished run",
    "do_eval": "use `holdfast eval` on the finished run",
    "trust_remote_code": "remote code is never run",
    "model_init_kwargs": "name the model in `model:`",
    "chat_template_path": "the model's own template is used",
    "assistant_only_loss": "labels are always the answers only",
    "completion_only_loss": "labels are always the answers only",
    "packing": "packing loses where each row came from",
    "padding_free": "padding-free batches lose where each row came from",
    "dataset_text_field": "data are `messages` rows",
    "dataset_kwargs": "data are `messages` rows",
    "remove_unused_columns": "data are `messages` rows",
    "train_sampling_strategy": "rows are spread by their source",
    "label_smoothing_factor": "it needs a second forward, which cannot be guarded",
    "use_liger_kernel": "it replaces the forward that holdfast watches",
    "disable_tqdm": "holdfast draws its own progress",
}
_OWNED_PREFIXES = {
    "hub_": "upload the finished adapter yourself",
    "push_to_hub": "upload the finished adapter yourself",
}


def check(given: Mapping[str, Any]) -> None:
    """Refuse keys of `train:` that are unknown or holdfast's own business.

    Raises:
        RecipeError: the sentence says where to say it instead, or the nearest right key.
    """
    from trl import SFTConfig

    known = [f.name for f in fields(SFTConfig) if f.init]
    for key in given:
        reason = OWNED.get(key) or next((r for p, r in _OWNED_PREFIXES.items() if key.startswith(p)), None)
        if reason:
            raise RecipeError(f"train.{key} is not set in a recipe: {reason}.")
        if key not in known:
            raise RecipeError(f"train has no key {key!r}{catalog.nearest(key, known)}")


def sft_config(given: Mapping[str, Any], seed: int, scratch: Path) -> Any:
    """The trainer's settings for a recipe's `train:` section on this machine.

    Raises:
        RecipeError: a value that the trainer refuses, with its own words.
    """
    import torch
    from trl import SFTConfig

    gpu = torch.cuda.is_available()
    machine = {
        "use_cpu": not gpu and not torch.backends.mps.is_available(),
        "bf16": gpu and torch.cuda.is_bf16_supported(),
    }
    ours: dict[str, Any] = {"output_dir": str(scratch), "seed": seed, "save_strategy": "no", "disable_tqdm": True}
    recompute = [
        k for k in ("activation_checkpointing", "gradient_checkpointing") if k in SFTConfig.__dataclass_fields__
    ]
    if not any(k in given for k in recompute):
        machine[recompute[0]] = False  # TRL's default is on, which costs a third of the speed; a recipe may set it
    try:
        return SFTConfig(**{**DEFAULTS, **machine, **given, **ours})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: the trainer refuses these settings: {' '.join(str(error).split())}") from None
