"""`freeze_blocks` stops training the blocks that defenses freeze, and `thaw` has them trained again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from staytrue.defense import Defense, pulled
from staytrue.errors import ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.block_outputs import real_layers


def freeze_blocks(parts: ModelParts, defenses: Mapping[str, Defense]) -> list[Tensor]:
    """Stop training every block that a defense freezes: its adapter, or its own weights.

    Returns:
        The weights so frozen.

    Raises:
        ModelError: no trained weight is left, or a defense freezes none.
    """
    frozen: list[Tensor] = []
    if not any("freeze" in pulled(defense) for defense in defenses.values()):
        return frozen
    blocks = parts.blocks
    for label, defense in defenses.items():
        if "freeze" in pulled(defense):
            layers = real_layers(defense.freeze(len(blocks)), len(blocks), label)
            trained = [w for layer in layers for w in blocks[layer - 1].parameters() if w.requires_grad]
            if layers and not trained:
                raise ModelError(
                    f"{label}: no weight of blocks {', '.join(map(str, layers))} is trained, so there is nothing to "
                    "freeze; name blocks that are trained."
                )
            frozen += trained
    kept = {id(weight) for weight in frozen}
    if frozen and not any(w.requires_grad and id(w) not in kept for w in parts.model.parameters()):
        everything = "the whole adapter" if parts.has_adapter else "every weight"
        raise ModelError(f"The defenses freeze {everything}, so nothing is trained; name fewer layers.")
    for weight in frozen:
        weight.requires_grad_(False)
    return frozen


def thaw(weights: Iterable[Tensor]) -> None:
    """Let weights that were frozen be trained again."""
    for weight in weights:
        weight.requires_grad_(True)
