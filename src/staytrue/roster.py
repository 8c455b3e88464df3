"""A run's defenses by name, and the mistakes that can be told from their classes alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from staytrue import registry
from staytrue.defense import LEVERS, Defense, pulled
from staytrue.errors import ModelError, RecipeError


def labelled(defenses: Sequence[Defense]) -> Mapping[str, Defense]:
    """Each defense under its name; a second of the same kind is `kl.2`."""
    found: dict[str, Defense] = {}
    for given in defenses:
        defense = registry.checked(given)
        name, levers = defense.name(), pulled(defense)
        if not levers:
            raise RecipeError(f"{type(defense).__name__} pulls no lever{_meant(type(defense))}.")
        for lever, need in (("penalty", "weight"), ("beside", "share")):
            if lever in levers and not hasattr(defense, need):
                raise RecipeError(f"{type(defense).__name__} overrides {lever!r}, so it needs a field {need!r}.")
        count = sum(label.split(".")[0] == name for label in found)
        found[f"{name}.{count + 1}" if count else name] = defense
    return found


def _meant(kind: type[Defense]) -> str:
    """The lever that one of a class's own names was probably meant to be."""
    own = (name for name in vars(kind) if not name.startswith("_"))
    meant = next((m for name in own for m in difflib.get_close_matches(name, LEVERS, n=1, cutoff=0.5)), None)
    return f"; did you mean {meant!r}?" if meant else f"; override one of: {', '.join(LEVERS)}"


def refuse_supervised_rows(defenses: Mapping[str, Defense]) -> None:
    """Refuse what mixes rows to be learnt into rows that are only asked, as reinforcement learning does.

    Raises:
        RecipeError: the sentence names the defense, and the one that does the same beside a reward.
    """
    for label, defense in defenses.items():
        if defense.teaches and "curate" in pulled(defense):
            raise RecipeError(
                f"{label} mixes rows with answers among the task's, but GRPO trains on prompts and would never learn "
                "those answers. Use `rehearse`, which puts supervised safe rows beside the reward."
            )


def real_layers(layers: Sequence[int], depth: int, label: str) -> list[int]:
    """Layer numbers 1 to depth; negative ones count from the end."""
    for layer in layers:
        if not (1 <= layer <= depth or -depth <= layer <= -1):
            raise ModelError(
                f"{label} asked for layer {layer}, but this model has {depth} (1 to {depth}). "
                "Use a negative number to count from the end; 0, the embeddings, is not a block."
            )
    return [layer if layer > 0 else depth + 1 + layer for layer in layers]
