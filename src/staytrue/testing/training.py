"""Contract checks with the real trainer: a few steps of SFT, and the same steps computed in another way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback

from staytrue.config.trainer_args import sft_config
from staytrue.data.examples import Example
from staytrue.data.tokenize import encode_all
from staytrue.defense import Defense, pulled
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.sharded import whole
from staytrue.step import SOURCE_COLUMN, SOURCES
from staytrue.testing.close import unlike
from staytrue.testing.micro import backbones, nudged, trainable
from staytrue.training.guard import Guard
from staytrue.training.trainers import GuardedSFT

# A step of plain gradient descent is the gradient itself, so equal gradients make equal weights.
_SETTINGS: dict[str, Any] = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "max_grad_norm": 0,
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "use_cpu": True,
    "bf16": False,
}
_FEWEST_ROWS = 32
_IN_PARTS = "; does a penalty read unscored positions, or statistics of the micro-batch?"
_SIDE_SHARE = 0.25  # so that side rows are due in every step of 8 rows
_ROUNDING, _WEIGHTS = 1e-7, 1e-5  # the weights of two ways may differ: by this, of the whole move


@dataclass(frozen=True)
class Trained:
    """The weights and the log after a few steps of training."""

    weights: Tensor  # the trained ones, flat
    moved: float  # the largest change of one of them
    log: list[dict[str, float]]  # of every step
    forwards: dict[str, int]  # calls of the backbone: "trained" build a gradient, "reference" do not


def training(defense: Defense, model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Train three steps; again in micro-batches of one row, and again with activations recomputed."""
    for named, one in cases(defense).items():
        whole = trained([one], model, tokenizer, rows)
        _logged(whole, [one])
        parts = trained([one], model, tokenizer, rows, per_device_train_batch_size=1, gradient_accumulation_steps=8)
        alike(whole, parts, f"{named}: one batch of 8 and eight of 1", _IN_PARTS)
        again = trained([one], model, tokenizer, rows, activation_checkpointing=True)
        alike(whole, again, f"{named}: activations kept and recomputed")


def together(defenses: Sequence[Defense], model: Any, tokenizer: Any, rows: Sequence[Example]) -> None:
    """Take one step with several defenses, from a model that has not moved."""
    run = trained([with_beside_rows(d) for d in defenses], model, tokenizer, rows, nudge=0.0, max_steps=1)
    sides, references = run.forwards["trained"] - 1, run.forwards["reference"]
    names = " and ".join(d.name() for d in defenses)
    assert sides <= 1, f"{names} make {sides} forwards for side rows; all share one"
    assert references <= 1 + sides, f"{names} make {references} reference forwards"
    for name, defense in _logged(run, defenses).items():
        unmoved = run.log[0][name] == 0 or defense.teaches
        assert unmoved, f"{names}: {name} is {run.log[0][name]} on a model that has not moved"


def cases(defense: Defense) -> dict[str, Defense]:
    """Return the variants of a defense to train, by label.

    The first is the defense itself. A penalty with a choice of rows (a field `on`) adds a variant on interleaved rows.
    """
    name, sided = defense.name(), with_beside_rows(defense)
    if "penalty" in pulled(defense) and "on" in vars(defense):
        return {name: sided, f"{name} on interleaved rows": _changed(sided, on="interleaved")}
    return {name: sided}


