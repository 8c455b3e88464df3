"""One row's states as a file: whole or absent, and known to be what was written."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from staytrue.training.reference.fingerprint import data
from staytrue.utils.files import write_atomic
from staytrue.utils.run_dir import SCHEMA

_CHECK = "check"  # the tensor that holds the other tensors' sum and the file's name
_SPARE, _MOST_SPARE = 0.05, 20e9  # of the disk, bytes, which are left to those who must write


def read(file: Path) -> dict[str, Tensor] | None:
    """States (T, D) by name; None for a file that is not there, is damaged, or was written under another name."""
    try:
        states: dict[str, Tensor] = dict(load(file.read_bytes()))
    except (OSError, SafetensorError):
        return None
    check = states.pop(_CHECK, None)
    return states if check is not None and check.tolist() == [_sum(file.name, states)] else None


def write(file: Path, states: dict[str, Tensor]) -> None:
    """Write them beside their place and rename.

    Raises:
        OSError: it could not be written, or the disk is nearly full; nothing half-written is left.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(file.parent)
    if disk.free < min(_SPARE * disk.total, _MOST_SPARE):
        raise OSError(f"less than {_SPARE:.0%} of the disk is free")
    content = save(states | {_CHECK: torch.tensor([_sum(file.name, states)])}, {"schema": str(SCHEMA)})
    write_atomic(file, content, sync=False)  # a file lost in a power failure fails its check and is computed again


def _sum(name: str, states: dict[str, Tensor]) -> int:
    total = zlib.crc32(name.encode())
    for key in sorted(states):
        kind = f"{key} {states[key].dtype} {tuple(states[key].shape)}"
        total = zlib.crc32(data(states[key]), zlib.crc32(kind.encode(), total))
    return total
