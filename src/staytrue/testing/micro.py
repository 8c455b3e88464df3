"""`Micro`: one micro-batch under a guard, without a trainer, and the value and gradient of its penalty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded, encode_all, padding_id
from staytrue.defense import Defense
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.block_outputs import hooked
from staytrue.step import SOURCES, Activations, Marks
from staytrue.training.guard import Guard
from staytrue.training.padded_batch import pad

# The standard deviations of a whole move: on the entries of every B, and on all weights where there is no adapter.
_NUDGE, _NUDGE_OF_ALL = 0.05, 0.01


@dataclass(frozen=True)
class Measure:
    """A weighted penalty and its gradient, at one distance of the trained weights from their start."""

    value: float
    gradient: Tensor  # of the trained weights, flat
    finite: bool  # every weight's gradient is
    outside: list[str]  # weights outside the adapter that have one; without an adapter there are none
    references: int
    sides: int  # forwards for side rows


class Micro:
    """One micro-batch under a guard, with its forwards counted."""

    def __init__(
        self,
        defenses: Sequence[Defense],
        model: Any,
        tokenizer: Any,
        rows: Sequence[Example],
        reference_cache: Path | None = None,
        reference: Any = None,
    ) -> None:
        self.model = model
        self.guard = Guard(defenses, reference_cache=reference_cache, reference=reference)

        def encode(examples: list[Example]) -> list[Encoded]:
            return encode_all(tokenizer, examples, 512)[0]

        pad_id = padding_id(tokenizer)
        base = Untouched(lambda: model, tokenizer)
        self.guard.attach(model, base, encode, pad_id)
        rows = self.guard.curate(list(rows), base)
        self.encoded: list[Encoded] = encode(rows)
        self.inputs, marks = pad(self.encoded, pad_id, next(model.parameters()).device)
        source = torch.tensor([SOURCES.index(row.source) for row in rows]).unsqueeze(1).expand_as(marks.source)
        self.marks = Marks(marks.real, marks.scored, source)
        self.forwards = {"trained": 0, "reference": 0}

    def penalty(self) -> Tensor | None:
        """Compute the weighted penalty of the micro-batch, taken as a whole optimizer step."""
        backbone = self.guard.parts.backbone
        handles = [one.register_forward_pre_hook(self._count) for one in backbones(self.guard)]
        try:
            self.guard.task_rows = 0  # the first step of a run, whose side rows are the same every time
            self.guard.plan(self.marks.counts(), len(self.encoded), slots=1)
            self.model.train()
            with self.guard.watch(self.marks) as calls:
                backbone(**self.inputs, use_cache=False)
            return self.guard.penalty(calls[0], self.marks, slot=0)
        finally:
            for handle in handles:
                handle.remove()

    def measure(self, nudge: float = 0.0) -> Measure:
        """Compute the penalty and its gradients with the trained weights moved by `nudge`."""
        self.forwards = {"trained": 0, "reference": 0}
        self.model.zero_grad()
        with nudged(self.model, nudge):
            value = self.penalty()
            assert value is not None, f"{', '.join(self.guard.defenses)} returned no penalty"
            if value.requires_grad:
                value.backward()  # type: ignore[no-untyped-call]
            self.guard.combine()
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        inside = dict(trainable(self.model))
        ours = [p.grad if p.grad is not None else p.new_zeros(p.shape) for p in inside.values()]
        self.model.zero_grad()
        return Measure(
            value=float(value.detach()),
            gradient=torch.cat([g.detach().float().flatten() for g in ours]),
            finite=all(bool(g.isfinite().all()) for g in gradients.values()),
            outside=[n for n, g in gradients.items() if n not in inside and g.abs().sum() > 0],
            references=self.forwards["reference"],
            sides=self.forwards["trained"] - 1,
        )

    def task_loss(self) -> Tensor:
        """Compute the mean negative log-likelihood of the micro-batch's answer tokens, under steering."""
        self.model.train()
        with self.guard.watch(self.marks):
            logits = self.guard.parts.causal(**self.inputs, use_cache=False).logits
        following = self.inputs["input_ids"].roll(-1, dims=1)
        return cross_entropy(logits[self.marks.scored], following[self.marks.scored])

    def outputs(self, *, guarded: bool) -> tuple[dict[int, Tensor], Activations | None]:
        """Record every block's output (B, T, D) by separate hooks; with `guarded`, also what the guard records."""
        parts, outputs = self.guard.parts, {}

        def keep(layer: int, hidden: Tensor) -> None:
            outputs[layer] = hidden

        with hooked(parts.blocks, keep):
            if not guarded:
                parts.backbone(**self.inputs, use_cache=False)
                return outputs, None
            with self.guard.watch(self.marks) as calls:
                parts.backbone(**self.inputs, use_cache=False)
            return outputs, calls[0].result()

    def close(self) -> None:
        """Take the guard's hooks off the model."""
        self.guard.detach()

    def _count(self, module: Any, args: Any) -> None:
        self.forwards["trained" if torch.is_grad_enabled() else "reference"] += 1


def backbones(guard: Guard) -> list[Any]:
    """Return the backbones that a guarded training calls: the model's, and the reference's where that is a copy."""
    return [guard.parts.backbone, *([guard.reference.parts.backbone] if guard.reference.is_copy else [])]


def trainable(model: Any) -> list[tuple[str, Tensor]]:
    """Return the weights that training may change, by name: the adapter's, or all where there is none."""
    return adapter(model) if ModelParts(model).has_adapter else list(model.named_parameters())


def adapter(model: Any) -> list[tuple[str, Tensor]]:
    """Return the adapter's weights by name."""
    return [(n, p) for n, p in model.named_parameters() if "lora_" in n]


@contextmanager
def nudged(model: Any, scale: float) -> Iterator[None]:
    """Move the trained weights by a fixed random step inside `with`, then restore them; of an adapter, every B."""
    adapted = ModelParts(model).has_adapter
    weights = [w for name, w in trainable(model) if not adapted or "lora_B" in name]
    size = _NUDGE if adapted else _NUDGE_OF_ALL
    before = [w.detach().clone() for w in weights]
    noise = torch.Generator().manual_seed(0)
    for weight in weights:
        step = torch.randn(weight.shape, generator=noise).to(weight.device, weight.dtype)
        weight.data.add_(step, alpha=size * scale)
    try:
        yield
    finally:
        for weight, old in zip(weights, before, strict=True):
            weight.data.copy_(old)
