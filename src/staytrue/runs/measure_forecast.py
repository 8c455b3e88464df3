"""`Forecast`: what the measures without a judge will take here, and which of them fit a budget."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from staytrue.evals.results.measures import PAIRS
from staytrue.utils.console import duration


@dataclass(frozen=True)
class Forecast:
    """The seconds of each measure.

    Attributes:
        alone: by the measure's name, in the order in which they are taken, without the untuned model's answers.
        untuned: of sampling those answers, which `drift` and `leak` share; 0 if they are stored.
    """

    alone: Mapping[str, float]
    untuned: float = 0.0

    def divide(self, seconds: float = math.inf) -> tuple[dict[str, float], dict[str, str]]:
        """Divide the measures into those that fit into so many seconds together, and those that do not.

        Returns:
            The seconds of each that fits, and the reason for each that does not.

        Example:
            >>> Forecast({"pairs": 50.0, "drift": 30.0, "leak": 0.0}, untuned=40.0).divide(100)
            ({'pairs': 50.0, 'leak': 40.0}, {'drift': 'it would take 70 s, and measures have 50 s left.'})
        """
        fit: dict[str, float] = {}
        late: dict[str, str] = {}
        untuned = self.untuned
        for name, alone in self.alone.items():
            needs = alone if name.startswith(PAIRS) else alone + untuned
            if needs > seconds:
                late[name] = too_long(needs, seconds)
                continue
            fit[name] = needs
            seconds -= needs
            untuned = untuned if name.startswith(PAIRS) else 0.0
        return fit, late

    def instead_of(self, name: str, left_out: Collection[str], seconds: float) -> dict[str, float]:
        """Return the measures that were left out, come after one, and fit beside those that are still to come.

        Args:
            name: the one that will not be taken.
            left_out: the measures that are left out so far.
            seconds: that are left for all.

        Returns:
            The seconds of each.

        Example:
            >>> Forecast({"pairs": 50.0, "drift": 30.0, "leak": 20.0}).instead_of("pairs", ["pairs", "drift"], 50)
            {'drift': 30.0}
            >>> Forecast({"pairs": 50.0, "drift": 30.0, "leak": 20.0}).instead_of("pairs", ["pairs", "drift"], 49)
            {}
        """
        names = [*self.alone]
        later = names[names.index(name) + 1 :] if name in names else []
        planned = replace(self, alone={n: self.alone[n] for n in later if n not in left_out}).divide()[0]
        paid = any(not n.startswith(PAIRS) for n in planned)  # for the untuned model's answers
        others = {n: self.alone[n] for n in later if n in left_out}
        rest = Forecast(others, 0.0 if paid else self.untuned)
        return rest.divide(seconds - sum(planned.values()))[0]

    def sentence(self, seconds: float = math.inf) -> str:
        """Say how long the measures that fit into so many seconds will take; "" if that is no more than a second."""
        parts = [f"{name} about {duration(needs)}" for name, needs in self.divide(seconds)[0].items() if needs > 1]
        return f"Measures will take: {', '.join(parts)}." if parts else ""


def too_long(needs: float, left: float) -> str:
    """Say why a measure is left out to fit a budget."""
    return f"it would take {duration(needs, math.ceil)}, and measures have {duration(max(0.0, left), math.floor)} left."
