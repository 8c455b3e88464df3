"""Checks that a run's defenses fit its model: the layers that they name, the head that they need, what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from staytrue.defense import Base, Defense, pulled
from staytrue.errors import StaytrueError
from staytrue.modeling.architecture import ModelParts
from staytrue.training.frozen_blocks import freeze_blocks, thaw
from staytrue.training.hooks import Steer
from staytrue.training.layers import read_and_steered
from staytrue.training.reference import model_checks

_OF_THE_MODEL = ("freeze", "steer", "penalty", "project")  # levers of defenses that look at the model


def checked_layers(
    parts: ModelParts, defenses: Mapping[str, Defense], base: Base, reference: Any
) -> tuple[list[int], Mapping[int, list[Steer]]]:
    """Check the model against every defense; return the layers that are read, and who steers by layer.

    Args:
        parts: of the model with its adapter.
        defenses: by label.
        base: the untouched model.
        reference: which model is the reference, as the user chose it.

    Raises:
        ModelError, RecipeError: the model has no such layer or no reference, or a defense does not fit it.
    """
    levers = {lever for defense in defenses.values() for lever in pulled(defense)}
    if not levers & set(_OF_THE_MODEL):
        return [], {}
    model_checks.check(parts, reference)
    if any("penalty" in pulled(defense) and defense.reads_reference for defense in defenses.values()):
        model_checks.check_noise(parts)
    if "beside" in levers:
        model_checks.refuse_activated(parts)
    layers = kept, steers = read_and_steered(defenses, len(parts.blocks))
    if (kept or steers) and not parts.is_empty:
        model_checks.check_blocks(parts)
    for defense in defenses.values():
        defense.check(parts, base)
    return layers


def freeze_and_check(parts: ModelParts, defenses: Mapping[str, Defense], base: Base) -> list[Tensor]:
    """Stop training what defenses freeze, and check all of them against what is left; returns what is frozen.

    Raises:
        ModelError, RecipeError: as `freeze_blocks`, or a defense does not fit what is left; then nothing is frozen.
    """
    frozen = freeze_blocks(parts, defenses)
    try:
        for defense in defenses.values() if frozen else ():
            defense.check(parts, base)
    except StaytrueError:
        thaw(frozen)
        raise
    return frozen
