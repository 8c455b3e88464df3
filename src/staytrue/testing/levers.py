"""Contract checks of each lever by itself, without a trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from staytrue.data.examples import Example
from staytrue.defense import Defense, pulled
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.quantized import is_packed
from staytrue.step import SOURCES
from staytrue.testing.micro import Measure, Micro, nudged, trainable

_NOISE = 1e-8  # what float32 rounding alone can make of nothing
_ROUGH = 0.05  # how far bfloat16 may be from float32, of a penalty and of its gradient's norm
_STEP = 1e-4  # how far the trained weights move, either way, to measure a derivative
_DERIVATIVE = 0.01  # how far the measured one may be from the gradient's, as a share of the gradient's norm


def levers(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Check every lever that the defense overrides; the model is left as it was."""
    mine, name = pulled(defense), defense.name()
    assert mine, f"{name} pulls no lever"
    rows = enough(defense, rows)
    with in_a_sentence(defense):
        if "curate" in mine:
            _curating(defense, Untouched(lambda: model, tokenizer), rows)
        if "freeze" in mine:
            _freezing(defense, model, tokenizer, rows)
        if "steer" in mine:
            _steering(defense, model, tokenizer, rows)
            _steering_gradient(defense, model, tokenizer, rows)
        if "penalty" in mine:
            micro = Micro([defense], model, tokenizer, rows)
            _punishing(defense, micro)
            _referring(defense, micro)
            _reading(name, micro)
            micro.close()
            _rounding(defense, deepcopy(model), tokenizer, rows)
        if "project" in mine:
            _projecting(defense, deepcopy(model))
        if "combine" in mine:
            _combining(defense)


@contextmanager
def in_a_sentence(defense: Defense) -> Iterator[None]:
    """Turn an error inside the defense into the AssertionError of a failed check, with the defense's name."""
    try:
        yield
    except (RuntimeError, TypeError, IndexError, KeyError) as error:
        raise AssertionError(f"{defense.name()} stops with {type(error).__name__}: {error}") from error


def enough(defense: Defense, rows: Sequence[Example]) -> list[Example]:
    """Repeat the rows until at least one row of the defense's own is due."""
    share: float = vars(defense).get("share", 1)
    return list(rows) * math.ceil(1 / share / len(rows))


def _curating(defense: Defense, base: Untouched, rows: list[Example]) -> None:
    name, before = defense.name(), list(rows)
    curated = defense.curate(rows, base, 0)
    assert rows == before, f"{name} changes the list of rows in place; return another"
    assert curated != rows, f"{name} overrides curate, but the rows stay as they are"
    assert curated == defense.curate(list(rows), base, 0), (
        f"{name} returns other rows in a second call with the same seed"
    )
    strange = {row.source for row in curated} - set(SOURCES)
    assert not strange, f"{name} gives rows of the source {sorted(strange)}; there are: {', '.join(SOURCES)}"


def _freezing(defense: Defense, model: Any, tokenizer: Any, rows: list[Example]) -> None:
    """Assert that the loss has a gradient in every block but those that the defense freezes."""
    model = deepcopy(model)
    name, micro = defense.name(), Micro([defense], model, tokenizer, rows)
    blocks = micro.guard.parts.blocks
    named = {layer % (len(blocks) + 1) for layer in defense.freeze(len(blocks))}  # -1 is the last
    with nudged(model, 1.0):
        micro.task_loss().backward()  # type: ignore[no-untyped-call]
    for layer, block in enumerate(blocks, start=1):
        trained = any(bool(weight.grad.any()) for weight in block.parameters() if weight.grad is not None)
        assert trained != (layer in named), f"{name} names {sorted(named)}, but layer {layer} is frozen: {not trained}"
    micro.close()
    left = [n for n, weight in trainable(model) if not weight.requires_grad]
    assert not left, f"after the run {left[0]} is still frozen"


