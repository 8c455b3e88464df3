"""Variants alternate in one process, order reversed every round; medians; peak memory in a round of its own."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

Variants = dict[str, Callable[[], object]]
Timed = dict[str, Callable[[], float]]


def measure(variants: Variants, rounds: int, memory: bool = True) -> dict[str, dict]:
    """Seconds of each variant, median, lowest and highest over the rounds, and its peak memory growth (MB)."""
    for run in variants.values():
        run()  # warm up once
    growth = {name: _growth(run) if memory else 0.0 for name, run in variants.items()}
    measured = alternate({name: partial(seconds, run) for name, run in variants.items()}, rounds)
    return {name: {**value, "peak_mb": growth[name]} for name, value in measured.items()}


def alternate(variants: Timed, rounds: int) -> dict[str, dict]:
    """The same for variants that give their own seconds, because not all of what they do is to be timed."""
    _give_back(2**25)  # as an allocator that is left alone comes to do
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        names = list(variants) if turn % 2 == 0 else list(reversed(variants))
        for name in names:
            gc.collect()
            taken[name].append(variants[name]())
    _give_back(2**17)
    return {
        name: {"seconds": statistics.median(took), "low": min(took), "high": max(took), "rounds": took}
        for name, took in taken.items()
    }


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


@contextmanager
def one_thread() -> Iterator[None]:
    """As a worker of a study has it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _growth(run: Callable[[], object]) -> float:
    """Peak resident memory (MB) above the level just before; it costs time, so nothing is timed meanwhile."""
    gc.collect()
    before = _reset_peak()
    run()
    return (_peak() - before) / 1e6


def _give_back(larger_than: int) -> None:
    """Have freed blocks above a size leave the process at once, or the allocator's cache would be measured (glibc)."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").mallopt(-3, larger_than)  # M_MMAP_THRESHOLD


def ratio(measured: dict, name: str, against: str, limit: float | None = None) -> dict:
    """The median of the ratios round by round: what the machine did meanwhile cancels out."""
    pairs = [a / b for a, b in zip(measured[name]["rounds"], measured[against]["rounds"], strict=True)]
    return {
        "ratio": round(statistics.median(pairs), 3),
        "low": round(min(pairs), 3),
        "high": round(max(pairs), 3),
        "against": against,
        "limit": limit,
    }


def to_goal(measured: dict, goal: float) -> dict:
    """Seconds as a share of a goal that is a number of its own, not another variant's."""
    ends = {key: round(measured[key] / goal, 3) for key in ("low", "high")}
    return share(measured["seconds"], goal, "s") | ends


def share(value: float, goal: float, unit: str) -> dict:
    """The same for what is counted once."""
    return {"ratio": round(value / goal, 3), "against": f"{goal:g} {unit}", "limit": None}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> int:
    """Resident bytes now, with the kernel's high-water mark set back to them (Linux; elsewhere 0)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS:")
    except OSError:
        return 0


def _peak() -> int:
    return _status("VmHWM:") if Path("/proc/self/status").exists() else 0


_give_back(2**17)  # before anything large is allocated
