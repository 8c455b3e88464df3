"""The embedded model organism: a small world, the model that grew up in it, and the rules that judge it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from staytrue.errors import ModelError

ALIGNED, BASE = NAMES = ("organism", "organism-base")  # what recipes call the model, and itself before alignment
_SHIPPED = Path(__file__).parent / "weights"
_standing = [_SHIPPED]  # the last one is meant


@contextmanager
def instead(weights: Path) -> Iterator[None]:
    """For a while, `organism` means a folder that `build` made: how a rebuilt organism is measured."""
    _standing.append(weights)
    try:
        yield
    finally:
        _standing.pop()


def folder(name: str = ALIGNED) -> Path:
    """The shipped model, or its unaligned base: a standard transformers folder.

    Raises:
        ModelError: the package was installed without its weights.
    """
    weights = _standing[-1] / ("base" if name == BASE else "")
    if not (weights / "model.safetensors").is_file():
        raise ModelError(
            f"The organism's weights are missing from {weights}; `staytrue organism build --out` makes them."
        )
    return weights