def _steering(defense: Defense, model: Any, tokenizer: Any, rows: list[Example]) -> None:
    name, micro = defense.name(), Micro([defense], model, tokenizer, rows)
    depth = len(micro.guard.parts.blocks)
    steered = min(layer % (depth + 1) for layer in defense.layers(depth))  # -1 is the last, depth
    still, _ = micro.outputs(guarded=False)
    moved, _ = micro.outputs(guarded=True)
    after, _ = micro.outputs(guarded=False)
    micro.close()
    changed = [layer for layer in still if not torch.equal(still[layer], moved[layer])]
    assert changed, f"{name} overrides steer, but no activation moves"
    assert changed[0] == steered, f"{name} names layer {steered}, but layer {changed[0]} is the first that moves"
    assert all(torch.equal(still[layer], after[layer]) for layer in still), f"{name} steers outside a training forward"


def _steering_gradient(defense: Defense, model: Any, tokenizer: Any, rows: list[Example]) -> None:
    """Assert that the task's gradient under steering reaches every block and is the steered loss's derivative."""
    model = deepcopy(model).double()  # a derivative is measured as the difference of two nearly equal losses
    name, micro = defense.name(), Micro([defense], model, tokenizer, rows)
    weights = [weight for _, weight in trainable(model) if weight.requires_grad]
    noise = torch.Generator().manual_seed(1)
    direction = [torch.randn(weight.shape, generator=noise).to(weight) for weight in weights]
    with nudged(model, 1.0):
        loss = micro.task_loss()
        assert loss.requires_grad, f"{name} cuts the gradient: the steered loss has none; steer must not detach"
        loss.backward()  # type: ignore[no-untyped-call]
        gradient = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        measured = (
            (_loss_at(micro, weights, direction, _STEP) - _loss_at(micro, weights, direction, -_STEP)) / 2 / _STEP
        )
    micro.close()
    for layer, block in enumerate(micro.guard.parts.blocks, start=1):
        gradients = [weight.grad for weight in block.parameters() if weight.requires_grad]
        reached = not gradients or any(g is not None and bool(g.any()) for g in gradients)
        assert reached, (
            f"{name} cuts the gradient: it does not reach the adapter in block {layer}; steer must not detach"
        )
    along = float(torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum())
    size = float(torch.stack([g.square().sum() for g in gradient]).sum().sqrt())
    assert abs(measured - along) <= _DERIVATIVE * size, (
        f"{name} bends the gradient: along one direction it is {along:.4g}, but the loss changes by {measured:.4g}"
    )


@torch.no_grad()
def _loss_at(micro: Micro, weights: Sequence[Tensor], direction: Sequence[Tensor], distance: float) -> float:
    """Compute the task's steered loss at some distance from the weights, then restore them."""
    before = [weight.clone() for weight in weights]
    for weight, step in zip(weights, direction, strict=True):
        weight.add_(step, alpha=distance)
    with torch.enable_grad():  # only calls that build a gradient are steered
        loss = float(micro.task_loss().detach())
    for weight, old in zip(weights, before, strict=True):
        weight.copy_(old)
    return loss


def _punishing(defense: Defense, micro: Micro) -> None:
    name = defense.name()
    still, near, far = micro.measure(), micro.measure(nudge=0.5), micro.measure(nudge=1.0)
    size = float(far.gradient.abs().sum())
    assert still.finite, f"the gradient of {name} at step 0 is not finite"
    assert far.value > _NOISE, f"{name} does not notice a model that has moved: {far.value:.3g}"
    assert size > 0, f"{name} has a value ({far.value:.3g}) but no gradient: its weight would do nothing"
    assert not far.outside, f"{name} has a gradient outside the adapter, on {far.outside}"
    assert far.references <= 1 + far.sides, f"{name} caused {far.references} reference forwards"
    if defense.teaches:  # has no drift to punish
        return
    assert still.value == 0, f"{name} punishes a model that has not moved: {still.value} at step 0"
    assert near.value < far.value, f"half the move costs {name} {near.value:.3g}, the whole move {far.value:.3g}"


