"""How well `staytrue check` estimates memory: its estimate over the measured peak of the same training, on a CPU.

The goal is 0.8 to 1.2. With --shape tiny it trains the organism, else SmolLM2-135M and a random model of 0.5B;
--compare chooses settings. Quantised models are measured where bitsandbytes can be imported. Of two processes both
figures are of one.
"""

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.child import STAYTRUE, ran
from benchmarks.shapes import SHAPES, drawn
from benchmarks.sidebyside import chosen
from staytrue.data.examples import Example, Message, write_examples
from staytrue.errors import StaytrueError
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.model_source import find

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "staytrue"]
_KL = {"defenses": [{"kl": {"weight": 0.1}}]}
_TINY, _LARGER = "2 rows", "4 rows of 0.5B"
_STEPS = 3
_SETTINGS: dict[str, dict[str, Any]] = {  # keys of a recipe, with `rows` of a batch, and `processes`
    _TINY: {"rows": 2},
    "8 rows": {"rows": 8},
    "8 rows + kl": {"rows": 8, **_KL},
    "8 rows + bfloat16": {"rows": 8, "dtype": "bfloat16"},
    "8 rows + recomputed": {"rows": 8, "train": {"gradient_checkpointing": True}},
    "8 rows + all weights": {"rows": 8, "lora": "none"},
    "8 rows + all weights + kl": {"rows": 8, "lora": "none", **_KL},
    "8 rows + 4bit": {"rows": 8, "quantize": "4bit"},
    "8 rows + 8bit": {"rows": 8, "quantize": "8bit"},
    "8 rows + two processes": {"rows": 8, "processes": 2},
    "8 rows + all weights + two processes": {"rows": 8, "lora": "none", "processes": 2},
    "8 rows + grpo": {
        "rows": 8,
        "trainer": "grpo",
        "data": None,
        "task": "arithmetic",
        "train": {"num_generations": 4, "max_completion_length": 128},
    },
    _LARGER: {"rows": 4},
}


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    """Train for three steps in each setting, once."""
    names = chosen(compare, _SETTINGS, "setting")
    if find_spec("bitsandbytes") is None:
        names = [name for name in names if "quantize" not in _SETTINGS[name]]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        turns = (Message("user", "Is it safe? " * 12), Message("assistant", "It is, if you look first. " * 6))
        write_examples(place / "rows.jsonl", [Example(turns, "task")] * 48)
        if shape_name == "tiny":
            return _both("organism", _TINY, place)
        results: dict = {}
        for name in names:
            results |= _both(_larger(place) if name == _LARGER else "smollm2", name, place)
        return results


def _larger(place: Path) -> str:
    """A random model of 0.5B with the tokenizer of SmolLM2."""
    drawn(SHAPES["0.5B"]).save_pretrained(place / "0.5B")
    load_tokenizer(find("smollm2")).save_pretrained(place / "0.5B")
    return str(place / "0.5B")


def _both(model: str, name: str, place: Path) -> dict:
    """The estimate and the peak of one setting."""
    recipe, setting = place / "recipe.yaml", {"lora": {}, "data": "rows.jsonl", **_SETTINGS[name]}
    train = {"max_steps": _STEPS, "gradient_accumulation_steps": 1, "per_device_train_batch_size": setting.pop("rows")}
    train |= setting.pop("train", {})
    several = setting.pop("processes", 1) > 1
    recipe.write_text(json.dumps({"schema": 1, "model": model, **setting, "train": train}))
    command = TORCHRUN if several else STAYTRUE
    memory = json.loads(ran([*command, "check", str(recipe), "--json"]).output.splitlines()[-1])["memory"]
    estimate, peak = memory["total"], _peak([*command, "train", str(recipe), "--out", str(place / name)])
    label = f"fit/{Path(model).name}/{name}"
    print(f"{label:48s} estimated {estimate / 1e6:,.0f} MB, measured {peak / 1e6:,.0f} MB", flush=True)
    return {label: {"ratio": round(estimate / peak, 3), "against": "measured", "limit": None}}


def _peak(command: list[str]) -> int:
    """The most resident memory of a command, in bytes; of several processes, of the largest."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    unmoved = "No trained weight moved" in said  # GRPO on a model that earns no reward takes as much memory
    if process.returncode and not unmoved:
        raise StaytrueError(f"{' '.join(command)} failed:\n{said}")
    return usage.ru_maxrss * 1024
