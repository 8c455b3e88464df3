"""Looks at this machine: versions of packages, processors, accelerator, memory, disk, the hub. It changes nothing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from staytrue.doctor.finding import Finding
from staytrue.errors import RequestError
from staytrue.utils.files import user_cache
from staytrue.utils.memory import machine_memory

_LEAST_FREE = 5e9  # bytes: checkpoints and converted weights of a small model


def findings() -> Iterator[Finding]:
    """Every finding about the machine, the quick ones first."""
    yield Finding("Python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield from packages()
    yield processors()
    yield disk(Path.cwd(), "this folder")
    yield disk(_existing(user_cache()), "the cache")
    yield accelerator()
    yield hub()


def packages() -> Iterator[Finding]:
    """Whether each package that staytrue needs is installed in a version that it declares."""
    wrong = 0
    for text in metadata.requires("staytrue") or ():
        needed = Requirement(text)
        if needed.marker is not None:  # an extra
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None or not needed.specifier.contains(version, prereleases=True):
            wrong += 1
            yield Finding(needed.name, f"{version or 'absent'}, needed {needed.specifier}", f"pip install '{text}'")
    if not wrong:
        versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft", "trl")]
        yield Finding("packages", ", ".join(versions))


def processors() -> Finding:
    """Cores, load, and whether more threads than free cores would be started."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load, threads = os.getloadavg()[0], os.environ.get("OMP_NUM_THREADS", "not set")
    says = f"{cores} cores, load {load:.1f}, OMP_NUM_THREADS {threads}, memory {_memory()}"
    busy = load > cores and threads != "1"
    advice = "Other processes use the cores: set OMP_NUM_THREADS=1, or training costs several times the processor time."
    return Finding("processor", says, advice if busy else None, hinders=False)


def disk(folder: Path, name: str) -> Finding:
    """Free space where a folder is."""
    free = shutil.disk_usage(folder).free
    says = f"{name} ({folder}) has {free / 1e9:.1f} GB free"
    if not os.access(folder, os.W_OK):
        return Finding("disk", f"{name} ({folder}) is not writable", "Work in another folder, or set XDG_CACHE_HOME.")
    return Finding("disk", says, "Free some space, or use another disk with --out." if free < _LEAST_FREE else None)


def accelerator() -> Finding:
    """The device that training would use."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        half = "bfloat16" if torch.cuda.is_bf16_supported() else "float32, since it has no bfloat16"
        says = f"{torch.cuda.device_count()} x {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; training in {half}"
        several = torch.cuda.device_count() > 1
        return Finding("device", says, "A recipe uses one: set CUDA_VISIBLE_DEVICES=0." if several else None, False)
    if torch.backends.mps.is_available():
        return Finding("device", "Apple GPU (mps); training in float32")
    built = f"torch {torch.__version__} finds no GPU, so training runs on the processor"
    if shutil.which("nvidia-smi") and "+cpu" in torch.__version__:
        return Finding("device", built, "There is a GPU here: install a CUDA build of torch.")
    return Finding("device", built)


def hub() -> Finding:
    """Whether the model hub can be reached; only models named by a hub name need it."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return Finding("model hub", "HF_HUB_OFFLINE=1: models come from folders and the cache only")
    from huggingface_hub.constants import ENDPOINT as address  # noqa: N811 (HF_ENDPOINT, or the public hub)

    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5):
            return Finding("model hub", f"{address} answers")
    except urllib.error.HTTPError:
        return Finding("model hub", f"{address} answers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        remedy = "Name models by folder, use `staytrue fetch smollm2`, or set HF_ENDPOINT to a mirror."
        return Finding("model hub", f"{address} does not answer ({reason})", remedy, hinders=False)


def _memory() -> str:
    """Free and total memory, where the system has /proc."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return "unknown"
    total, free = (int(re.search(rf"{key}:\s+(\d+)", text)[1]) / 2**20 for key in ("MemTotal", "MemAvailable"))  # type: ignore[index]
    limit = machine_memory() / 2**30
    container = f", of which this container may take {limit:.1f}" if limit < 0.99 * total else ""
    return f"{free:.1f} of {total:.1f} GiB free{container}"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    place = next((p for p in (folder, *folder.absolute().parents) if p.is_dir()), None)
    if place is None:
        raise RequestError(f"{folder} is on no disk of this machine; set XDG_CACHE_HOME.")
    return place
