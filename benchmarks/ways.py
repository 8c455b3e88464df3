"""Time and peak memory of each way of training, undefended, with `kl`, and by trl's own trainer, on a CPU.

Each way is trained in a process of its own (`benchmarks.way_item`): one step to warm up, then as many as --rounds. Of
two processes each has half of the rows, and time and memory are those of the slower and the larger one. Quantised
models are measured where bitsandbytes can be imported.
"""

import json
import os
import statistics
import subprocess
import sys
from importlib.util import find_spec

from benchmarks.sidebyside import chosen, ratio
from staytrue.errors import StaytrueError

# The adapter or all weights, their precision, and the number of processes
WAYS: dict[str, tuple[str, str, int]] = {
    "lora-float32": ("lora", "float32", 1),
    "lora-bfloat16": ("lora", "bfloat16", 1),
    "lora-4bit": ("lora", "4bit", 1),
    "lora-8bit": ("lora", "8bit", 1),
    "lora-float32-two": ("lora", "float32", 2),
    "whole-float32": ("whole", "float32", 1),
    "whole-bfloat16": ("whole", "bfloat16", 1),
    "whole-float32-two": ("whole", "float32", 2),
}
TRAINERS = ("trl", "none", "kl")  # trl's own, ours without a defense, ours with `kl`
COMPARED = (("none", "trl"), ("kl", "trl"), ("kl", "none"))
_TWO = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    """Measure each way with each trainer, one after another."""
    names = chosen(compare, WAYS, "way")
    if find_spec("bitsandbytes") is None:
        names = [name for name in names if "bit" not in WAYS[name][1].removesuffix("float16")]
    results: dict = {}
    print(
        f"{'way':20s} {'trainer':8s} {'s a step':>9s} {'CPU s':>8s} {'peak MB':>9s}   (load {os.getloadavg()[0]:.1f})"
    )
    for name in names:
        measured = {trainer: _measured(name, trainer, shape_name, rounds) for trainer in TRAINERS}
        for trainer, one in measured.items():
            cpu = statistics.median(one["cpu"])
            print(f"{name:20s} {trainer:8s} {one['seconds']:9.3f} {cpu:8.3f} {one['peak_mb']:9,.0f}", flush=True)
        for trainer, against in COMPARED:
            key = f"{shape_name}/{name}/{trainer}:{against}"
            results[f"ways/{key}"] = ratio(measured, trainer, against)
            processor = {one: {"rounds": taken["cpu"]} for one, taken in measured.items()}
            results[f"cpu/{key}"] = ratio(processor, trainer, against)
            peak = round(measured[trainer]["peak_mb"] / measured[against]["peak_mb"], 3)
            results[f"memory/{key}"] = {"ratio": peak, "against": against, "limit": None}
    return results


def _measured(name: str, trainer: str, shape_name: str, steps: int) -> dict:
    """Seconds of each step, wall-clock and of the processor, and the peak memory, of one way in new processes."""
    weights, precision, processes = WAYS[name]
    launcher = _TWO if processes == 2 else ()
    item = ["benchmarks.way_item", trainer, weights, precision, shape_name, str(steps)]
    command = [sys.executable, "-m", *launcher, *item]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise StaytrueError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    each = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    steps_of_all = list(zip(*(one["seconds"] for one in each), strict=True))
    slowest = [max(step) for step in steps_of_all]
    return {
        "rounds": slowest,
        "seconds": statistics.median(slowest),
        "cpu": [max(step) for step in zip(*(one["cpu"] for one in each), strict=True)],
        "peak_mb": max(one["peak_mb"] for one in each),
    }
