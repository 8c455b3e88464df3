"""Timing of variants that alternate in one process, in reversed order every other round; medians and peak memory."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

Variants = dict[str, Callable[[], object]]
Timed = dict[str, Callable[[], float]]


def measure(variants: Variants, rounds: int, memory: bool = True) -> dict[str, dict]:
    """Median, lowest and highest seconds of each variant over the rounds, and its growth of peak memory in MB."""
    for run in variants.values():
        run()  # warm up once
    growth = {name: _growth(run) if memory else 0.0 for name, run in variants.items()}
    measured = alternate({name: partial(seconds, run) for name, run in variants.items()}, rounds)
    return {name: {**value, "peak_mb": growth[name]} for name, value in measured.items()}


def alternate(variants: Timed, rounds: int) -> dict[str, dict]:
    """Like `measure`, for variants that return their own seconds because only a part of them is timed."""
    _give_back(2**25)  # glibc's own upper limit, which it reaches by itself
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


def chosen(compare: list[str], known: Iterable[str], kind: str = "variant") -> list[str]:
    """The names given to --compare, or all known names; an unknown name ends the command with one sentence."""
    unknown = next((name for name in compare if name not in known), None)
    if unknown is not None:
        raise SystemExit(f"--compare {unknown}: there is no such {kind}; choose from {', '.join(known)}.")
    return compare or list(known)


def seconds(run: Callable[[], object]) -> float:
    """Wall time in seconds."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, as in a worker of a study."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _growth(run: Callable[[], object]) -> float:
    """Growth of peak resident memory in MB; slow, so never during a timed round."""
    gc.collect()
    before = _reset_peak()
    run()
    return (_peak() - before) / 1e6


def _give_back(larger_than: int) -> None:
    """Return freed blocks above a size to the system at once, so that the allocator's cache is not measured (glibc)."""
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").mallopt(-3, larger_than)  # M_MMAP_THRESHOLD


def ratio(measured: dict, name: str, against: str, limit: float | None = None) -> dict:
    """The median of the ratios of each round, so that slow phases of the machine cancel."""
    pairs = [a / b for a, b in zip(measured[name]["rounds"], measured[against]["rounds"], strict=True)]
    return {
        "ratio": round(statistics.median(pairs), 3),
        "low": round(min(pairs), 3),
        "high": round(max(pairs), 3),
        "against": against,
        "limit": limit,
    }


def to_goal(measured: dict, goal: float) -> dict:
    """Seconds relative to a fixed goal."""
    ends = {key: round(measured[key] / goal, 3) for key in ("low", "high")}
    return share(measured["seconds"], goal, "s") | ends


def share(value: float, goal: float, unit: str) -> dict:
    """A single number relative to a fixed goal."""
    return {"ratio": round(value / goal, 3), "against": f"{goal:g} {unit}", "limit": None}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _reset_peak() -> int:
    """Resident bytes now, after a reset of the kernel's high-water mark to them (Linux; 0 elsewhere)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS:")
    except OSError:
        return 0


def _peak() -> int:
    return _status("VmHWM:") if Path("/proc/self/status").exists() else 0


_give_back(2**17)  # before anything large is allocated
