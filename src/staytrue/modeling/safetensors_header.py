"""Reads and checks the header of a safetensors file, before any library maps the file. No torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import json_value, shown
from staytrue.errors import ModelError

LONGEST_HEADER = 1 << 25  # bytes; the shards of the largest models have some 10 MB
FLOATS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}
_WHOLE = {f"{sign}{bits}": bits for sign in "IU" for bits in (8, 16, 32, 64)} | {"BOOL": 8}
_SMALL = {"F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4}
_BITS = {**FLOATS, **_WHOLE, **_SMALL, "C64": 64}
_COPY = "Copy the file again, from a source that you trust."


def read_header(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Read the dtype and the shape of every matrix.

    Returns:
        Names of matrices, each with its dtype as the format writes it ("BF16") and its shape.

    Raises:
        ModelError: the header is too large or no header, or its matrices do not fill the file exactly once.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or (length > size - 8 and length <= LONGEST_HEADER):
            raise ModelError(f"{file} is cut short ({size} bytes). Copy it again.")
        if length > LONGEST_HEADER:
            raise ModelError(
                f"{file} is no safetensors file: its first 8 bytes give a header of {length:,} bytes; at most "
                f"{LONGEST_HEADER:,} are read. {_COPY}"
            )
        content = stream.read(length)
    try:
        entries = json_value(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} has a header that cannot be read: {_reason(error)}. {_COPY}") from None
    if not isinstance(entries, dict):
        raise ModelError(f"{file} has a header that is {shown(entries)}, not an object. {_COPY}")
    return _checked(file, entries, size - 8 - length)


def _checked(file: Path, entries: dict[str, Any], size: int) -> dict[str, tuple[str, list[int]]]:
    """The matrices of a header, whose values take `size` bytes in all."""
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{file} has the metadata {shown(metadata)}; they are texts under names. {_COPY}")
    for name, entry in entries.items():
        if fault := _fault(entry):
            raise ModelError(f"{file}: the matrix {shown(name)} {fault}. {_COPY}")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            what = "overlaps the one before it" if first < end else "leaves a gap before it"
            raise ModelError(f"{file}: the matrix {shown(name)} {what} (bytes {first} to {last}). {_COPY}")
        end = last
    if end != size:
        what = "is cut short" if end > size else "holds bytes that belong to no matrix"
        raise ModelError(f"{file} {what}: its matrices take {end:,} bytes, and it has {size:,}. Copy it again.")
    return {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}


def _fault(entry: Any) -> str | None:
    """The fault of one matrix's entry."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        return f"is {shown(entry)}, without dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"has the dtype {shown(dtype)}, which is none of {', '.join(_BITS)}"
    if not _are_sizes(shape):
        return f"has the shape {shown(shape)}; write a list of sizes"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return f"has the data_offsets {shown(offsets)}; write its first byte and the byte after its last"
    if (offsets[1] - offsets[0]) * 8 != math.prod(shape) * _BITS[dtype]:
        return f"is {shown(shape)} in {dtype}, but takes {offsets[1] - offsets[0]:,} bytes"
    return None


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 63 for size in value)
    )


def _reason(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
