"""The machine that a run trains on, as far as it decides results; compared when a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staytrue.config.recipe import Recipe
from staytrue.errors import RequestError
from staytrue.utils import processes
from staytrue.utils.console import quoted


def device(recipe: Recipe) -> str:
    """The kind of device that a recipe trains on here: cpu, cuda or mps."""
    from staytrue.modeling import loading

    on_cpu = recipe.device == "cpu" or recipe.train.get("use_cpu")
    return "cpu" if on_cpu else loading.device()


def describe(recipe: Recipe) -> dict[str, Any]:
    """The manifest's `machine`: the device, the precision of the model's weights, and the number of threads.

    The number of processes is added where there are several, and how they divide the weights where they do.

    A processor is named by the instructions that torch uses on it, since they decide how sums are rounded.
    """
    import torch

    from staytrue.modeling import loading

    kind = device(recipe)
    names = {"cuda": torch.cuda.get_device_name, "cpu": torch.backends.cpu.get_cpu_capability}
    place = f"{kind} ({names[kind]()})" if kind in names else kind
    dtype = str(loading.precision(recipe.dtype)).removeprefix("torch.")
    several: dict[str, Any] = {"processes": processes.count()} if processes.count() > 1 else {}
    if processes.divides():
        several["divided"] = "FSDP2"
    return {"device": place, "dtype": dtype, "threads": torch.get_num_threads(), **several}


def notes(path: Path, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """One sentence about what differs between the machines before and after an interruption; none if nothing does.

    Another device or number of threads is no other training: sums are rounded in another order, as between two runs on
    two machines. Weights in another precision are other weights, which every later step would start from.

    Args:
        path: the run folder.
        before: of the machine that the run began on; None of a run whose manifest has none.
        now: of this one.

    Raises:
        RequestError: the model's weights would be in another precision, or the processes are more or fewer.
    """
    if before is None:
        return []
    if before.get("dtype") != now["dtype"]:
        raise RequestError(
            f"{path} began with weights in {before.get('dtype')} on {before.get('device')}, and here, on "
            f"{now['device']}, they are in {now['dtype']}, so it would go on as another training. Resume it on such a "
            "device, or train again with another --out and `dtype` in the recipe."
        )
    began, here = before.get("processes", 1), now.get("processes", 1)
    if began != here:
        launch = "" if began == 1 else f"torchrun --nproc-per-node {began} -m "
        raise RequestError(
            f"{path} began on {began} process{'es' if began > 1 else ''}, and this is a training on {here}, whose "
            f"steps would read other rows. Go on with `{launch}staytrue train --resume {quoted(path)}`."
        )
    if before.get("divided") != now.get("divided"):
        raise RequestError(
            f"{path} began with {_division(before)}, and this is a training with {_division(now)}, which cannot read "
            f"its checkpoints. Go on {'with' if before.get('divided') else 'without'} --use_fsdp --fsdp_version 2 "
            "(ACCELERATE_USE_FSDP and FSDP_VERSION in the environment)."
        )
    other = [f"{key} {before.get(key)}, now {now[key]}" for key in ("device", "threads") if before.get(key) != now[key]]
    if not other:
        return []
    hint = " Set OMP_NUM_THREADS to the number of threads." if before.get("threads") != now["threads"] else ""
    sentence = f"{path} began on another machine or setting ({'; '.join(other)}): its result may differ by rounding "
    return [f"{sentence}from that of an uninterrupted run.{hint}"]


def _division(machine: Mapping[str, Any]) -> str:
    return (
        "weights that FSDP2 divides among the processes" if machine.get("divided") else "whole weights on each process"
    )
