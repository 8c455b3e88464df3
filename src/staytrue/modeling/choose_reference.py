"""`reference_of` chooses the reference of a training: the model before it, or the one that the user names.

A second training goes on with a trained adapter, where "the model before training" is ambiguous. Its user chooses:

* "base": the model with the adapter off.
* "start": the model with the adapter as this training finds it.
* the name of another adapter of the model: that adapter in place of the trained one.
* a loaded model: that model, beside the trained one in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from staytrue.errors import ModelError
from staytrue.modeling.architecture import Changed, ModelParts
from staytrue.modeling.lm_head import Head
from staytrue.modeling.reference_model import AdapterOff, FrozenCopy, NoReference


def reference_of(parts: ModelParts, *, read: bool, choice: Any = None) -> AdapterOff:
    """Return the reference of a model that is about to be trained.

    Args:
        parts: the model's.
        read: whether a defense reads the reference, or the weights before training.
        choice: the user's: "base", "start", another adapter's name, or a model; None is the model before training.

    Raises:
        ModelError: there is no such reference.
    """
    if choice is not None and not isinstance(choice, str):
        return OtherModel(parts, choice)
    if parts.has_adapter:
        return _of_adapter(parts, choice)
    if choice not in (None, "start"):
        raise ModelError(
            f"reference={choice!r} is for a model with an adapter, and this one trains its own weights. Leave it out: "
            "the reference is a copy of the model before training. Or pass a loaded model."
        )
    return FrozenCopy(parts) if read else NoReference(parts)


def _of_adapter(parts: ModelParts, choice: str | None) -> AdapterOff:
    if choice in (None, "base"):
        return AdapterOff(parts)
    return AdapterAtStart(parts) if choice == "start" else OtherAdapter(parts, str(choice))


class AdapterAtStart(AdapterOff):
    """The trained model with its adapter as it was before training, without dropout; a copy of the adapter is kept."""

    def __init__(self, parts: ModelParts) -> None:
        super().__init__(parts)
        added = parts.added
        self._weights = [weight for weight in parts.model.parameters() if id(weight) in added]
        self._start = [weight.detach().clone() for weight in self._weights]
        self.bytes = sum(weight.nbytes for weight in self._start)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run with the weights of the start in place of the trained ones, and without autocast's cache.

        That cache holds the trained weights in half precision, and does not see that others are in their place.
        """
        if self._start and self._start[0].device != self._weights[0].device:
            self._start = [start.to(weight.device) for start, weight in zip(self._start, self._weights, strict=True)]
        trained = [weight.data for weight in self._weights]
        try:
            self._put(self._start)
            with _without_dropout(self.parts), _without_autocast_cache():
                yield
        finally:
            self._put(trained)

    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.data = value

    def weights(self) -> list[Tensor]:
        """Return the weights under the adapter, and the adapter's at the start."""
        return [*super().weights(), *self._start]

    def is_running(self) -> bool:
        """Return whether the weights of the start are in place."""
        return any(w.data_ptr() == start.data_ptr() for w, start in zip(self._weights[:1], self._start, strict=False))


class OtherAdapter(AdapterOff):
    """The trained model with another of its adapters, by name, without dropout.

    Raises:
        ModelError: the model has no adapter of that name, or it is the one that is trained.
    """

    def __init__(self, parts: ModelParts, name: str) -> None:
        super().__init__(parts)
        others = sorted(set(parts.model.peft_config) - set(parts.model.active_adapters))
        if name not in others:
            known = f"; its other adapters are {', '.join(map(repr, others))}" if others else ""
            raise ModelError(
                f'reference={name!r} is no adapter of the model beside the one that is trained{known}. Write "base" '
                'for the model with its adapter off, "start" for the adapter as it is now, or pass a loaded model.'
            )
        self._name = name

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run with that adapter in place of the trained one."""
        before = [vars(module)["_active_adapter"] for module in self.parts.switches]
        for module in self.parts.switches:
            vars(module)["_active_adapter"] = [self._name]
        try:
            with _without_dropout(self.parts):
                yield
        finally:
            for module, names in zip(self.parts.switches, before, strict=True):
                vars(module)["_active_adapter"] = names

    def weights(self) -> list[Tensor]:
        """Return the weights under the adapters, and that adapter's."""
        added, named = self.parts.added, self.parts.model.named_parameters()
        its = [weight for name, weight in named if id(weight) in added and _adapter_of(name) == self._name]
        return [*super().weights(), *its]

    def is_running(self) -> bool:
        """Return whether that adapter is the active one."""
        return any(module.active_adapters == [self._name] for module in self.parts.switches[:1])


def _adapter_of(name: str) -> str:
    """The adapter that a weight belongs to, by its name such as `...q_proj.lora_A.default.weight`."""
    parts = name.split(".")
    kinds = [i for i, part in enumerate(parts[:-1]) if part.startswith("lora_") or part == "modules_to_save"]
    return parts[kinds[-1] + 1] if kinds else ""


class OtherModel(FrozenCopy):
    """A model that the user names as the reference, of the same shape and vocabulary.

    Raises:
        ModelError: it is not of the same shape, or has an adapter.
    """

    def __init__(self, parts: ModelParts, model: Any) -> None:
        self._trained = parts
        if not isinstance(model, nn.Module):
            raise ModelError(
                f"reference is {model!r}, which is neither a word nor a loaded model. Load the model first "
                "(AutoModelForCausalLM.from_pretrained)."
            )
        if model is parts.model or model is parts.causal:
            raise ModelError(
                "The reference is the model that is trained, so it would move with it. Leave `reference` out: the "
                "reference is the model before training. Or load the model a second time."
            )
        other = ModelParts(model)
        if other.switches:
            raise ModelError(
                "The reference model has an adapter; merge it (merge_and_unload) to use it as a reference."
            )
        for what, measure in _SHAPE.items():
            ours, theirs = measure(parts), measure(other)
            if ours != theirs:
                raise ModelError(
                    f"The reference model has {theirs:,} {what}, and the trained model {ours:,}; they must be of the "
                    "same shape. Name the model that this one was fine-tuned from."
                )
        self._freeze(model)

    def head(self) -> Head | None:
        """Return that model's head; None where the trained model has an equal one that stays frozen."""
        return self._own_head

    @cached_property
    def _own_head(self) -> Head | None:
        theirs = self.parts.head
        if not self._trained.has_adapter:
            return theirs
        ours = self._trained.head_by_config()
        alike = (ours.scale, ours.softcap) == (theirs.scale, theirs.softcap)
        return None if alike and _equal(ours.weight, theirs.weight) and _equal(ours.bias, theirs.bias) else theirs

    def changed(self) -> list[Changed]:
        """Return every trained weight beside that model's; [] with an adapter."""
        return [] if self._trained.has_adapter else super().changed()


def _equal(ours: Tensor | None, theirs: Tensor | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return torch.equal(ours, theirs.to(ours))


_SHAPE: dict[str, Callable[[ModelParts], int]] = {
    "blocks": lambda parts: len(parts.blocks),
    "numbers per token (hidden_size)": lambda parts: parts.width,
    "tokens in its vocabulary": lambda parts: len(parts.causal.get_input_embeddings().weight),
}


@contextmanager
def _without_dropout(parts: ModelParts) -> Iterator[None]:
    """Run with the adapters' own dropout off: a reference has no noise."""
    dropouts = [d for module in parts.switches for d in module.modules() if isinstance(d, nn.Dropout) and d.training]
    for dropout in dropouts:
        dropout.training = False
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.training = True


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Run with autocast casting every weight anew; an autocast that begins inside takes this over."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)
