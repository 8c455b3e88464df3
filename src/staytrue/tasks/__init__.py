"""Harmless tasks: one file each, found by file name. `task` and `calculation` contain their shared code."""

from __future__ import annotations

import pkgutil

_SHARED = ("task", "calculation")


def names() -> list[str]:
    """Return the names of all tasks, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _SHARED)
