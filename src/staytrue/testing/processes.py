"""Training on two processes, with gloo on the CPU, to compare with training on one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from staytrue.data.examples import Example
from staytrue.defense import Defense
from staytrue.testing.training import Trained, trained

# The settings of `accelerate launch --use_fsdp --fsdp_version 2`, for a launcher that does not set them.
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


def two_processes(
    cases: Mapping[str, Sequence[Defense]], model: Any, tokenizer: Any, rows: Sequence[Example], *, fsdp: bool = False
) -> dict[str, Trained]:
    """Train every case, a list of defenses, on two processes with twice 2 rows a step each; one launch for all of them.

    Hold each against `trained(...)`, which sees the same 8 rows at once in one process, with `alike`. The defenses'
    classes must be importable by name, since the processes are new ones. With `fsdp` the weights are divided among them
    by FSDP2; a defense with the lever `combine` is refused then.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        torch.save(({name: list(case) for name, case in cases.items()}, model, tokenizer, list(rows)), folder / "cases")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        paths = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | (FSDP2 if fsdp else {})
        done = subprocess.run(
            [*launch, "-m", "staytrue.testing", scratch], env=paths, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"training on two processes ended with:\n{done.stderr[-3000:]}"
        result: dict[str, Trained] = torch.load(folder / "trained", weights_only=False)
        return result


def one_of_two(folder: Path) -> None:
    """Train every case as one of the two processes."""
    cases, model, tokenizer, rows = torch.load(folder / "cases", weights_only=False)
    quarter: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "ddp_backend": "gloo",
    }
    gc.freeze()  # a trainer collects garbage twice, and most of the heap is what the imports left
    runs = {name: trained(case, model, tokenizer, rows, **quarter) for name, case in cases.items()}
    assert torch.distributed.get_world_size() == 2
    divided = AcceleratorState().distributed_type == DistributedType.FSDP
    assert divided == ("ACCELERATE_USE_FSDP" in os.environ), "the weights were not divided as they should"
    if torch.distributed.get_rank() == 0:
        torch.save(runs, folder / "trained")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
