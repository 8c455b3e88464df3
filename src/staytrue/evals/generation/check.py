"""`check_generation`: refuses a model from which staytrue cannot sample, before anything is paid for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from staytrue.errors import ModelError
from staytrue.evals.generation.batch_size import RowBytes
from staytrue.evals.generation.kv_cache import CachedModel

_T = TypeVar("_T")
_CHECKED: WeakKeyDictionary[Any, RowBytes] = WeakKeyDictionary()


@torch.no_grad()
def check_generation(model: Any) -> RowBytes:
    """Try a loss over two tokens, then a padded batch with a cache against each prompt alone; once per model.

    Args:
        model: a causal language model, with or without an adapter.

    Returns:
        The memory that one row of its cache takes.

    Raises:
        ModelError: the model fails; or padding, the cache, or rows that change places or are replaced change its
            logits.
    """
    if model in _CHECKED:
        return _CHECKED[model]
    training = model.training
    model.eval()
    try:
        alone = _tried(model, "computes no loss over two tokens", _alone)
        cached = _tried(model, "has a cache from which staytrue cannot sample", _batched)
    finally:
        model.train(training)
    rounded = getattr(model, "is_loaded_in_8bit", False)  # LLM.int8() rounds activations by all rows of a batch
    exact = alone.dtype == torch.float32 and not rounded
    tolerance = 0.01 if exact else 0.25  # in half precision a router may choose another expert
    difference = (alone.float() - cached.logits.float()).abs().max() / alone.float().abs().max()
    if difference > tolerance:  # logits that are no numbers are reported where they are sampled
        raise _refusal(model, "computes other logits with padding and a cache than for the same text without")
    _CHECKED[model] = cached.row_bytes()
    return _CHECKED[model]


def _tried(model: Any, fault: str, attempt: Callable[[Any], _T]) -> _T:
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
    texts = [torch.tensor([text], device=device) for text in ([1, 2, 3, 4, 5], [1, 2, 3])]
    return torch.cat([model(input_ids=text, labels=text, use_cache=False).logits[:, -1] for text in texts])


def _batched(model: Any) -> CachedModel:
    """The same texts in a padded batch and a cache; their rows change places, and one is replaced where it can be."""
    device = next(model.parameters()).device

    def rows(*numbers: Any) -> Tensor:
        return torch.tensor(numbers, device=device)

    cached = CachedModel(model, rows([0, 0, 1], [1, 2, 3]), rows([0, 0, 1], [1, 1, 1]))
    cached.advance(rows(4, 2), rows(1, 0))
    if cached.refillable:
        cached.put(rows(1), CachedModel(model, rows([1, 2])), rows(0))
    cached.advance(rows(5, 3))
    return cached


def _refusal(model: Any, fault: str) -> ModelError:
    routed = getattr(model.config.get_text_config(), "output_router_logits", False)
    return ModelError(
        f"A model of type {model.config.model_type} {fault}. Use another model or other modules in lora.targets"
        + (", or set train.router_aux_loss_coef to 0.0." if routed else ".")
    )
