"""`machine_memory`: the memory that this process may take, by the machine and by the limits of its container."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_FILES = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}  # control groups v2, and v1


def machine_memory() -> int:
    """Return the bytes of memory that this process may take: the machine's, or those of its container if fewer."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, container_memory() or whole)


def container_memory() -> int | None:
    """Return the least limit of this process's control groups and of those above them; None without one."""
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    try:
        lines = _GROUPS.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if controller not in _FILES:
                continue
            folder, name = _FILES[controller]
            # A container may see its own group as the root, under a path that is valid outside of it only.
            root, group = _MOUNT / folder, Path(path.strip("/"))
            for place in (group, *group.parents):
                try:
                    yield int((root / place / name).read_text())
                except (OSError, ValueError):  # no such group here, or "max": no limit
                    continue
