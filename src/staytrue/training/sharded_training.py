"""Several processes: whether weights are divided among them (FSDP2), and which defenses and settings are refused."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, gather_object

from staytrue.config.refused_settings import refuse_unguarded
from staytrue.defense import Defense, pulled
from staytrue.errors import RecipeError
from staytrue.modeling import quantized

_USE, _EFFICIENT_LOADING = "ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING"
_COMPARED = 8  # weights of the model, from its first to its last


def prepare(args: Any) -> None:
    """Before a trainer is made: let accelerate divide a model on CPUs too, and load all weights in each process.

    accelerate divides a model among GPUs only, and falls back to whole copies on CPUs without a word. Every process
    needs all weights before training, since the reference and frozen heads are taken from them.
    """
    plugin = getattr(args, "fsdp_plugin_args", None)
    if plugin is None and os.environ.get(_USE, "").lower() not in ("1", "true"):
        return
    os.environ[_EFFICIENT_LOADING] = "false"
    if plugin is not None:
        plugin["cpu_ram_efficient_loading"] = False
    if PartialState().distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _way(accelerator: Any) -> str:
    """Return how processes share a training: accelerate's name for it, FSDP2, or PARALLELISM_CONFIG."""
    if getattr(accelerator, "parallelism_config", None) is not None:
        return "PARALLELISM_CONFIG"
    return "FSDP2" if accelerator.is_fsdp2 else str(accelerator.distributed_type.value)


def shards(accelerator: Any) -> int:
    """Return among how many processes the weights will be divided; 0 if each keeps the whole model."""
    return int(accelerator.num_processes) if accelerator.is_fsdp2 else 0


def refuse_processes(trainer: Any, *, guarded: bool) -> None:
    """Refuse a way of training on several processes that the defenses do not support.

    Args:
        trainer: a guarded trainer, before its guard is attached.
        guarded: whether it has a defense, or a guard of its caller's.

    Raises:
        RecipeError: a sentence with the setting or the defense, and what to do instead.
    """
    guard = trainer.guard
    if guard.defenses:
        distributed = _way(trainer.accelerator)
        refuse_unguarded(
            trainer.args, combines=guard.pulls("combine"), beside=guard.pulling("beside"), distributed=distributed
        )
    if guard.shards and guarded:
        _refuse_divided(trainer)


def _refuse_divided(trainer: Any) -> None:
    """Refuse what cannot be guarded where weights are divided.

    Args:
        trainer: a guarded trainer, before its guard is attached.

    Raises:
        RecipeError: a sentence with the setting or the defense, and what to do instead.
    """
    guard, plugin = trainer.guard, trainer.accelerator.state.fsdp_plugin
    refuse(list(guard.defenses.values()), sampled=trainer._prompts, reference=guard.chosen_reference)
    if guard.reference_cache is not None:
        raise _refusal("a reference cache", "a process with stored states would leave out a forward")
    if quantized.is_quantized(trainer.model):
        raise _refusal("a quantised model", "packed weights have not been tested")
    if plugin.activation_checkpointing:
        raise _refusal("fsdp_activation_checkpointing", "it renames the weights; the trainer's own does not")
    if hasattr(plugin.cpu_offload, "pin_memory"):
        raise _refusal("fsdp_offload_params", "the weights would be on another device than their rows")
    if trainer.args.fp16:
        raise _refusal("fp16", "the scale of its loss has not been tested; use bf16")
    _refuse_unequal(trainer.model)


def autocast(trainer: Any) -> None:
    """Compute in half precision by autocast, as without FSDP2, if the trainer is to.

    FSDP2's own way rounds the weights themselves for the time of the forward. A reference that is a copy keeps them
    as they are, so that a model that has not moved would have a penalty.
    """
    accelerator = trainer.accelerator
    if accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
        accelerator.prepare_model(trainer.model, device_placement=False, evaluation_mode=True)


def refuse(defenses: Sequence[Defense], *, sampled: bool, reference: Any, probes: bool = False) -> None:
    """Refuse defenses and settings of a training before its model is loaded.

    Args:
        defenses: of the training.
        sampled: whether the model samples the answers that it is trained on, as in GRPO.
        reference: the user's choice, see `modeling.choose_reference`.
        probes: whether early stopping asks questions or reads pairs.

    Raises:
        RecipeError: a sentence with the setting or the defense, and what to do instead.
    """
    combining = next((defense.name() for defense in defenses if "combine" in pulled(defense)), None)
    if combining is not None:
        raise _refusal(combining, "its gradient is computed apart from the loss's, and FSDP2 makes no such gradient")
    if sampled:
        raise _refusal("GRPO", "processes that sample answers of different lengths would wait for each other")
    if reference not in (None, "base"):
        name = repr(reference) if isinstance(reference, str) else "a model"
        raise _refusal(f"reference={name}", "it swaps whole weights; only 'base' can be used")
    if probes:
        raise _refusal("early stopping on answers or pairs", "the main process alone reads them; use stop.patience")


def _refusal(what: str, why: str) -> RecipeError:
    return RecipeError(
        f"FSDP2 cannot be used with {what}: {why}. Take it out, or start with torchrun alone, which keeps the whole "
        "model on each process (DDP)."
    )


def _refuse_unequal(model: Any) -> None:
    """Refuse a model whose weights differ between processes; DDP takes those of the main process, FSDP2 does not."""
    weights = list(model.parameters())
    sample = weights[:: max(1, len(weights) // _COMPARED)] + [w for w in weights if w.requires_grad][:_COMPARED]
    with torch.no_grad():
        sums = [float(weight.float().abs().sum()) for weight in sample]
    if any(others != sums for others in gather_object([sums])):
        raise RecipeError(
            "The model's weights differ between the processes, and FSDP2 would join parts of different models. Load "
            "the model before the trainer's config is made, or with --fsdp_cpu_ram_efficient_loading false, and set "
            "the same seed before an adapter is added."
        )
