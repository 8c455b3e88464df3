"""`check_generation`: refuses a model from which staytrue cannot sample, before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from staytrue.errors import ModelError
from staytrue.evals.generation.kv_cache import CachedModel

_CHECKED: WeakSet[Any] = WeakSet()


@torch.no_grad()
def check_generation(model: Any) -> None:
    """Try a loss over two tokens, then a padded batch with a cache against each prompt alone; once per model.

    Args:
        model: a causal language model, with or without an adapter.

    Raises:
        ModelError: the model fails, or padding, the cache or the choice of its rows changes its logits.
    """
    if model in _CHECKED:
        return
    training = model.training
    model.eval()
    try:
        alone = _tried(model, "computes no loss over two tokens", _alone)
        batched = _tried(model, "has a cache from which staytrue cannot sample", _batched)
    finally:
        model.train(training)
    tolerance = 0.01 if alone.dtype == torch.float32 else 0.25  # in half precision a router may choose another expert
    difference = (alone.float() - batched.float()).abs().max() / alone.float().abs().max()
    if difference > tolerance:  # logits that are no numbers are reported where they are sampled
        raise _refusal(model, "computes other logits with padding and a cache than for the same text without")
    _CHECKED.add(model)


def _tried(model: Any, fault: str, attempt: Callable[[Any], Tensor]) -> Tensor:
    try:
        return attempt(model)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a model's own code raises anything
        first = next(iter(str(error).splitlines()), "").rstrip(".")
        raise _refusal(model, f"{fault} ({type(error).__name__}: {first})") from None


def _alone(model: Any) -> Tensor:
    """The next token's logits of two texts, each read whole and alone, (2, V)."""
    device = next(model.parameters()).device
    texts = [torch.tensor([text], device=device) for text in ([1, 2, 3, 4], [1, 2])]
    return torch.cat([model(input_ids=text, labels=text, use_cache=False).logits[:, -1] for text in texts])


def _batched(model: Any) -> Tensor:
    """The same logits, from a padded batch and a cache whose rows change places."""
    device = next(model.parameters()).device
    ids = torch.tensor([[0, 0, 1], [1, 2, 3]], device=device)
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]], device=device)
    cached = CachedModel(model, ids, mask)
    cached.advance(torch.tensor([4, 2], device=device), torch.tensor([1, 0], device=device))
    return cached.logits


def _refusal(model: Any, fault: str) -> ModelError:
    routed = getattr(model.config.get_text_config(), "output_router_logits", False)
    return ModelError(
        f"A model of type {model.config.model_type} {fault}. Use another model or other modules in lora.targets"
        + (", or set train.router_aux_loss_coef to 0.0." if routed else ".")
    )
