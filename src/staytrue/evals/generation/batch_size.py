"""`batch_size`: how many answers a model writes side by side, by the memory that a row's cache takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from staytrue.utils.memory import machine_memory

_MOST = 192  # rows; a token gets no cheaper with more
_MOST_ON_A_CPU, _SMALL = 64, 20_000_000  # rows, for models of at least so many parameters: 64 rows fill its cores
_LOGITS = 16  # bytes a token of the vocabulary: float32 logits, and their copies while a token is drawn


@dataclass(frozen=True)
class RowBytes:
    """Memory of one row, in bytes."""

    token: int  # keys and values, for each token of prompt and answer
    row: int  # states that do not grow, and logits

    @classmethod
    def of(cls, cache: Any, rows: int, tokens: int, vocabulary: int) -> RowBytes:
        """Measure a cache that holds so many rows and tokens; a window is counted as if it grew."""
        growing, fixed = 0, 0
        for layer in getattr(cache, "layers", [cache]):
            for name, value in vars(layer).items():
                if name in ("keys", "values"):
                    growing += value.nbytes if isinstance(value, torch.Tensor) else 0
                elif not name.startswith("_"):
                    fixed += _tensor_bytes(value)
        return cls(-(-growing // (rows * tokens)), fixed // rows + _LOGITS * vocabulary)


def batch_size(model: Any, size: RowBytes, tokens: int) -> int:
    """The number of rows that fill at most half of a GPU's free memory, or a quarter of the machine's or container's.

    Args:
        model: decides the device, and by its size the most rows on a CPU.
        size: memory of one of its rows.
        tokens: of the longest prompt and the longest answer together.

    Returns:
        1 to 192; at most 64 on a CPU if the model has 20 million parameters or more. Computers of one kind get one
        number, whatever else runs on them, unless a container limits their memory.
    """
    device = next(model.parameters()).device
    large = sum(weight.numel() for weight in model.parameters()) >= _SMALL
    most = _MOST_ON_A_CPU if large and device.type == "cpu" else _MOST
    return max(1, min(most, _memory(device) // (size.token * tokens + size.row)))


def _memory(device: torch.device) -> int:
    """Bytes that caches may take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) // 2
    return machine_memory() // 4


def _tensor_bytes(value: Any) -> int:
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    return sum(one.nbytes for one in values if isinstance(one, torch.Tensor))
