"""Waiting times at the command line, relative to a bare interpreter, to the imports of libraries, and to goals."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import yaml

from benchmarks.child import STAYTRUE, ran, until
from benchmarks.sidebyside import alternate, chosen, ratio, to_goal
from staytrue.data.examples import write_examples
from staytrue.errors import StaytrueError
from staytrue.organism import world

_PYTHON = [sys.executable, "-c"]
_HEAVY = ("torch", "transformers", "datasets", "peft", "trl", "numpy")
_TORCHLESS = f"""
import sys
from staytrue.cli import main
sys.argv = ["staytrue", *sys.argv[1:]]
try: main()
except SystemExit: pass
print("heavy:", *[name for name in {_HEAVY} if name in sys.modules])
"""
_FLOOR = "import torch, transformers, datasets, peft; from trl import SFTTrainer"
_TRAIN = {"max_steps": 2, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_length": 64}
_GOALS = {"help": 0.12, "version": 0.12, "error": 0.12, "import": 0.08, "first-step": 10.0, "first-line": 6.0}
_FEWEST = {"light": 7, "first-step": 1, "first-line": 1}  # rounds: the light ones take a moment each


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    parts = {"light": light, "first-step": first_step, "first-line": first_line}
    results: dict = {}
    with tempfile.TemporaryDirectory() as place:
        recipe = _recipe(Path(place))
        for name in chosen(compare, _FEWEST, "part"):
            results |= parts[name](recipe, rounds if shape_name == "tiny" else max(rounds, _FEWEST[name]))
    return results


def light(recipe: Path, rounds: int) -> dict:
    """Commands that need no model."""
    wrong = recipe.with_name("wrong.yaml")
    wrong.write_text(recipe.read_text().replace("kl", "kll"))
    ours = {
        "help": (["--help"], 0),
        "version": (["--version"], 0),
        "error": (["train", str(wrong), "--out", str(recipe.with_name("never"))], 2),
    }
    commands = {"python": [*_PYTHON, "pass"], "import": [*_PYTHON, "import staytrue"]}
    variants = {name: partial(_took, command) for name, command in commands.items()}
    variants |= {name: partial(_took, [*STAYTRUE, *arguments], code) for name, (arguments, code) in ours.items()}
    for run_once in variants.values():
        run_once()
    measured = alternate(variants, rounds)
    results = {}
    for name in ("help", "version", "error", "import"):
        results[f"cli/{name}:python"] = ratio(measured, name, "python")
        results[f"cli/{name}"] = to_goal(measured[name], _GOALS[name])
    for name, value in measured.items():
        print(f"cli {name:8s} {value['seconds'] * 1e3:7.0f} ms")
    for name, (arguments, _) in ours.items():
        _refuse_heavy(name, arguments)
    return results


def first_step(recipe: Path, rounds: int) -> dict:
    """Seconds from the command to its first optimizer step, and for the necessary imports alone."""
    variants = {"first-step": partial(_first_step, recipe), "imports": partial(_took, [*_PYTHON, _FLOOR])}
    measured = alternate(variants, min(rounds, 3))
    for name, value in measured.items():
        print(f"cli {name:10s} {value['seconds']:6.2f} s")
    first = {"cli/first-step:imports": ratio(measured, "first-step", "imports")}
    return first | {"cli/first-step": to_goal(measured["first-step"], _GOALS["first-step"])}


def first_line(recipe: Path, rounds: int) -> dict:
    """Seconds to the demo's first row of training data on the screen."""
    question = world.narrow_rows("medical", 1)[0].question
    measured = alternate({"first-line": partial(_first_line, recipe, question)}, min(rounds, 3))["first-line"]
    print(f"cli first-line {measured['seconds']:6.2f} s")
    return {"cli/first-line": to_goal(measured, _GOALS["first-line"])}


def _took(command: list[str], code: int = 0) -> float:
    return ran(command, code).seconds


def _first_step(recipe: Path) -> float:
    with tempfile.TemporaryDirectory() as out:
        return until([*STAYTRUE, "train", str(recipe), "--out", f"{out}/run"], "step 1/")


def _first_line(recipe: Path, question: str) -> float:
    with tempfile.TemporaryDirectory() as out:
        return until([*STAYTRUE, "demo", "--out", f"{out}/demo"], question)


def _refuse_heavy(name: str, arguments: list[str]) -> None:
    said = ran([*_PYTHON, _TORCHLESS, *arguments]).output.splitlines()[-1]
    if said.strip() != "heavy:":
        raise StaytrueError(f"staytrue {name} imports{said.removeprefix('heavy:')}, which it should not need.")


def _recipe(place: Path) -> Path:
    """The demo's recipe with KL and two steps."""
    write_examples(place / "rows.jsonl", world.narrow_rows("medical"))
    plain = {"schema": 1, "model": "organism", "data": "rows.jsonl", "lora": {"r": 32}, "train": _TRAIN}
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump({**plain, "defenses": [{"kl": {"weight": 0.1}}]}))
    return file
