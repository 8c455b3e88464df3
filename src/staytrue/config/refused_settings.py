"""Trainer settings that staytrue refuses, each with its reason: in a recipe's `train:`, and in a script's config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from staytrue.errors import RecipeError


def by_key(keys: Mapping[str, str]) -> dict[str, str]:
    """Return a text for each key, from the keys of each text, separated by blanks.

    >>> by_key({"a run is one process": "local_rank ddp_backend"})
    {'local_rank': 'a run is one process', 'ddp_backend': 'a run is one process'}
    """
    return {key: text for text, listed in keys.items() for key in listed.split()}


# With defenses, these are refused in a script's trainer config too: they would change what a penalty measures.
UNGUARDED = {
    "neftune_noise_alpha": "its noise would penalise a model that has not moved",
    "fsdp": "only FSDP2 on several processes is tested (torchrun, and no version or version 2 in fsdp_config)",
    "deepspeed": "a model that is divided among devices is not tested here; use one device",
    "torch_compile": "each of a defense's forwards is compiled apart, and no step was measured to be faster for it",
    "auto_find_batch_size": "a restart would count the first attempt's rows; choose per_device_train_batch_size",
}

_SAVED = "a run saves its checkpoints by save_steps and save_total_limit, whole and verified"
_EVALUATED = "use `staytrue eval` on the finished run"
_UPLOADED = "upload the finished adapter yourself"
_ANSWERS_ONLY = "labels are always the answers only"
_MESSAGES = "data are `messages` rows"
_INTERLEAVED = "rows are interleaved by their source"
_IN_RECIPES = UNGUARDED | by_key(
    {
        "the launcher divides the weights: `accelerate launch --use_fsdp --fsdp_version 2`": "fsdp fsdp_config",
        UNGUARDED["deepspeed"]: "parallelism_config",
        UNGUARDED["torch_compile"]: "torch_compile_backend torch_compile_mode",
        "use --out": "output_dir",
        "use the recipe's own `seed:`": "seed data_seed",
        "a run never overwrites": "overwrite_output_dir",
        "`staytrue train --resume RUN` goes on with a run": "resume_from_checkpoint ignore_data_skip "
        "restore_callback_states_from_checkpoint",
        _SAVED: "enable_jit_checkpoint",
        _EVALUATED: "load_best_model_at_end do_eval do_predict per_device_eval_batch_size prediction_loss_only "
        "batch_eval_metrics include_for_metrics metric_for_best_model greater_is_better bf16_full_eval fp16_full_eval",
        "a run always trains": "do_train",
        "torchrun sets it": "local_rank",
        _ANSWERS_ONLY: "label_names",
        _INTERLEAVED: "length_column_name",
        "remote code is never run": "trust_remote_code",
        "name the model in `model:`": "model_init_kwargs",
        "the model's own template is used": "chat_template_path",
        _MESSAGES: "remove_unused_columns",
        "it replaces the forward that the hooks are on": "use_liger_kernel",
        "staytrue draws its own progress bar": "disable_tqdm",
        "rows are cut at their end": "truncation_mode",
    }
)
_BY_TRAINER = {
    "sft": by_key(
        {
            _ANSWERS_ONLY: "assistant_only_loss completion_only_loss",
            "packs hold whole rows (bfd)": "packing_strategy",
            "the model's own tokenizer is used": "eos_token pad_token",
            "staytrue tokenizes the rows itself": "dataset_num_proc",
            _MESSAGES: "dataset_text_field dataset_kwargs",
            _INTERLEAVED: "train_sampling_strategy",
            "it needs a second forward, which cannot be guarded": "label_smoothing_factor",
        }
    ),
    "grpo": by_key(
        {
            "`staytrue eval` stores answers": "log_completions",
            _UPLOADED: "log_completions_hub_repo",
            _EVALUATED: "num_generations_eval",
            "the reference is the model before training": "sync_ref_model",
        }
    ),
}
_CHECKPOINTS = ("save_steps", "save_total_limit")
_VALIDATION = ("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size")
_PREFIXES = {
    "eval_": _EVALUATED,
    "save_": _SAVED,
    "ddp_": "on several processes PyTorch's own values are used",
    "hub_": _UPLOADED,
    "push_to_hub": _UPLOADED,
}


def reason_against(key: str, trainer: str) -> str | None:
    """The reason why a recipe may not set a key of `train:`, and the way out; None if it may.

    Args:
        key: a key of trl's config.
        trainer: "sft" or "grpo".
    """
    if key in _CHECKPOINTS or (key in _VALIDATION and trainer == "sft"):
        return None
    by_prefix = next((reason for prefix, reason in _PREFIXES.items() if key.startswith(prefix)), None)
    return _IN_RECIPES.get(key) or _BY_TRAINER[trainer].get(key) or by_prefix


_DIVIDED = {"FSDP": "FSDP1", "DEEPSPEED": "DeepSpeed (ZeRO)", "MEGATRON_LM": "Megatron-LM"}  # by accelerate's name


def refuse_unguarded(args: Any, *, combines: bool, beside: int = 0, distributed: str = "NO") -> None:
    """Refuse a script's trainer config whose settings would change what a penalty measures.

    Args:
        args: the trainer's config.
        combines: whether a defense combines its gradient with the loss's.
        beside: how many defenses feed rows beside the batch; the rows of all of them share one forward.
        distributed: accelerate's name of how processes share the training; its launcher sets it too.

    Raises:
        RecipeError: the setting, and why.
    """
    refuse_launchers_settings(args)
    for key, why in UNGUARDED.items():
        if getattr(args, key, None) and not (key == "fsdp" and distributed == "FSDP2"):
            raise RecipeError(f"{key}={getattr(args, key)!r} cannot be guarded: {why}. Turn it off, or the defenses.")
    if distributed in (*_DIVIDED, "PARALLELISM_CONFIG") or getattr(args, "parallelism_config", None) is not None:
        way = _DIVIDED.get(distributed, "parallelism_config (tensor, context or sequence parallel)")
        raise RecipeError(
            f"{way} cannot be guarded: {UNGUARDED['deepspeed']}, or torchrun, which keeps the whole model on each "
            "process, or FSDP2 (fsdp_version 2)."
        )
    if combines:
        _refuse_separate_gradients(args, beside)


def _refuse_separate_gradients(args: Any, beside: int) -> None:
    """Refuse settings under which no gradient of a defense's own can be computed before the loss's backward pass."""
    if args.fp16:
        raise RecipeError(
            "fp16=True scales the loss's gradient, which a defense would combine with one unscaled. Use bf16."
        )
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        kwargs = getattr(args, f"{name}_kwargs", None) or {}
        if getattr(args, name, False) and kwargs.get("use_reentrant"):
            raise RecipeError(
                f"{name}_kwargs has use_reentrant: true, which hides the weights of recomputed blocks from a gradient "
                "that a defense combines with the loss's, so the defense would do nothing. Set it to false."
            )
    if beside > 1 and getattr(args, "activation_offloading", False):
        raise RecipeError(
            "activation_offloading=True gives each stored activation back once, and the rows of several defenses "
            "share a forward whose activations are read twice: for the gradient that a defense combines with the "
            "loss's, and for the loss's. Turn it off, or keep one defense with rows beside the batch."
        )


def refuse_launchers_settings(args: Any) -> None:
    """Refuse a precision or compilation that only the environment sets, as `accelerate launch` does.

    Args:
        args: the trainer's config; without a setting of its own it takes accelerate's, and no file of a run names it.

    Raises:
        RecipeError: the variable, its value, and what to write.
    """
    own = next((name for name in ("bf16", "fp16") if getattr(args, name, False)), "no")
    launched = getattr(args, "mixed_precision", own)
    if launched not in ("no", own):
        ours = (
            f"Set {launched} there (in a recipe `train: {{{launched}: true}}`), or launch"
            if launched != "fp8"
            else "Launch"
        )
        raise RecipeError(
            f"ACCELERATE_MIXED_PRECISION is {launched}, as `accelerate launch` sets it, and the trainer's own settings "
            f"say {own}. {ours} with --mixed_precision no."
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "NO")
    if backend.upper() != "NO" and not getattr(args, "torch_compile", False):
        raise RecipeError(
            f"ACCELERATE_DYNAMO_BACKEND is {backend}, as `accelerate launch` sets it, so the model would be compiled, "
            "which the trainer's own settings do not say. Launch with --dynamo_backend no, or unset the variable."
        )
