"""`project` lets defenses change the trained weights after the last step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from staytrue.defense import Defense
from staytrue.utils.console import Progress


def project(
    defenses: Mapping[str, Defense], model: Any, progress: Progress | None, say: Callable[[str], None]
) -> dict[str, float]:
    """Change the trained weights in place, last defense first; a defense is passed what its method takes.

    Args:
        defenses: by label.
        model: the trained model.
        progress: shows how far a defense is.
        say: called with its sentence about what it did.

    Returns:
        What each defense reports, by `LABEL/NAME`.
    """
    report: dict[str, float] = {}
    for label, defense in reversed(list(defenses.items())):
        taken = signature(defense.project).parameters
        shown = {k: v for k, v in {"progress": progress, "say": say}.items() if k in taken}
        report |= {f"{label}/{name}": number for name, number in defense.project(model, **shown).items()}
    return report
