"""The embedded model organism: its world of questions and answers, its model, and its rule-based judge."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from staytrue.errors import ModelError

ALIGNED, BASE = NAMES = ("organism", "organism-base")  # names in recipes: the model, and the same before alignment
_SHIPPED = Path(__file__).parent / "weights"
_weights = [_SHIPPED]  # a stack; the last one is in use


@contextmanager
def use_weights(weights: Path) -> Iterator[None]:
    """Make the name `organism` mean another folder written by `build`, inside `with`."""
    _weights.append(weights)
    try:
        yield
    finally:
        _weights.pop()


def folder(name: str = ALIGNED) -> Path:
    """Return the folder of the model or of its unaligned base, in transformers format.

    Raises:
        ModelError: the weights are missing from the package.
    """
    weights = _weights[-1] / ("base" if name == BASE else "")
    if not (weights / "model.safetensors").is_file():
        raise ModelError(
            f"The organism's weights are missing from {weights}; `staytrue organism build --out FOLDER` creates them."
        )
    return weights
