"""One measurement on a device, in a process of its own: what it leaves behind is gone with it, also out of memory.

    echo '{"shape": "7B", "variant": "kl", "checkpointing": true}' | python -m benchmarks.gpu_item

prints one line of JSON; no device is touched before the line has been read. `gpu.py` decides what is run, and writes it
down.
"""

import gc
import json
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import torch
from transformers import logging

from benchmarks import head, sample
from benchmarks.gpu_plan import Item
from benchmarks.gpu_ways import liger, looped, published, size, trained
from benchmarks.shapes import Shape, flops, model
from staytrue.modeling.architecture import ModelParts

_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "liger-kernel", "triton")


def measured(item: Item) -> dict:
    """What one item took, or why it did not."""
    kinds = {"facts": facts, "head": heads, "switch": switch, "sample": sampling}
    try:
        return {"state": "done", **kinds.get(item.variant, step)(item)}
    except torch.OutOfMemoryError:
        return {"state": "out of memory"}
    except ImportError as error:
        return {"state": "not run", "why": f"{error}."}


def step(item: Item) -> dict:
    """Steps of one variant: seconds (mean, lowest, highest), tokens and FLOPs a second, memory in GB."""
    ways = {"published": published, "liger": liger}
    taken = ways.get(item.variant, trained)(item)
    tokens, seconds = item.rows * size(item).tokens, statistics.mean(taken.seconds)
    per_token = flops(size(item), item.variant, gpu=True)
    done = {
        "seconds": round(seconds, 5),
        "low": round(min(taken.seconds), 5),
        "high": round(max(taken.seconds), 5),
        "tokens_per_s": round(tokens / seconds, 1),
        "gflop_per_token": round(per_token / 1e9, 6),
        "tflops": float(f"{per_token * tokens / seconds / 1e12:.5g}"),
    }
    memory = {"peak_gb": round(taken.peak / 1e9, 3), "resident_gb": round(taken.resident / 1e9, 3)}
    return done | (memory if item.device == "cuda" else {})


def heads(item: Item) -> dict:
    """Each way through the head alone: milliseconds (mean) and peak memory above what is there, in GB."""
    ways = head.passes(size(item), item.device, torch.bfloat16)
    results = {}
    for name, way in ways.items():
        gc.collect()
        taken = looped(item, way)
        results[name] = {"ms": round(1e3 * statistics.mean(taken.seconds), 3)}
        if item.device == "cuda":
            results[name]["peak_gb"] = round((taken.peak - taken.resident) / 1e9, 3)
    return {"ways": results}


def switch(item: Item) -> dict:
    """The adapter off and on at 196 modules: milliseconds of the host, and no synchronisation allowed."""
    adapted = model(Shape(32, 28, 64, 100, True, 4), device=item.device)
    parts = ModelParts(adapted)
    taken = []
    if item.device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(15):
        begun = time.perf_counter()
        with parts.untrained():
            pass
        taken.append(time.perf_counter() - begun)
    return {"modules": len(parts.switches), "ms": round(1e3 * statistics.median(taken), 4)}


def sampling(item: Item) -> dict:
    """Four answers to each of 16 prompts: tokens a second of `generate`, and of ours with 32 and with 64 at once."""
    adapted = model(size(item), device=item.device, dtype=torch.bfloat16).eval()
    results, tokens = {}, 32
    with sample.endless():
        for name, way in sample.ways(adapted, size(item), 16, 4, tokens, at_once=(32, 64)).items():
            way()
            taken = []
            for _ in range(2):
                begun = time.perf_counter()
                way()
                if item.device == "cuda":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - begun)
            results[name] = {"tokens_per_s": round(16 * 4 * tokens / min(taken), 1)}
    return {"ways": results}


def facts(item: Item) -> dict:
    """The device, and what is installed."""
    base: dict = {"versions": {package: _installed(package) for package in _PACKAGES}}
    if item.device == "cpu":
        return {**base, "device": "cpu", "memory_gb": None}
    properties = torch.cuda.get_device_properties(0)
    return {**base, "device": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    logging.set_verbosity_error()
    if line := sys.stdin.readline().strip():
        print(json.dumps(measured(Item(**json.loads(line)))))
