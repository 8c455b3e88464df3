"""`memory` and `seconds`: what training would take, estimated from the model's configuration and the batches."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from staytrue.config.trainer_args import recomputing
from staytrue.errors import ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.lm_head import tile_rows
from staytrue.modeling.loading import device
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs.run_batches import Batches
from staytrue.utils.memory import machine_memory

_TRAINED = 4  # times a trained weight: itself, its gradient, and AdamW's two moments
_SUMMED = 1  # and of several processes: the buffer in which DDP sums the gradients
_LOGIT = 12  # bytes a logit of the head's tile: it, its softmax and its gradient, in float32
# On a CPU, times what a step keeps: glibc's allocator holds freed pieces of other sizes (`python -m benchmarks fit`)
_HELD, _HELD_WITH_REFERENCE, _HELD_IN_HALF, _HELD_RECOMPUTED = 1.75, 2.4, 1.5, 0.8
_TIMED, _TIMED_ROWS = 0.5, 1024  # seconds of matrix products, and their most rows
_REACHED = 0.6  # of their speed by a training step, roughly


@dataclass(frozen=True)
class Memory:
    """The most memory that training takes, in bytes; with several processes, that each of them takes.

    Attributes:
        program: of this program before a model is loaded; 0 with a GPU, where it is not the GPU's.
        weights: of the model, without those that are trained.
        copy: of a reference that is another model: the frozen copy of full fine-tuning, or a named one.
        trained: of the trained weights, their gradients and the optimizer's moments, and with several processes of
            the buffer that sums the gradients.
        activations: which the longest batch keeps for its backward pass, and on a CPU what the allocator does not give
            back; None where they cannot be counted.
        head: of the logits of a part of the batch.
        generation: of keys, values and logits while the model writes answers, when no activations are kept; 0 where
            it writes none, None where they cannot be counted.
    """

    program: int
    weights: int
    copy: int
    trained: int
    activations: int | None
    head: int
    generation: int | None = 0

    @property
    def total(self) -> int:
        """The most at one time, without what cannot be counted."""
        step = (self.activations or 0) + self.head
        return self.program + self.weights + self.copy + self.trained + max(step, self.generation or 0)


def memory(skeleton: Skeleton, batches: Batches, arguments: Any, *, reference: bool, copy: bool) -> Memory:
    """Estimate the most memory that a run takes.

    Not counted are the auxiliary rows of defenses, which take a pass of their own, and answers that vLLM writes.

    Args:
        skeleton: the model with its adapter.
        batches: of the run.
        arguments: of the trainer.
        reference: whether the untouched model reads every batch too.
        copy: whether it is another model in memory: a frozen copy, or one that the recipe names.
    """
    frozen, kind = skeleton.frozen_bytes, device_of(arguments)
    return Memory(
        program=_program() if kind == "cpu" else 0,
        weights=frozen,
        copy=(frozen or sum(weight.nbytes for weight in skeleton.weights)) if copy else 0,
        trained=sum(weight.nbytes for weight in skeleton.trained)
        * (_TRAINED + (_SUMMED if arguments.world_size > 1 else 0)),
        activations=_activations(skeleton, batches, arguments, reference=reference),
        head=tile_rows(kind, skeleton.vocabulary) * skeleton.vocabulary * _LOGIT,
        generation=_generation(skeleton, batches),
    )


def _activations(skeleton: Skeleton, batches: Batches, arguments: Any, *, reference: bool) -> int | None:
    try:
        kept = skeleton.kept_for_backward(batches.rows, batches.longest, half=arguments.bf16)
    except ModelError:
        return None
    recomputed = getattr(arguments, recomputing(arguments))
    if device_of(arguments) == "cpu":
        return round(kept * _held(skeleton, recomputed=recomputed, reference=reference))
    if not recomputed:
        return kept
    parts = ModelParts(skeleton.model)  # the inputs of all blocks are kept, and one block is computed again at a time
    inputs = len(parts.blocks) * batches.rows * batches.longest * parts.width * skeleton.weights[0].element_size()
    return inputs + kept // len(parts.blocks)


def _generation(skeleton: Skeleton, batches: Batches) -> int | None:
    """The memory of answers of full length that are written side by side."""
    if not batches.generated:
        return 0
    try:
        row = skeleton.cached_row()
    except ModelError:
        return None
    return batches.generated * (row.token * batches.longest + row.row)


def _held(skeleton: Skeleton, *, recomputed: bool, reference: bool) -> float:
    if recomputed:
        return _HELD_RECOMPUTED
    if skeleton.weights[0].dtype != torch.float32:
        return _HELD_IN_HALF
    return _HELD_WITH_REFERENCE if reference else _HELD


@cache
def _program() -> int:
    """The most memory that this program had taken when it was first asked, before any training in it."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_of(arguments: Any) -> str:
    """The kind of device that a trainer with these arguments uses: cpu, cuda or mps."""
    return "cpu" if arguments.use_cpu else device()


def available(kind: str) -> int:
    """Bytes of memory that a run on a kind of device may take: a GPU's free memory, the machine's or container's."""
    return int(torch.cuda.mem_get_info()[0]) if kind == "cuda" else machine_memory()


def seconds(skeleton: Skeleton, batches: Batches, arguments: Any, *, passes: float) -> float:
    """Estimate the time of all optimizer steps, from the speed of this machine's matrix products.

    It is rough: a training step reaches between half and three quarters of that speed.

    Args:
        skeleton: the model with its adapter.
        batches: of the run.
        arguments: of the trainer.
        passes: over the batches; 2 for a forward and the backward to the activations. Recomputation is one more.
    """
    trained = sum(weight.numel() for weight in skeleton.trained)
    passes += getattr(arguments, recomputing(arguments))
    operations = 2 * batches.tokens * (passes * skeleton.multiplied + trained)
    return float(operations / (_REACHED * _operations_per_second(skeleton, batches, arguments)))


def _operations_per_second(skeleton: Skeleton, batches: Batches, arguments: Any) -> float:
    """The speed of a product of a batch's activations with a matrix that is four times as wide as the model."""
    width = ModelParts(skeleton.model).width
    rows = min(max(1, batches.tokens // batches.number), _TIMED_ROWS)
    dtype = torch.bfloat16 if arguments.bf16 else skeleton.weights[0].dtype
    one, other = torch.ones(rows, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    one, other = one.to(device_of(arguments)), other.to(device_of(arguments))
    (one @ other).sum().item()  # warms up
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < _TIMED:
        (one @ other)[0, 0].item()
        products += 1
    return float(products * 2 * rows * width * 4 * width / (time.perf_counter() - start))