def trained(
    defenses: Sequence[Defense], model: Any, tokenizer: Any, rows: Sequence[Example], nudge: float = 1.0, **changes: Any
) -> Trained:
    """Train three steps of 8 rows on a copy of the model, from moved weights; a quarter of the rows are interleaved.

    Args:
        defenses: in listed order.
        model: a peft model, or one whose own weights are trained.
        tokenizer: the model's.
        rows: a few conversations; they are repeated.
        nudge: how far the trained weights have moved when training starts.
        **changes: settings of the trainer.
    """
    model, guard = deepcopy(model), Guard(defenses)
    examples = guard.curate(mixed(defenses, rows), Untouched(lambda: model, tokenizer))
    with TemporaryDirectory() as scratch:
        trainer = guarded_trainer(guard, model, tokenizer, examples, Path(scratch), **changes)
        forwards = _counted(guard)
        with nudged(model, nudge):  # attached while unmoved, as a run attaches
            before = _flat(model)
            trainer.train()
            after = _flat(model)
    steps = [row for row in trainer.state.log_history if "loss" in row]
    names = ("loss", "task_loss", *guard.defenses)
    log = [{k: v for k, v in row.items() if k.split("/")[0] in names} for row in steps]
    return Trained(after, float((after - before).abs().max()), log, forwards)


def guarded_trainer(
    guard: Guard, model: Any, tokenizer: Any, examples: Sequence[Example], scratch: Path, **changes: Any
) -> Any:
    """A trainer of three steps of plain gradient descent, with the settings that are given changed."""
    guard.float32_adapter = True
    trainer = GuardedSFT(
        model=model,
        args=sft_config(_SETTINGS | changes, 0, scratch),
        train_dataset=_dataset(examples, tokenizer),
        processing_class=tokenizer,
        defenses=guard,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def alike(one: Trained, other: Trained, ways: str, question: str = "") -> None:
    """Assert that two ways to train end in the same weights and logged numbers.

    Args:
        one: the first way's outcome.
        other: the second's.
        ways: the beginning of the message, which names both.
        question: the end of the message, about a likely cause.
    """
    gap = float((one.weights - other.weights).abs().max())
    allowed = _ROUNDING + _WEIGHTS * one.moved
    assert gap <= allowed, f"{ways} end {gap:.2g} apart, after a move of {one.moved:.2g}{question}"
    differs = unlike(one.log, other.log, one.log[0])
    assert not differs, f"{ways} {differs}{question}"


def _logged(run: Trained, defenses: Sequence[Defense]) -> dict[str, Defense]:
    """Assert that every penalty's number is in the log of every step; the defenses that have one."""
    penalties = {label: one for label, one in Guard(defenses).defenses.items() if "penalty" in pulled(one)}
    for name in penalties:
        numbers = [row.get(name, math.nan) for row in run.log]
        assert all(map(math.isfinite, numbers)), f"the log should have a number of {name} at every step: {numbers}"
    return penalties


def with_beside_rows(defense: Defense) -> Defense:
    """The defense with rows beside the batch in every step, if it feeds any."""
    return _changed(defense, share=_SIDE_SHARE) if "beside" in pulled(defense) else defense


def _changed(defense: Defense, **fields: Any) -> Defense:
    return replace(defense, **fields)  # type: ignore[type-var]


def mixed(defenses: Sequence[Defense], rows: Sequence[Example]) -> list[Example]:
    """Enough rows for every share, every fourth from another source."""
    count = math.ceil(max([_FEWEST_ROWS, *(2 / vars(d).get("share", 1) for d in defenses)]))
    many = (list(rows) * math.ceil(count / len(rows)))[:count]
    return [replace(row, source="interleaved") if i % 4 == 3 else row for i, row in enumerate(many)]


def _dataset(examples: Sequence[Example], tokenizer: Any) -> Dataset:
    encoded, _ = encode_all(tokenizer, examples, None)
    columns = {
        "input_ids": [row.input_ids for row in encoded],
        "labels": [row.labels for row in encoded],
        SOURCE_COLUMN: [SOURCES.index(row.source) for row in encoded],
    }
    return Dataset.from_dict(columns)


def _flat(model: Any) -> Tensor:
    return torch.cat([whole(w).flatten() for _, w in trainable(model)])


def _counted(guard: Guard) -> dict[str, int]:
    counts = {"trained": 0, "reference": 0}

    def hook(module: Any, args: Any) -> None:
        counts["trained" if torch.is_grad_enabled() else "reference"] += 1

    for backbone in backbones(guard):
        backbone.register_forward_pre_hook(hook)
    return counts
