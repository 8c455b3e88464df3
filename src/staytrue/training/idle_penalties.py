"""Defenses that change nothing: by a number of 0 in the recipe, or because no row is of a penalty's kind."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from transformers import TrainerCallback

from staytrue.defense import Defense, pulled
from staytrue.errors import RecipeError, StaytrueWarning
from staytrue.training.guard import Guard
from staytrue.training.outcome import Outcome

_FACTORS = ("weight", "alpha")  # multiply all that a defense does


def refuse_absent_sources(defenses: Mapping[str, Defense], present: Collection[str]) -> None:
    """Refuse a penalty on rows of a source that no training row has.

    Args:
        defenses: by label.
        present: the sources of the training rows, see `step.SOURCES`.

    Raises:
        RecipeError: the penalty would be 0 throughout.
    """
    for label, defense in defenses.items():
        if "penalty" in pulled(defense) and defense.on not in ("all", *present):
            raise RecipeError(
                f"{label}: on is {defense.on!r}, and no training row is of that kind, so the penalty would be 0 "
                "throughout. Add the defense `interleave`, or take `on` out."
            )


def without_effect(defenses: Mapping[str, Defense]) -> list[str]:
    """A sentence for each defense whose weight or alpha is 0: a control of a sweep, or a mistake.

    Args:
        defenses: by label.
    """
    numbers = [(label, name) for label, d in defenses.items() for name in _FACTORS if getattr(d, name, None) == 0]
    return [f"{label}.{name} is 0, so this defense changes nothing." for label, name in numbers]


class IdlePenalties(TrainerCallback):  # type: ignore[misc]
    """Remembers which penalties were ever another number than 0, and reports logged numbers that are not finite.

    Before the weights move every divergence is 0, so a penalty must be measured in a later step to count; one that is
    measured in none at all counts too.
    """

    def __init__(self, guard: Guard, outcome: Outcome) -> None:
        self._guard, self._outcome = guard, outcome
        self._seen: set[str] = set()
        self._early, self._late = set[str](), set[str]()  # measured before and after the weights have moved
        self._diverged = False

    def note(self, numbers: Mapping[str, Any]) -> None:
        """Remember the numbers of a log line; warn, once, of one that is not finite, long before training ends."""
        watched = [name for name in ("loss", "task_loss", *self._guard.defenses) if name in numbers]
        broken = [name for name in watched if not math.isfinite(float(numbers[name]))]
        if broken and not self._diverged:
            self._diverged = True
            warnings.warn(
                f"{broken[0]} is {float(numbers[broken[0]])}, so training has diverged. Stop it, and lower the "
                "learning rate or a defense's weight.",
                StaytrueWarning,
                stacklevel=5,
            )
        self._seen |= {name for name, value in numbers.items() if float(value) != 0}  # NaN too

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start with nothing seen."""
        self._seen, self._early, self._late, self._diverged = set(), set(), set(), False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember which penalties the step has measured; `Outcome` has looked at it before."""
        moved = self._outcome.moved_at
        measured = self._early if moved is None or state.global_step <= moved else self._late
        measured |= self._guard.measured

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Warn of the penalties that were 0 in each step."""
        self.note(self._guard.drain())
        moved = self._outcome.moved_at
        if not state.is_world_process_zero or moved is None or state.global_step <= moved:
            return
        for label, defense in self._guard.defenses.items():
            only_early = label in self._early - self._late
            if "penalty" in pulled(defense) and label not in self._seen and not only_early:
                warnings.warn(
                    f"{label} was 0 in each of the {state.global_step} steps although the weights moved, so it held "
                    "nothing: no token of the rows is one of those that its settings name (such as on, tokens, "
                    "share), or the blocks that it reads (blocks) lie below everything that is trained.",
                    StaytrueWarning,
                    stacklevel=2,
                )
