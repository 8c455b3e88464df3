"""What is measured on a GPU, in which order, and what is compared with what. Nothing heavy is imported."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

# Dense bfloat16 TFLOP/s by the beginning of a device's name; NVIDIA's data sheets, without sparsity.
PEAKS = {
    "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835, "NVIDIA H100": 989, "NVIDIA H200": 989, "NVIDIA A100": 312,
    "NVIDIA B200": 2250, "NVIDIA L40S": 362, "NVIDIA L4": 121,
}  # fmt: skip
SHAPES = ("7B", "0.5B")
FIRST, LATER = (
    ("sft", "kl", "trl-sft", "published"),
    ("all", "anchor", "kl-cached", "all-and-anchor", "steer", "ldifs", "liger"),
)
ALONE = ("head", "switch", "sample")  # no step
VARIANTS = (*FIRST, *LATER, *ALONE)
AGAINST = {  # each variant, and what it is compared with
    "kl": ("sft", "trl-sft"), "sft": ("trl-sft",), "published": ("kl",), "all": ("kl",), "anchor": ("sft",),
    "all-and-anchor": ("kl",), "steer": ("sft",), "ldifs": ("sft",), "liger": ("sft",), "kl-cached": ("sft", "kl"),
}  # fmt: skip
KEYS = ("shape", "checkpointing", "variant", "rows")  # what tells one item from another


@dataclass(frozen=True)
class Item:
    """One measurement: what, and where."""

    shape: str
    variant: str
    checkpointing: bool = False
    rows: int = 4
    device: str = "cuda"
    steps: int = 8  # an anchor is due every fourth step of four rows
    warm: int = 3


def peak_tflops(device: str) -> int | None:
    """What a device can do at most, where we know it."""
    names = sorted(PEAKS, key=len, reverse=True)
    return next((PEAKS[name] for name in names if device.startswith(name)), None)


def plan(shapes: Sequence[str], variants: Sequence[str], device: str) -> Iterator[Item]:
    """The most telling first: four variants in every setting, what is no step, then the other defenses."""
    settings = [Item(shape, "", on, device=device) for shape in shapes for on in (True, False)]
    for names in (FIRST, ALONE, LATER):
        for setting in settings if names != ALONE else settings[1:2]:
            yield from (replace(setting, variant=name) for name in names if name in variants)


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Time and peak memory of each variant against what it is compared with, in the same setting and batch."""
    results: dict[str, dict[str, Any]] = {}
    done = {tuple(row[key] for key in KEYS): row for row in rows if row["state"] == "done" and "seconds" in row}
    for (shape, checkpointing, variant, size), row in done.items():
        for against in AGAINST.get(variant, ()):
            other = done.get((shape, checkpointing, against, size))
            if other is None:
                continue
            where = f"{shape}/{'' if checkpointing else 'no-'}checkpointing/{size}-rows/{variant}:{against}"
            ends = {"low": round(row["low"] / other["high"], 3), "high": round(row["high"] / other["low"], 3)}
            details = {**ends, "against": against, "limit": round(row["gflop_per_token"] / other["gflop_per_token"], 3)}
            results[f"gpu/{where}"] = {"ratio": round(row["seconds"] / other["seconds"], 3), **details}
            if "peak_gb" in row:
                value = round(row["peak_gb"] / other["peak_gb"], 3)
                results[f"gpu-memory/{where}"] = {"ratio": value, "against": against, "limit": None}
    return results
