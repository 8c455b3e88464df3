"""Studies: two workers against one, and a restart of a finished study of 500 runs."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.child import STAYTRUE, ran
from benchmarks.finished import Finished, finished
from benchmarks.sidebyside import alternate, chosen, to_goal
from staytrue.studies import runner
from staytrue.studies.config import Study
from staytrue.utils import workers

_WORKERS = 2
_AGAIN_S = 1.0  # for 500 finished runs
_KINDS = ("workers", "again")
_TRAIN = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_length": 64}


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    parts = chosen(compare, _KINDS, "part")
    tiny, results = shape_name == "tiny", {}
    if "workers" in parts:
        results |= efficiency(2 if tiny else 8, 1 if tiny else 20, min(rounds, 3))
    if "again" in parts:
        results |= again(4 if tiny else 500, rounds)
    return results


def efficiency(runs: int, steps: int, rounds: int) -> dict:
    """Efficiency of two workers: (time with one / 2) / time with two."""
    study = Study.model_validate(
        {
            "title": f"{runs} runs of {steps} steps",
            "recipe": {"model": "organism", "lora": {"r": 2}, "train": {**_TRAIN, "max_steps": steps}, "holdout": 0.1},
            "seeds": tuple(range(runs)),
            "variants": [{"name": "none"}],
        }
    )
    list(workers.run([workers.Job("the imports", os.getpid)], 1))  # warm up
    measured = alternate({f"{n} workers": lambda n=n: _study(study, n) for n in (1, _WORKERS)}, rounds)
    for name, value in measured.items():
        print(f"sweep {runs} runs, {name}: {value['seconds']:.1f} s")
    one, two = (measured[f"{n} workers"]["rounds"] for n in (1, _WORKERS))
    used = [alone / _WORKERS / together for alone, together in zip(one, two, strict=True)]
    ends = {"low": round(min(used), 3), "high": round(max(used), 3)}
    return {"sweep/workers": {"ratio": round(median(used), 3), **ends, "against": "both busy", "limit": 1.0}}


def _study(study: Study, processes: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        rows = list(runner.run(study, Path(folder) / "out", processes))
        seconds = time.perf_counter() - begun
    assert len(rows) == len(study.seeds)
    return seconds


def again(runs: int, rounds: int) -> dict:
    """A finished study, started again: seconds, and the number of runs made again, which should be 0."""
    with tempfile.TemporaryDirectory() as place:
        done = finished(Path(place), runs)
        before = _written(done)
        parts = {
            "runs": lambda: _seconds_again(done, runs),
            "command": lambda: ran([*STAYTRUE, "study", str(done.file), "--out", str(done.folder)]).seconds,
        }
        measured = alternate(parts, rounds)
        made_again = sum(after != before.get(file) for file, after in _written(done).items())
    for name, value in measured.items():
        print(f"sweep {runs} runs found again, {name}: {value['seconds']:.2f} s; {made_again} made again")
    return {f"sweep/again/{name}": to_goal(value, _AGAIN_S) for name, value in measured.items()} | {
        "sweep/again/made": {"ratio": float(made_again), "against": "0 runs", "limit": None}
    }


def _seconds_again(done: Finished, runs: int) -> float:
    study = done.study
    begun = time.perf_counter()
    rows = list(runner.run(study, done.folder))
    seconds = time.perf_counter() - begun
    assert len(rows) == runs
    return seconds


def _written(done: Finished) -> dict[Path, int]:
    """The modification time of each run's record."""
    return {file: file.stat().st_mtime_ns for file in done.folder.glob("runs/*/cell.json")}
