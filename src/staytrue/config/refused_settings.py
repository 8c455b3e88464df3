"""Trainer settings that staytrue refuses, each with its reason: in a recipe's `train:`, and in a script's config."""

from __future__ import annotations

from typing import Any

from staytrue.errors import RecipeError

# With defenses, these are refused in a script's trainer config too: they would change what a penalty measures.
UNGUARDED = {
    "neftune_noise_alpha": "its noise would penalise a model that has not moved",
    "fsdp": "sharded models are not tested here; use one device",
    "deepspeed": "sharded models are not tested here; use one device",
    "torch_compile": "a compiled forward bypasses the forward hooks",
    "auto_find_batch_size": "a restart would count the first attempt's rows; choose per_device_train_batch_size",
}

_SAVED = "the run folder keeps the finished adapter"
_EVALUATED = "use `staytrue eval` on the finished run"
_IN_RECIPES = {
    **UNGUARDED,
    "fsdp_config": UNGUARDED["fsdp"],
    "torch_compile_backend": UNGUARDED["torch_compile"],
    "torch_compile_mode": UNGUARDED["torch_compile"],
    "output_dir": "use --out",
    "seed": "use the recipe's own `seed:`",
    "data_seed": "use the recipe's own `seed:`",
    "overwrite_output_dir": "a run never overwrites",
    "resume_from_checkpoint": "train again; the same seed gives the same adapter",
    "ignore_data_skip": "train again; the same seed gives the same adapter",
    "restore_callback_states_from_checkpoint": "train again; the same seed gives the same adapter",
    "enable_jit_checkpoint": _SAVED,
    "load_best_model_at_end": _EVALUATED,
    "do_eval": _EVALUATED,
    "do_predict": _EVALUATED,
    "per_device_eval_batch_size": _EVALUATED,
    "prediction_loss_only": _EVALUATED,
    "batch_eval_metrics": _EVALUATED,
    "include_for_metrics": _EVALUATED,
    "metric_for_best_model": _EVALUATED,
    "greater_is_better": _EVALUATED,
    "bf16_full_eval": _EVALUATED,
    "fp16_full_eval": _EVALUATED,
    "do_train": "a run always trains",
    "local_rank": "a run is one process",
    "parallelism_config": UNGUARDED["fsdp"],
    "label_names": "labels are always the answers only",
    "length_column_name": "rows are interleaved by their source",
    "trust_remote_code": "remote code is never run",
    "model_init_kwargs": "name the model in `model:`",
    "chat_template_path": "the model's own template is used",
    "remove_unused_columns": "data are `messages` rows",
    "use_liger_kernel": "it replaces the forward that the hooks are on",
    "disable_tqdm": "staytrue draws its own progress bar",
    "truncation_mode": "rows are cut at their end",
}
_BY_TRAINER = {
    "sft": {
        "assistant_only_loss": "labels are always the answers only",
        "completion_only_loss": "labels are always the answers only",
        "packing": "packing loses the source of each row",
        "packing_strategy": "packing loses the source of each row",
        "eos_token": "the model's own tokenizer is used",
        "pad_token": "the model's own tokenizer is used",
        "dataset_num_proc": "staytrue tokenizes the rows itself",
        "padding_free": "padding-free batches lose the source of each row",
        "dataset_text_field": "data are `messages` rows",
        "dataset_kwargs": "data are `messages` rows",
        "train_sampling_strategy": "rows are interleaved by their source",
        "label_smoothing_factor": "it needs a second forward, which cannot be guarded",
    },
    "grpo": {
        "log_completions": "`staytrue eval` stores answers",
        "log_completions_hub_repo": "upload the finished adapter yourself",
        "num_generations_eval": "use `staytrue eval` on the finished run",
        "sync_ref_model": "the reference is the model before training",
    },
}
_PREFIXES = {
    "eval_": _EVALUATED,
    "save_": _SAVED,
    "ddp_": "a run is one process",
    "hub_": "upload the finished adapter yourself",
    "push_to_hub": "upload the finished adapter yourself",
}


def reason_against(key: str, trainer: str) -> str | None:
    """Why a recipe may not set a key of `train:`, and what to do instead; None if it may.

    Args:
        key: a key of trl's config.
        trainer: "sft" or "grpo".
    """
    by_prefix = next((reason for prefix, reason in _PREFIXES.items() if key.startswith(prefix)), None)
    return _IN_RECIPES.get(key) or _BY_TRAINER[trainer].get(key) or by_prefix


def refuse_unguarded(args: Any) -> None:
    """Refuse a script's trainer config whose settings would change what a penalty measures.

    Raises:
        RecipeError: the setting, and why.
    """
    for key, why in UNGUARDED.items():
        if getattr(args, key, None):
            raise RecipeError(f"{key}={getattr(args, key)!r} cannot be guarded: {why}. Turn it off, or the defenses.")
