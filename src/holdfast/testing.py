"""The contract that every defense keeps, for the ones that ship and for anybody's own.

    from holdfast.testing import contract
    contract(MyDefense(weight=0.3), model, tokenizer, rows)     # model: peft, freshly initialised; rows: Examples

Checks the levers without a trainer: `Micro` is one guarded micro-batch, made the way a trainer makes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.base import Untouched
from holdfast.defense import Defense, pulled
from holdfast.encoding import Encoded, encode_all
from holdfast.examples import Example
from holdfast.guard import Guard
from holdfast.sides import pad
from holdfast.step import SOURCES, Marks

_NOISE = 1e-8  # what float32 rounding alone can make of nothing


class Micro:
    """One micro-batch through a guard, counted forwards included."""

    def __init__(self, defenses: Sequence[Defense], model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
        self.model = model
        self.guard = Guard(defenses)

        def encode(examples: list[Example]) -> list[Encoded]:
            return encode_all(tokenizer, examples, 512)[0]

        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.guard.attach(model, Untouched(lambda: model, tokenizer), encode, pad_id)
        rows = self.guard.curate(list(rows), Untouched(lambda: model, tokenizer))
        self.encoded: list[Encoded] = encode(rows)
        self.inputs, marks = pad(self.encoded, pad_id, next(model.parameters()).device)
        source = torch.tensor([SOURCES.index(row.source) for row in rows]).unsqueeze(1).expand_as(marks.source)
        self.marks = Marks(marks.real, marks.scored, source)
        self.forwards = {"trained": 0, "reference": 0}

    def penalty(self) -> Tensor | None:
        """The weighted penalty of the micro-batch, taken as a whole optimizer step."""
        anatomy = self.guard._anatomy
        handle = anatomy.backbone.register_forward_pre_hook(self._count)
        try:
            self.guard.plan(self.marks.counts(), len(self.encoded), slots=1)
            self.model.train()
            with self.guard.watch(self.marks) as calls:
                anatomy.backbone(**self.inputs, use_cache=False)
            return self.guard.penalty(calls[0], self.marks, slot=0)
        finally:
            handle.remove()

    def close(self) -> None:
        """Take the guard's hooks off the model."""
        self.guard._watch.remove()

    def _count(self, module: Any, args: Any) -> None:
        self.forwards["trained" if torch.is_grad_enabled() else "reference"] += 1


def contract(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Raise AssertionError, with a sentence, where a defense breaks the contract.

    Args:
        defense: the defense as its user would configure it.
        model: a freshly initialised peft model (its B matrices are zero, so it has not moved).
        tokenizer: the model's tokenizer, with a chat template.
        rows: a few conversations.
    """
    name = defense.name()
    assert pulled(defense), f"{name} pulls no lever"
    if "penalty" not in pulled(defense):
        return
    rows = list(rows) * math.ceil(1 / getattr(defense, "share", 1) / len(rows))  # at least one side row is due
    still = _measure(defense, model, tokenizer, rows)
    assert still.value == 0, f"{name} punishes a model that has not moved: {still.value} at step 0"
    assert still.finite, f"the gradient of {name} at step 0 is not finite"
    near = _measure(defense, model, tokenizer, rows, nudge=0.5)
    far = _measure(defense, model, tokenizer, rows, nudge=1.0)
    assert far.value > _NOISE, f"{name} does not notice a model that has moved: {far.value:.3g}"
    assert far.gradient > 0, f"{name} has a value ({far.value:.3g}) but no gradient: its weight would do nothing"
    assert not far.outside, f"{name} has a gradient outside the adapter, on {far.outside}"
    assert near.value < far.value, f"half the move costs {name} {near.value:.3g}, the whole move {far.value:.3g}"
    assert far.references <= 1 + far.side_forwards, f"{name} made {far.references} reference forwards"


class _Measured:
    """What one penalty was worth at one distance from the start."""

    def __init__(self, micro: Micro, value: Tensor) -> None:
        weights = {n: p.grad for n, p in micro.model.named_parameters() if p.grad is not None}
        adapter = {id(p) for n, p in micro.model.named_parameters() if "lora_" in n}
        ours = [p.grad for p in micro.model.parameters() if p.grad is not None and id(p) in adapter]
        self.value = float(value.detach())
        self.gradient = sum(float(g.abs().sum()) for g in ours)
        self.finite = all(bool(g.isfinite().all()) for g in weights.values())
        self.outside = [n for n, g in weights.items() if "lora_" not in n and g.abs().sum() > 0]
        self.references = micro.forwards["reference"]
        self.side_forwards = micro.forwards["trained"] - 1


def _measure(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example], nudge: float = 0.0) -> _Measured:
    micro = Micro([defense], model, tokenizer, rows)  # attached while unmoved, as a run attaches
    with _nudged(model, nudge):
        model.zero_grad()
        value = micro.penalty()
        assert value is not None, f"{defense.name()} returned no penalty"
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
        measured = _Measured(micro, value)
    model.zero_grad()
    micro.close()
    return measured


class _nudged:  # noqa: N801
    """The adapter moved by a fixed random step, and put back."""

    def __init__(self, model: Any, scale: float) -> None:
        self._weights = [p for n, p in model.named_parameters() if "lora_B" in n]
        self._scale = scale

    def __enter__(self) -> None:
        self._before = [w.detach().clone() for w in self._weights]
        noise = torch.Generator().manual_seed(0)
        for weight in self._weights:
            step = torch.randn(weight.shape, generator=noise).to(weight.device, weight.dtype)
            weight.data.add_(step, alpha=0.05 * self._scale)

    def __exit__(self, *_: object) -> None:
        for weight, before in zip(self._weights, self._before, strict=True):
            weight.data.copy_(before)
