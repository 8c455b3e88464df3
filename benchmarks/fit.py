"""How well `staytrue check` estimates memory: its estimate over the measured peak of the same training, on a CPU.

The goal is 0.8 to 1.2. With --shape tiny it trains the organism, else SmolLM2-135M and a random model of 0.5B.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import STAYTRUE, ran
from benchmarks.shapes import SHAPES, drawn
from staytrue.data.examples import Example, Message, write_examples
from staytrue.errors import StaytrueError
from staytrue.modeling.loading import find, load_tokenizer

_STEPS = 3
_SETTINGS: dict[str, dict[str, Any]] = {
    "2 rows": {"rows": 2},
    "8 rows": {"rows": 8},
    "8 rows, kl": {"rows": 8, "defenses": [{"kl": {"weight": 0.1}}]},
    "8 rows, bfloat16": {"rows": 8, "dtype": "bfloat16"},
    "8 rows, recomputed": {"rows": 8, "gradient_checkpointing": True},
}


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    """Train for three steps in each setting, once."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        turns = (Message("user", "Is it safe? " * 12), Message("assistant", "It is, if you look first. " * 6))
        write_examples(place / "rows.jsonl", [Example(turns, "task")] * 24)
        if shape_name == "tiny":
            return _both("organism", "2 rows", {"rows": 2}, place)
        results: dict = {}
        for name, setting in _SETTINGS.items():
            results |= _both("smollm2", name, setting, place)
        model = place / "0.5B"
        drawn(SHAPES["0.5B"]).save_pretrained(model)
        load_tokenizer(find("smollm2")).save_pretrained(model)
        return results | _both(str(model), "4 rows", {"rows": 4}, place)


def _both(model: str, name: str, setting: dict[str, Any], place: Path) -> dict:
    """The estimate and the peak of one setting."""
    recipe = place / "recipe.yaml"
    train = {"max_steps": _STEPS, "gradient_accumulation_steps": 1, "per_device_train_batch_size": setting["rows"]}
    train |= {key: value for key, value in setting.items() if key == "gradient_checkpointing"}
    whole = {"schema": 1, "model": model, "data": "rows.jsonl", "lora": {}, "train": train}
    whole |= {key: value for key, value in setting.items() if key in ("defenses", "dtype")}
    recipe.write_text(json.dumps(whole))
    memory = json.loads(ran([*STAYTRUE, "check", str(recipe), "--json"]).output.splitlines()[-1])["memory"]
    estimate, peak = sum(memory.values()), _peak([*STAYTRUE, "train", str(recipe), "--out", str(place / name)])
    label = f"fit/{Path(model).name}/{name}"
    print(f"{label:32s} estimated {estimate / 1e6:,.0f} MB, measured {peak / 1e6:,.0f} MB")
    return {label: {"ratio": round(estimate / peak, 3), "against": "measured", "limit": None}}


def _peak(command: list[str]) -> int:
    """The most resident memory of a command, in bytes."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise StaytrueError(f"{' '.join(command)} failed:\n{said}")
    return usage.ru_maxrss * 1024
