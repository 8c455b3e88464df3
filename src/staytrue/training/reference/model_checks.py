"""Which models have a reference: the same model with its adapter off, or a frozen copy. All others are refused.

Refused, each in a sentence, are prompt learning, weights trained beside an adapter, a base that the adapter's start has
moved, an adapter that has been trained already or is merged, quantised weights without an adapter, noise of the model's
own, and a model on several devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from staytrue.errors import ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.block_outputs import hooked
from staytrue.modeling.lm_head import Head

# LoRA initialisations that subtract something from the base weights: with the adapter off, what is left is no
# longer the model that was loaded, so it cannot serve as the reference.
_MOVES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Settings of noise that models call as a function; modules of dropout are found by themselves.
_CALLED = ("dropout", "hidden_dropout", "hidden_dropout_prob", "layerdrop", "residual_dropout")
_RANDOM = (False, "orthogonal")  # initialisations whose product is not 0
_CHOOSE = (
    'Name the reference: reference="base" for the model with the adapter off, or reference="start" for the model as it '
    "is now."
)


def check(parts: ModelParts, reference: Any = None) -> None:
    """Refuse a model that has no reference.

    Args:
        parts: the model's.
        reference: the user's choice, see `modeling.choose_reference`; None is the model with its adapter off.

    Raises:
        ModelError: a sentence that names the setting and the way out.
    """
    _check_one_device(parts)
    _check_dropout(parts)
    if parts.has_adapter:
        _check_adapters(parts, adapter_is_off=reference in (None, "base"))
        _check_trained_weights(parts)
    else:
        _check_without_adapter(parts)
    if parts.has_adapter and not parts.is_empty:
        _check_start(parts, chosen=reference is not None)


def check_noise(parts: ModelParts) -> None:
    """Refuse noise that a model draws by a function in training, if a penalty compares it with its reference.

    Raises:
        ModelError: names the setting, or what shows the noise, and the way out.
    """
    _check_settings(parts, lambda key: key in _CALLED)
    if not parts.is_empty:
        _check_two_forwards(parts)


@torch.no_grad()
def check_blocks(parts: ModelParts) -> None:
    """Refuse blocks whose outputs cannot be read or steered, by a forward of two tokens.

    Raises:
        ModelError: the shape of their outputs.
    """
    with hooked(parts.blocks, lambda layer, hidden: None):
        parts.backbone(input_ids=_two_tokens(parts), use_cache=False)


def refuse_activated(parts: ModelParts) -> None:
    """Refuse an adapter that is active in a part of each row, for defenses with rows of their own.

    Raises:
        ModelError: peft finds that part in the trainer's batch alone.
    """
    for name, config in parts.model.peft_config.items() if parts.has_adapter else ():
        if getattr(config, "alora_invocation_tokens", None):
            raise ModelError(
                f"Adapter {name!r} has alora_invocation_tokens, so peft looks up in the trainer's rows where it is "
                "active, and cannot in the rows that defenses feed beside them. Take it out, or those defenses."
            )


def head(parts: ModelParts) -> Callable[[], Head]:
    """Check the head now, while nothing has run; refuse only where a defense needs logits."""
    try:
        checked = parts.head
    except ModelError as error:
        refusal = error

        def refuse() -> Head:
            raise refusal

        return refuse
    return lambda: checked


def _check_adapters(parts: ModelParts, *, adapter_is_off: bool) -> None:
    for name, config in parts.model.peft_config.items():
        if config.is_prompt_learning:
            raise ModelError(f"Adapter {name!r} learns a prompt ({config.peft_type.value}); use LoRA instead.")
        if any(name in getattr(module, "merged_adapters", ()) for module in parts.switches):
            raise ModelError(
                f"Adapter {name!r} is merged into the weights, so switching it off does not undo it. Call "
                "unmerge_adapter() to train it, or merge_and_unload() to train the merged model's own weights."
            )
        if getattr(config, "layer_replication", None):
            raise ModelError(
                f"Adapter {name!r} has layer_replication, so with the adapter off the model has other layers than the "
                "one that was loaded, and there is no reference. Take it out."
            )
        if adapter_is_off and getattr(config, "kasa_config", None) is not None:
            raise ModelError(
                f"Adapter {name!r} has a kasa_config, which changes the base weights: with the adapter off the safe "
                'reference would be gone. Take it out, or use reference="start".'
            )
        start = str(getattr(config, "init_lora_weights", "")).lower()
        if adapter_is_off and start.startswith(_MOVES_THE_BASE):
            raise ModelError(
                f"Adapter {name!r} has init_lora_weights={start!r}, which changes the base weights: with the "
                "adapter off the safe reference would be gone. Use init_lora_weights=True (the default), or "
                'reference="start".'
            )


def _check_without_adapter(parts: ModelParts) -> None:
    weights = dict(parts.causal.named_parameters())
    packed = next((name for name, weight in weights.items() if not weight.is_floating_point()), None)
    if packed is not None or getattr(parts.causal, "is_quantized", False):
        raise ModelError(
            f"The model is quantised ({packed or 'by its configuration'}), and quantised weights cannot be trained "
            "themselves. Load it without quantisation, or give the trainer a peft_config."
        )
    if parts.switches:
        raise ModelError(
            "The model has layers of an adapter, but it is no PeftModel, so the defenses cannot tell its adapter from "
            "its own weights. Give the trainer the PeftModel, or merge the adapter first (merge_and_unload)."
        )
    if not any(weight.requires_grad for weight in weights.values()):
        raise ModelError("Every weight of the model is frozen (requires_grad=False), so nothing would be trained.")


def _check_one_device(parts: ModelParts) -> None:
    places = set(map(str, (getattr(parts.causal, "hf_device_map", None) or {}).values()))
    if len(places) > 1:
        raise ModelError(
            f"The model is spread over {', '.join(sorted(places))}; staytrue needs it on one device. Load it "
            "without device_map, or on one GPU."
        )
    divided = next((name for name, weight in parts.causal.named_parameters() if hasattr(weight, "full_tensor")), None)
    if divided is not None:
        raise ModelError(
            f"The model is divided among processes already ({divided}), by a tp_plan, a distributed_config or a device "
            "mesh, and the defenses need all of it before training. Load it without, and start with torchrun, which "
            "keeps the whole model on each process, or with FSDP2 (accelerate launch --use_fsdp --fsdp_version 2)."
        )


def _check_trained_weights(parts: ModelParts) -> None:
    added = parts.added
    left = [n for n, p in parts.model.named_parameters() if p.requires_grad and id(p) not in added]
    if left:
        raise ModelError(
            f"{len(left)} trained weights are not part of the adapter (the first is {left[0]}), so the reference "
            "could not undo them. Set bias='none' and train nothing outside the adapter."
        )


def _check_dropout(parts: ModelParts) -> None:
    for name, module in parts.causal.named_modules():
        of_base = not any(part in name for part in ("lora_", "modules_to_save"))
        if of_base and isinstance(module, nn.Dropout) and module.p > 0:
            _refuse_noise(parts, f"{name}={module.p}")
    _check_settings(parts, lambda key: key in ("attention_dropout", "attn_pdrop") or "jitter" in key)


def _check_settings(parts: ModelParts, is_noise: Callable[[str], bool]) -> None:
    for key, value in parts.causal.config.get_text_config().to_dict().items():
        if is_noise(key) and isinstance(value, float) and value > 0:
            _refuse_noise(parts, f"{key}={value}")


@torch.no_grad()
def _check_two_forwards(parts: ModelParts) -> None:
    """A few tokens twice, in training mode and without adapter: noise that no known setting names shows itself."""
    tokens, was_training = _two_tokens(parts).repeat(1, 4), parts.model.training
    parts.model.train()
    try:
        with parts.untrained(), torch.random.fork_rng(devices=[tokens.device] if tokens.is_cuda else []):
            before = _random_states(tokens.device)
            once, again = (parts.backbone(input_ids=tokens, use_cache=False).last_hidden_state for _ in range(2))
            drawn = not all(map(torch.equal, before, _random_states(tokens.device)))  # else a GPU's sums may differ
    finally:
        parts.model.train(was_training)
    if drawn and not torch.allclose(once, again, rtol=0, atol=0, equal_nan=True):
        raise ModelError(
            "The model has noise of its own in training (two forwards of the same tokens differ): it and its reference "
            "would draw different noise, and an unmoved model would have a penalty. Find what draws random numbers in "
            "its forward and turn it off, or choose a defense that compares no forwards, such as interleave."
        )


def _random_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _refuse_noise(parts: ModelParts, found: str) -> None:
    config = parts.causal.config.get_text_config().to_dict().items()
    noisy = [key for key, value in config if isinstance(value, float) and value > 0]
    keys = ", ".join(key for key in noisy if "drop" in key or "jitter" in key)
    raise ModelError(
        f"The model has noise of its own in training ({found}): it and its reference would draw different noise, "
        f"and an unmoved model would have a penalty. Load it with {keys or 'that setting'} at 0.0 (lora.dropout is "
        "fine): for a recipe, in the config.json of a local copy."
    )


@torch.no_grad()
def _check_start(parts: ModelParts, *, chosen: bool) -> None:
    """Two tokens with the adapter and without: one that has moved already is not at its reference, unless chosen."""
    tokens = _two_tokens(parts)
    was_training = parts.model.training
    parts.model.eval()
    try:
        ours = parts.backbone(input_ids=tokens, use_cache=False).last_hidden_state
        with parts.untrained():
            theirs = parts.backbone(input_ids=tokens, use_cache=False).last_hidden_state
    finally:
        parts.model.train(was_training)
    if torch.equal(ours, theirs):
        return
    if not bool(ours.isfinite().all()):
        raise ModelError(
            "The model computes numbers for two tokens that are not finite (NaN). Check its weights, and lora_alpha."
        )
    if not chosen:
        raise ModelError(_why_moved(parts))


def _two_tokens(parts: ModelParts) -> Tensor:
    return torch.tensor([[0, 1]], device=next(parts.backbone.parameters()).device)


def _why_moved(parts: ModelParts) -> str:
    """The sentence about an adapter that changes the model before this training."""
    configs = parts.model.peft_config.items()
    random = [(n, c.init_lora_weights) for n, c in configs if getattr(c, "init_lora_weights", True) in _RANDOM]
    if random:
        return (
            f"Adapter {random[0][0]!r} has init_lora_weights={random[0][1]!r}, so it starts as random numbers, and the "
            "model is not at its reference, the same model with the adapter off. Use init_lora_weights=True (the "
            f"default). {_CHOOSE}"
        )
    dora = next((name for name, config in configs if getattr(config, "use_dora", False)), None)
    if dora is not None and not any(bool(w.any()) for n, w in parts.model.named_parameters() if "lora_B" in n):
        return (
            f"Adapter {dora!r} is DoRA, and its magnitudes are rounded to the weights' precision, so the model with "
            "a new adapter is not the one with the adapter off, and has a penalty before it moves. Load the model in "
            'float32 (in a recipe `dtype: float32`), use LoRA without DoRA, or set reference="start".'
        )
    return (
        "The adapter has moved already, so the model is not at its reference, the same model with the adapter "
        f"off. {_CHOOSE}"
    )
