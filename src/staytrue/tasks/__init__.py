"""Harmless things to learn: one file per task, found by file name; `task` and `calculation` are what they share."""

from __future__ import annotations

import pkgutil

_SHARED = ("task", "calculation")


def names() -> list[str]:
    """Every task that there is, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)
