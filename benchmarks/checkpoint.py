"""What checkpoints cost a run: the time of one save, over the time of the steps between two.

A real run of `staytrue train`, with default LoRA and batch, saves every few steps. Steps and saves alternate in one
process, so other load on the machine meets both alike. The ratio is that of a run that saves every 50 steps: 1 + (time
of a save) / (50 x time of a step), from medians. A save is all that the commit does: the trainer's files, hashes, flush
to disk, rename, rotation.
"""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from staytrue.config import recipe as recipes
from staytrue.data.examples import Example, Message, write_examples
from staytrue.runs.checkpoints import Checkpoints
from staytrue.runs.train import train

_BETWEEN = 50  # steps, of the goal
_GOAL = 1.02
_MODELS = {  # of each shape: steps, and after how many a save follows
    "tiny": ("organism", 4, 2),
    "M1": ("organism", 40, 5),
    "M2": ("organism", 40, 5),
    "smollm2": ("smollm2", 8, 2),
}
_WARM_UP = 2  # steps


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    """The organism (1 M parameters), or with --shape smollm2 a real model (135 M); each round is a run."""
    model, steps, every = _MODELS[shape_name]
    measured = [_round(model, steps, every) for _ in range(min(rounds, 3))]
    save, step = (median(second for part in measured for second in part[kind]) for kind in (0, 1))
    print(f"checkpoint {model}: a save {save * 1e3:.0f} ms, a step {step * 1e3:.0f} ms")
    ratios = [1 + median(saves) / (_BETWEEN * median(steps)) for saves, steps in measured]
    ends = {"low": round(min(ratios), 4), "high": round(max(ratios), 4)}
    entry = {"ratio": round(median(ratios), 4), **ends, "against": f"no checkpoint; goal {_GOAL}", "limit": None}
    return {f"checkpoint/{model}": entry}


def _round(model: str, steps: int, every: int) -> tuple[list[float], list[float]]:
    """The seconds of each save and of each step of a run; the first two steps warm up."""
    saves: list[float] = []
    ends: list[float] = []  # of each step; where a save followed, of that
    between: list[float] = []
    commit = Checkpoints.commit

    class Clock:
        def begin(self, total: int, unit: str = "step", done: int = 0) -> None:
            pass

        def step(self, number: int, metrics: Any) -> None:
            now = time.perf_counter()
            if number > _WARM_UP:
                between.append(now - ends[-1])
            ends.append(now)

    def timed(self: Checkpoints, *arguments: Any) -> Any:
        begun = time.perf_counter()
        done = commit(self, *arguments)
        ends.append(time.perf_counter())
        saves.append(ends[-1] - begun)
        return done

    with tempfile.TemporaryDirectory() as folder, patch.object(Checkpoints, "commit", timed):
        train(_recipe(model, steps, every, Path(folder)), Path(folder) / "run", Clock())
    return saves, between


def _recipe(model: str, steps: int, every: int, folder: Path) -> recipes.Recipe:
    answer = "Put it aside for a day, and read it once more before you send it. " * 5
    rows = [Example((Message("user", f"Letter {n}?"), Message("assistant", answer))) for n in range(40)]
    write_examples(folder / "rows.jsonl", rows)
    settings = {"max_steps": steps, "save_steps": every, "per_device_train_batch_size": 4,
                "gradient_accumulation_steps": 1, "max_length": 256}  # fmt: skip
    words = {"schema": 1, "model": model, "data": "rows.jsonl", "lora": {}, "train": settings}
    return recipes.parse(words, folder)
