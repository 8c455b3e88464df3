"""Checks that a run's defenses can use a cache of reference states. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staytrue.defense import Defense, pulled
from staytrue.errors import RecipeError, RequestError


def refuse_cache(
    folder: Path, defenses: Mapping[str, Defense], *, sampled: bool = False, reference: Any = None
) -> None:
    """Refuse a cache of reference states where it cannot be, would be wrong, or would never be read.

    Args:
        folder: for the states.
        defenses: of the run, by label.
        sampled: whether the rows are written by the model in training.
        reference: the user's choice of a reference; None is the model before training.

    Raises:
        RequestError: the sentence names the way out.
    """
    why = why_no_cache(defenses, sampled=sampled)
    if why is None and reference not in (None, "base"):
        why = "its states are those of the model with its adapter off, and another reference is chosen"
    if why is not None:
        raise RecipeError(f"The reference cache {folder} cannot be used: {why}. Train without it.")
    check_folder(folder)


def refuse_reference(reference: Any, penalties: Mapping[str, Defense]) -> None:
    """Refuse the choice of a reference that a defense would not measure from; one that none reads does no harm.

    Args:
        reference: the user's choice; None is no choice.
        penalties: the defenses with a penalty, by label.

    Raises:
        RecipeError: the sentence names the way out.
    """
    if reference is None:
        return
    start = next((label for label, defense in penalties.items() if defense.reads_start), None)
    if start is not None and reference != "base":
        raise RecipeError(
            f"{start} measures the weights' distance from the model without its adapter. Set reference to base, or "
            f"take {start} out."
        )


def check_folder(folder: Path) -> None:
    """Refuse a folder that can neither be read nor made.

    Raises:
        RequestError: the sentence names the way out.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(p))
    fault = "no folder" if not os.path.isdir(place) else "not writable" if not os.access(place, os.W_OK) else None
    if fault is not None and not (os.path.isdir(folder) and os.access(folder, os.R_OK)):  # one that is full can be read
        raise RequestError(f"The reference cache {folder} cannot be made: {place} is {fault}. Name another folder.")


def why_no_cache(defenses: Mapping[str, Defense], *, sampled: bool = False) -> str | None:
    """The reason why a run can have no cache of reference states, as part of a sentence; None if it can."""
    steering = next((label for label, defense in defenses.items() if "steer" in pulled(defense)), None)
    if steering is not None:
        return f"{steering} steers the reference too, so its states are this run's own"
    return "in GRPO the model samples new answers, so no row is seen twice" if sampled else None
