"""One hash of all that the states of a frozen model depend on: weights, configuration, and the code that reads them.

A name or a commit would not tell weights that were changed in memory. Of 15 GB the hash takes some twenty seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from staytrue.errors import ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.quantized import is_packed

_OF_THE_BATCH = ("dynamic", "longrope")  # rotary embeddings whose frequencies follow the longest row beside


def of_model(parts: ModelParts) -> str:
    """A hash of all weights and buffers that no adapter added, and of how they are used.

    It holds on one kind of device: another one rounds otherwise, but gives the same to that rounding.
    """
    digest = sha256()
    for name, weight in parts.untrained_weights():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(data(weight))
    config = parts.causal.config
    used = {k: v for k, v in config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    used["attention"] = getattr(config, "_attn_implementation", None)
    used["code"] = metadata.version("transformers")
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    used["float32"] = [matmul.fp32_precision.replace("none", "ieee") for matmul in products]
    digest.update(json.dumps(used, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def check(parts: ModelParts) -> None:
    """Refuse a model whose states of a row depend on more than is hashed here.

    Raises:
        ModelError: quantised weights, whose scales are no weights; positions that depend on the rows beside.
    """
    rope = next((kind for kind in _rope_types(parts.causal.config.to_dict()) if kind in _OF_THE_BATCH), None)
    if rope is not None:
        raise ModelError(
            f"The model's positions ({rope}) depend on the longest row of a batch, so states of a row are not the same "
            "in every run. Train without a reference cache."
        )
    name = next((name for name, weight in parts.untrained_weights() if is_packed(weight)), None)
    if name is not None:
        raise ModelError(
            f"{name} is quantised, and its scales are not in the fingerprint. Train without a reference cache."
        )


def data(tensor: Tensor) -> Any:
    """The bytes of a tensor, to be hashed; copied only from another device."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _rope_types(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "rope_type" and isinstance(value, str):
                yield value
            yield from _rope_types(value)
