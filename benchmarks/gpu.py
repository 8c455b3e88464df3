"""python -m benchmarks gpu [--shape 7B] [--minutes 20]: what a defended step costs on a GPU, and how large it is.

Qwen2.5's shapes at random weights, bfloat16, LoRA of rank 32 on every projection, 4 x 2,048 tokens of which 60 % are
scored, with activation checkpointing and without. Each line is measured in a process of its own, one after another, the
most telling first. What does not fit is written down as such and tried again with half the rows.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import AGAINST, ALONE, KEYS, SHAPES, VARIANTS, Item, peak_tflops, plan, ratios
from staytrue.utils.files import write_json

_TOO_LITTLE_S = 30  # with less time than this, nothing is begun
Measure = Callable[[Item, float], dict[str, Any]]  # an item, and the seconds it may take


@dataclass
class Log:
    """What was measured so far, and where it is written."""

    path: Path
    facts: dict[str, Any]
    until: float  # on the monotonic clock
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, item: Item, result: dict[str, Any]) -> None:
        """Say one result, and write all of them."""
        peak = peak_tflops(self.facts["device"])
        if "tflops" in result and peak:
            result = {**result, "mfu": round(result["tflops"] / peak, 4)}
        setting = {key: value for key, value in asdict(item).items() if key not in ("device", "warm")}
        self.rows.append({**setting, **result})
        print(_line(item, result), flush=True)
        facts = {**self.facts, "peak_tflops": peak, "dtype": "bfloat16"}
        write_json(self.path, {"schema": 1, **facts, "measured": self.rows, "ratios": ratios(self.rows)})

    def has(self, item: Item) -> bool:
        """Whether an item was tried."""
        return any(all(row[key] == getattr(item, key) for key in KEYS) for row in self.rows)


def main(argv: list[str]) -> None:
    options = _options(argv)
    _refuse(options)
    until = time.monotonic() + 60 * options.minutes
    facts = in_a_process(Item("tiny", "facts", device=options.device), 300)
    if facts.pop("state") != "done":
        raise SystemExit(f"python -m benchmarks gpu: the device cannot be used: {facts.get('why')}")
    now = time.gmtime()
    device = re.sub(r"[^a-z0-9]+", "-", facts["device"].lower())
    path = options.json or Path(f"runs/bench/gpu-{device}-{time.strftime('%Y-%m-%d-%H%M', now)}.json")
    log = Log(path, {**facts, "date": time.strftime("%Y-%m-%dT%H:%MZ", now)}, until)
    print(f"{facts['device']}, {facts['memory_gb']} GB, torch {facts['versions']['torch']}")
    shapes = (options.shape,) if options.shape else SHAPES
    run(plan(shapes, _names(options) or VARIANTS, options.device), log, in_a_process)
    for process in _next:
        process.kill()
    _show(log)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--shape", choices=(*SHAPES, "tiny"), help="one shape; 7B and 0.5B by default")
    parser.add_argument("--compare", default="", help="variants to run, separated by commas")
    parser.add_argument("--minutes", type=float, default=20.0, help="begin nothing after so many, and stop what runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the program")
    parser.add_argument("--json", type=Path, help="runs/bench/gpu-DEVICE-DATE.json by default")
    return parser.parse_args(argv)


def _refuse(options: argparse.Namespace) -> None:
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks gpu needs a CUDA GPU, and this machine has none (or a torch without CUDA). "
            "`--shape tiny --device cpu` tries the program."
        )
    if options.device == "cpu" and options.shape != "tiny":
        raise SystemExit("--device cpu only tries the program: add --shape tiny.")
    unknown = next((name for name in _names(options) if name not in VARIANTS), None)
    if unknown is not None:
        raise SystemExit(f"--compare {unknown}: there is no such variant; choose from {', '.join(VARIANTS)}.")


def _names(options: argparse.Namespace) -> list[str]:
    return [name for name in options.compare.split(",") if name]


def run(items: Iterable[Item], log: Log, measure: Measure) -> None:
    """Every item; with fewer rows where even the undefended step does not fit."""
    fits: dict[tuple[str, bool], int] = {}
    for planned in items:
        setting = planned.shape, planned.checkpointing
        item = replace(planned, rows=fits.get(setting, planned.rows))
        tried = None if log.has(item) else _tried(item, log, measure)
        if tried is None:
            continue
        if item.variant == "sft":
            fits[setting] = tried.rows
        elif tried.rows < item.rows:  # nothing to compare it with yet
            partners = [replace(tried, variant=name) for name in AGAINST.get(item.variant, ())]
            for partner in (one for one in partners if not log.has(one)):
                _tried(partner, log, measure)


def _tried(item: Item, log: Log, measure: Measure) -> Item | None:
    """Measure, with half the rows as long as it does not fit; the item that did."""
    while True:
        left = log.until - time.monotonic()
        if left < _TOO_LITTLE_S:
            log.add(item, {"state": "not run", "why": "The minutes were over."})
            return None
        result = measure(item, left)
        log.add(item, result)
        if result["state"] == "done":
            return item
        if result["state"] != "out of memory" or item.rows == 1:
            return None
        item = replace(item, rows=item.rows // 2)


_next: list[subprocess.Popen[str]] = []  # imports meanwhile, and touches no device before it is told what to measure


def in_a_process(item: Item, seconds: float) -> dict[str, Any]:
    """Measure in a process of its own; the next one does its imports in the meantime."""
    process = _next.pop() if _next else _begun()
    if item.device == "cuda":
        _next.append(_begun())
    try:
        said, complained = process.communicate(json.dumps(asdict(item)) + "\n", timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {"state": "not run", "why": "The minutes were over while it ran."}
    if process.returncode == 0:
        result: dict[str, Any] = json.loads(said.splitlines()[-1])
        return result
    if re.search(r"out of memory|ALLOC_FAILED", complained):
        return {"state": "out of memory"}
    last = (complained.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
    return {"state": "failed", "why": last}


def _begun() -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu_item"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)  # ends when its input does


def _line(item: Item, result: dict[str, Any]) -> str:
    recomputing = "" if item.variant in ALONE else f"checkpointing {'on ' if item.checkpointing else 'off'}"
    named = f"{item.shape:5s} {recomputing:17s} {item.rows} rows  {item.variant:15s}"
    if result["state"] != "done":
        return f"{named} {result['state']}. {result.get('why', '')}".rstrip()
    if "seconds" not in result:
        return f"{named} {json.dumps({key: value for key, value in result.items() if key != 'state'})}"
    used = f"  {100 * result['mfu']:4.1f} % of peak" if "mfu" in result else ""
    memory = f"  {result['peak_gb']:6.1f} GB" if "peak_gb" in result else ""
    return f"{named} {1e3 * result['seconds']:8.1f} ms  {result['tokens_per_s']:9.0f} tokens/s{used}{memory}"


def _show(log: Log) -> None:
    print()
    for name, row in ratios(log.rows).items():
        limit = "" if row["limit"] is None else f"  limit {row['limit']:.2f}"
        print(f"{name:62s} {row['ratio']:6.2f}{limit}")
    print(f"\nWrote {log.path}")