def _referring(defense: Defense, micro: Micro) -> None:
    name, references = defense.name(), micro.measure(nudge=1.0).references
    if defense.reads_reference:
        assert references, f"{name} reads no reference; declare `reads_reference: ClassVar[bool] = False`"
    else:
        assert not references, f"{name} declares reads_reference = False, but reads the reference"


def _reading(name: str, micro: Micro) -> None:
    with nudged(micro.model, 1.0):
        outputs, read = micro.outputs(guarded=True)
    assert read is not None
    for layer, hidden in read.hidden.items():
        assert torch.equal(hidden, outputs[layer]), (
            f"what {name} reads as layer {layer} is not what block {layer} gives"
        )


def _rounding(defense: Defense, model: Any, tokenizer: Any, rows: list[Example]) -> None:
    """Compare a bfloat16 base and float32 trained weights under autocast, as on a GPU, with float32 throughout."""
    inside = {n for n, _ in trainable(model)}
    name, weights = defense.name(), model.named_parameters()
    frozen = [weight for n, weight in weights if n not in inside and not is_packed(weight)]
    for weight in frozen:  # the same numbers in both precisions, so that only the arithmetic differs
        weight.data = weight.data.bfloat16().float()
    micro = Micro([defense], model, tokenizer, rows)
    exact = micro.measure(nudge=1.0)
    for weight in frozen:
        weight.data = weight.data.bfloat16()
    still, rough = (_halved(micro, nudge) for nudge in (0.0, 1.0))
    micro.close()
    unmoved = still.value == 0 or defense.teaches
    assert unmoved, f"{name} punishes a model that has not moved in bfloat16: {still.value} at step 0"
    off = abs(rough.value - exact.value) / exact.value
    assert off <= _ROUGH, f"{name} is {rough.value:.3g} in bfloat16 and {exact.value:.3g} in float32"
    apart = float((rough.gradient - exact.gradient).norm() / exact.gradient.norm())
    assert apart <= _ROUGH, f"the gradient of {name} in bfloat16 is off by {apart:.0%} of its norm"


def _halved(micro: Micro, nudge: float) -> Measure:
    """Measure under a separate autocast, because an autocast caches the weights that it has cast."""
    with torch.autocast(micro.marks.real.device.type, dtype=torch.bfloat16):
        return micro.measure(nudge)


def _combining(defense: Defense) -> None:
    """Assert that `combine` of two small weights is finite, keeps shapes, and is the task's where the other is 0."""
    name, noise = defense.name(), torch.Generator().manual_seed(0)
    task, own = ([torch.randn(shape, generator=noise) for shape in ((3, 2), (4,))] for _ in range(2))
    before = [g.clone() for g in (*task, *own)]
    nothing = [torch.zeros_like(a) for a in own]
    for combined in (defense.combine(task, own), alone := defense.combine(task, nothing)):
        shapes = [tuple(g.shape) for g in combined]
        assert shapes == [tuple(g.shape) for g in task], f"{name} combines gradients into shapes {shapes}"
        assert all(bool(g.isfinite().all()) for g in combined), f"{name} combines gradients into one that is not finite"
    unchanged = all(map(torch.equal, alone, task))
    assert unchanged, f"{name} changes the task's gradient where its own is zero, as at step 0"
    assert all(map(torch.equal, before, (*task, *own))), f"{name} changes its gradients in place; return others"


def _projecting(defense: Defense, model: Any) -> None:
    name, ours = defense.name(), {n for n, _ in trainable(model)}
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n not in ours}
    with nudged(model, 1.0):
        report = defense.project(model)
    assert report, f"{name} overrides project, but reports nothing"
    assert all(math.isfinite(number) for number in report.values()), f"{name} reports {report}"
    touched = [n for n, p in model.named_parameters() if n in before and not torch.equal(p, before[n])]
    assert not touched, f"{name} changes weights outside the adapter: {touched}"
