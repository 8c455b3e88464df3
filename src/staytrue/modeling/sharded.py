"""Weights that FSDP2 divides among processes: their parts, and the whole of them.

Before training every weight is a plain tensor. When training begins, each becomes a `DTensor`: every process keeps a
part, and FSDP2's hooks gather the whole for as long as a block runs. A weight that is read outside of its module's
forward is gathered here. Every process has to call these functions together, since each gathers from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from staytrue.modeling.architecture import ModelParts
    from staytrue.modeling.lm_head import Head


def local(tensor: Tensor) -> Tensor:
    """Return the values that this process keeps, detached; of a weight that is not divided, all of them."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()


def whole(tensor: Tensor) -> Tensor:
    """Return all values, detached."""
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def gathered(weight: Tensor) -> Tensor:
    """Return the whole of a weight, through which a gradient flows; it is averaged over the processes, as FSDP2's is.

    A weight that its module has gathered already is returned as it is: FSDP2 itself averages its gradient.
    """
    if not hasattr(weight, "full_tensor"):
        return weight
    from torch.distributed.tensor import Partial

    result: Tensor = weight.full_tensor(grad_placements=[Partial()])
    if result.requires_grad:
        processes = weight.device_mesh.size()  # type: ignore[attr-defined]
        result.register_hook(lambda gradient: gradient / processes)  # type: ignore[no-untyped-call]
    return result


def whole_head(parts: ModelParts, head: Callable[[], Head], *, divided: bool) -> Head:
    """Return the head with its weight of this step; a frozen one is kept whole by each process."""
    known = head()
    if not divided or not known.is_trained:
        return known
    linear = parts.causal.get_output_embeddings()
    bias = None if linear.bias is None else gathered(linear.bias)
    return replace(known, weight=gathered(linear.weight), bias=bias)


def reshard(model: nn.Module) -> None:
    """Put the divided weights back in their modules, also those that a forward without a backward pass left whole."""
    for module in model.modules():
        if callable(put_back := getattr(module, "reshard", None)):
            put_back()


def put(weight: Tensor, values: Tensor) -> None:
    """Overwrite a weight with the whole of its values; each process keeps its part."""
    if hasattr(weight, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
        values = distribute_tensor(values.to(weight.device), mesh, placements, src_data_rank=None)
    with torch.no_grad():
        weight.copy_(values)


@contextmanager
def whole_weights(model: nn.Module, *, kept: bool = True, put_back: bool = False) -> Iterator[None]:
    """Replace every divided weight by the whole of it, for saving or reading; the model must not be called.

    Args:
        model: whose weights may be divided.
        kept: whether this process needs them; otherwise it only sends its parts to those that do.
        put_back: write the whole weights into their parts afterwards; they were changed alike on each process.
    """
    reshard(model)
    places: list[tuple[dict[str, Any], str, Any]] = []
    seen: dict[int, nn.Parameter | None] = {}  # tied weights stay tied; each process gathers each weight once
    try:
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is None or not hasattr(weight, "full_tensor"):
                    continue
                places.append((module._parameters, name, weight))
                if id(weight) not in seen:
                    values = whole(weight)
                    seen[id(weight)] = nn.Parameter(values, requires_grad=weight.requires_grad) if kept else None
        for weights, name, weight in places if kept else ():
            weights[name] = seen[id(weight)]
        yield
    finally:
        for weights, name, weight in places:
            weights[name] = weight
    if put_back:
        for number, parameter in seen.items():
            assert parameter is not None
            put(next(weight for _, _, weight in places if id(weight) == number), parameter.detach())
