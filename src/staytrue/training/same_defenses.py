"""`SameDefenses` lets a script's training go on from a checkpoint only with the defenses that it began with.

What is compared is kept in the trainer's state, so each of trl's own checkpoints has it in `trainer_state.json`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import isclose
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from staytrue.defense import Defense
from staytrue.errors import RecipeError, StaytrueWarning
from staytrue.training.guard import Guard
from staytrue.utils.files import sha256_of

_WAY_OUT = "so it would go on as another training. Restore that, or train anew, without resume_from_checkpoint."
_SAMPLED = 8  # weights of the reference, of all blocks
_ROUNDING = 1e-5  # relative, of a weight's sum on another device


class SameDefenses:
    """The defenses of a run, as its checkpoints describe them."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._now: dict[str, Any] | None = None

    def description(self) -> dict[str, Any]:
        """The defenses with their fields and files, the seed, and the reference; computed once a training."""
        if self._now is None:
            guard = self._guard
            chosen = guard.chosen_reference or ("base" if guard.parts.has_adapter else "start")
            self._now = {
                "defenses": [[label, _fields(defense)] for label, defense in guard.defenses.items()],  # in order
                "seed": guard.seed,
                "reference": chosen if isinstance(chosen, str) else "a model",
                "reference_sums": _sums(guard),
            }
        return self._now

    def refuse_others(self, began: Mapping[str, Any], *, resumed: bool) -> None:
        """Compare with what a checkpoint holds; warn if it holds nothing, since trl or an older version wrote it.

        Args:
            began: of the checkpoint.
            resumed: whether there is a checkpoint.

        Raises:
            RecipeError: the first difference, with both values.
        """
        self._now = None
        if not resumed:
            return
        if "defenses" not in began:
            if self._guard.defenses:
                warnings.warn(
                    "The checkpoint does not hold which defenses it was trained with, since trl alone or an older "
                    f"version wrote it. Training goes on with {', '.join(self._guard.defenses)}.",
                    StaytrueWarning,
                    stacklevel=2,
                )
            return
        now = self.description()
        before, present = dict(began["defenses"]), dict(now["defenses"])
        if list(before) != list(present):
            raise RecipeError(
                f"The checkpoint was trained with {_list(before)}, and now with {_list(present)}, {_WAY_OUT}"
            )
        for label, fields in present.items():
            for key in before[label].keys() & fields.keys():  # another version may have other fields
                _refuse(f"{label} {key}=", before[label][key], fields[key])
        for key in ("seed", "reference"):
            _refuse(f"{key}=", began.get(key), now[key])
        sums = zip(began.get("reference_sums") or (), now["reference_sums"], strict=False)
        if present and not all(isclose(a, b, rel_tol=_ROUNDING) for a, b in sums):
            raise RecipeError(
                "The model that the trainer was made with is not the one that the checkpoint's training began with, so "
                "the defenses would compare with another reference. Make the trainer with the model before training; "
                "resume_from_checkpoint loads the trained weights. The precision must be the same too."
            )


def _refuse(what: str, before: Any, now: Any) -> None:
    if before != now:
        raise RecipeError(f"The checkpoint was trained with {what}{before!r}, and now it is {now!r}, {_WAY_OUT}")


def _list(labels: Mapping[str, Any]) -> str:
    return ", ".join(labels) or "no defense"


def _fields(defense: Defense) -> dict[str, Any]:
    """A defense's fields as JSON; a file is described by its content, so that it may have moved."""
    values = asdict(defense) if is_dataclass(defense) else vars(defense)
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return f"a file with the hash {sha256_of(value)[:12]}" if value.is_file() else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    return value if value is None or isinstance(value, str | int | float | bool) else type(value).__name__


def _sums(guard: Guard) -> list[float]:
    """Sums of the sizes of some weights of the reference; [] without one, or where it is spread over processes."""
    read = any(d.reads_reference or d.reads_start for d in guard.defenses.values())
    weights = guard.reference.weights()
    if not read or any(hasattr(weight, "to_local") for weight in weights):
        return []
    with torch.no_grad():
        return [
            float(weight.abs().sum(dtype=torch.float64 if weight.device.type != "mps" else torch.float32))
            for weight in weights[:: max(1, len(weights) // _SAMPLED)] + weights[-1:]
        ]
