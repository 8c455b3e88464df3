"""One way of training in this process: `python -m benchmarks.way_item TRAINER lora|whole PRECISION SHAPE STEPS`.

Prints a line of JSON: seconds of each step after the first, wall-clock (`seconds`) and of the processor (`cpu`), and
the process's peak memory in MB (`peak_mb`), with the program and the loading of the model.
"""

import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import SFTTrainer

from benchmarks.shapes import SHAPES, Shape, batch, drawn
from benchmarks.step import arguments, words
from staytrue.defenses.kl import KL
from staytrue.modeling.fetch import NAME
from staytrue.modeling.loading import load_model
from staytrue.modeling.model_source import Source, find
from staytrue.training.trainers import GuardedSFT
from staytrue.utils import processes
from staytrue.utils.console import quieten


class _Clock(TrainerCallback):
    """The seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def on_step_begin(self, *_, **__):
        self._begun = time.perf_counter(), time.process_time()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.perf_counter() - self._begun[0])
        self.cpu.append(time.process_time() - self._begun[1])


def main(kind: str, weights: str, precision: str, shape_name: str, steps: int) -> None:
    """Train a step to warm up and then `steps` more, and print what they took."""
    quieten()
    shape, clock = SHAPES[shape_name], _Clock()
    trainer = _trainer(kind, weights, precision, shape, steps + 1)
    trainer.add_callback(clock)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    line = json.dumps({"seconds": clock.seconds[1:], "cpu": clock.cpu[1:], "peak_mb": peak})
    os.write(1, f"{line}\n".encode())  # at once: the other process may write to the same pipe
    if processes.count() > 1:
        os._exit(0)  # threads of several processes can abort the interpreter's own end


def _trainer(kind: str, weights: str, precision: str, shape: Shape, steps: int):
    """The trainer; the processes share the shape's rows in each step."""
    own = shape.rows // processes.count()
    rows = {key: value.tolist() * steps for key, value in batch(shape).items() if key != "attention_mask"}
    options: dict = {} if kind == "trl" else {"defenses": [KL(0.1)] if kind == "kl" else []}
    if weights == "lora":
        options["peft_config"] = LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear")
    return (SFTTrainer if kind == "trl" else GuardedSFT)(
        model=_model(precision, shape),
        args=arguments(per_device_train_batch_size=own, max_steps=steps, save_strategy="no", logging_strategy="no"),
        train_dataset=Dataset.from_dict(rows),
        processing_class=words(),
        **options,
    )


def _model(precision: str, shape: Shape):
    """The shape's model, in a precision or quantised."""
    torch.manual_seed(0)
    packed = precision.endswith("bit")
    dtype = "float32" if packed else precision
    if shape.fetched:
        source = find(NAME)
    else:
        folder = tempfile.mkdtemp()
        drawn(shape).save_pretrained(folder)
        source = Source("drawn", folder)
    return load_model(replace(source, dtype=dtype, quantize=precision if packed else None))


if __name__ == "__main__":
    main(*sys.argv[1:5], steps=int(sys.argv[5]))
