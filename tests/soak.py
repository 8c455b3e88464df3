"""Large crash tests, and docs/reliability.md with what they found: python tests/soak.py [--kills 500] [--flips 10000].

* Kills: the real command is killed by SIGKILL at random moments and resumed until its run is done: every defense, pairs
  of them, GRPO, early stopping. The adapter's folder and the log must have the bytes of a run that was never killed.
  Commands are forked from a process that has imported the packages; each tenth run is a process of its own.
* Commits: SIGKILL before a call that changes the disk, in the commits of checkpoints of runs with six defenses.
* Flips: one byte of one file of a trainer's checkpoint is flipped, or the file is cut. It must be seen before use.
* Tests of the suite: mutants, hostile files and folders, Hypothesis on the reader, a full disk, clocks, signals.
"""

import argparse
import itertools
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["OMP_NUM_THREADS"] = os.environ["HF_HUB_OFFLINE"] = "1"

from disk_faults import kill_in_commit
from forked import Command, adapter_files, begun, kill_at_random
from interrupted import damaged, defense, logged, recipe_of, with_a_tiny_model
from staytrue import registry
from staytrue.runs.checkpoints import Checkpoints, fault_in

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
STEPS = 12
GRPO = {"trainer": "grpo", "task": "arithmetic", "data": "problems.jsonl",
        "train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                  "max_completion_length": 6, "max_steps": STEPS, "save_steps": 2}}  # fmt: skip
STOP = {"train": {"eval_strategy": "steps", "eval_steps": 1, "max_steps": STEPS, "learning_rate": 0.3},
        "holdout": 0.25, "stop": {"patience": 2}}  # fmt: skip
PAIRS = [("kl", "rehearse"), ("ldifs", "interleave"), ("kl", "inoculate"), ("steer", "ldifs"), ("anchor", "safegrad")]
IN_COMMITS = ("kl", "rehearse", "steer", "safegrad", "interleave", "freeze")
SUITE = [
    ("mutants of defenses and their hooks that `staytrue verify` refuses",
     "tests/verify/test_verify.py", "mutant_is_refused or does_nothing"),
    ("mutants of the engine that the contract or a number by hand refuses", "tests/test_mutants.py", ""),
    ("hostile training files with their fixed verdict", "tests/data/test_hostile_files.py", "fixed_verdict"),
    ("hostile model and adapter folders, refused before a loader runs",
     "tests/modeling/test_hostile_folders.py", "hostile"),
    ("hostile chat templates, refused in a child process", "tests/modeling/test_template_trial.py", "refused"),
    ("tests with a full disk at every write, a clock that jumps, SIGTERM",
     "tests/runs/test_crash_environment.py tests/runs/test_checkpoints.py tests/runs/test_resume.py",
     "full or fills or clock or sigterm or killed_before"),
    ("tests with Ctrl-C, pressed once to five times", "tests/utils/test_interrupts.py", ""),
]  # fmt: skip
READER = ("files of Hypothesis that the reader reads whole or refuses in a sentence",
          "tests/data/test_hostile_files.py", "twenty_thousand")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1, help="kill before each so-manieth call of the commits only")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        home = with_a_tiny_model(Path(folder))
        recipes = prepare(home)
        for part in (
            lambda: flips(home, options.flips, dice),
            lambda: kills(home, recipes, options.kills, dice),
            lambda: commits(home, recipes, options.every),
            *(lambda each=each: suite(*each) for each in SUITE),
            lambda: suite(*READER, marked="slow", count=20_000),
        ):
            begin = time.monotonic()
            what, result = part()
            rows.append((what, result, f"{(time.monotonic() - begin) / 60:.1f}"))
            print(*rows[-1], sep=" | ", flush=True)
    arguments = f"--kills {options.kills} --flips {options.flips} --every {options.every} --seed {options.seed}"
    write(rows, f"python tests/soak.py {arguments}")


def prepare(home):
    """A recipe for every defense, pairs of them, GRPO and early stopping, by name."""
    sets = [(name,) for name in registry.names()] + PAIRS
    recipes = {}
    for names in sets:
        files = home / "-".join(names)
        files.mkdir()
        one = recipe_of(home, [defense(name, files) for name in names], train={"max_steps": STEPS})
        recipes[" + ".join(names)] = one
    files = home / "grpo"
    files.mkdir()
    recipes["kl + rehearse in grpo"] = recipe_of(home, [defense(n, files) for n in ("kl", "rehearse")], **GRPO)
    recipes["early stopping"] = recipe_of(home, [{"kl": {"weight": 0.1}}], **STOP)
    for name, recipe in recipes.items():
        (home / f"{name}.yaml").write_text(recipe.text())
    return recipes


class Process:
    """A command in a process of its own, with the methods of `forked.Command`."""

    def __init__(self, *arguments, output):
        command = [sys.executable, "-m", "staytrue.cli", *map(str, arguments)]
        self._child = subprocess.Popen(command, stdout=output.open("w"), stderr=subprocess.STDOUT)

    def wait(self, seconds=None):
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self):
        self._child.kill()
        self._child.wait()


def whole(home, name):
    """What an uninterrupted run of a recipe leaves, trained once: its adapter's files and its log."""
    run = home / f"whole {name}"
    if not run.exists():
        assert Command("train", home / f"{name}.yaml", "--out", run).wait() == 0, name
    return adapter_files(run), logged(run)


def next_command(home, name, run):
    """The arguments that begin a run, or go on with it."""
    if begun(run):
        return "train", "--resume", run
    shutil.rmtree(run, ignore_errors=True)  # a folder without a recipe is refused both ways
    return "train", home / f"{name}.yaml", "--out", run


def flips(home, count, dice):
    """Flip or cut one file at a time of a whole checkpoint."""
    run, output = home / "flips", home / "output"
    keeping = home / "kl.yaml"
    arguments = ("train", keeping, "--set", "train.save_total_limit=2", "--out", run)
    assert Command(*arguments, output=output).wait() == 0, output.read_text()
    newest = Checkpoints(run / "checkpoints").newest()
    files, seen = sorted(path for path in newest.rglob("*") if path.is_file()), 0
    for _ in range(count):
        path = dice.choice(files)
        content = path.read_bytes()
        path.write_bytes(damaged(content, dice)[0])
        seen += fault_in(newest) is not None
        path.write_bytes(content)
    assert fault_in(newest) is None
    return f"flipped bytes and cuts over {len(files)} files of a checkpoint, seen before use", f"{seen} of {count}"


def kills(home, recipes, count, dice):
    """Kill runs at random moments until so many kills were made."""
    output, killed, runs, equal = home / "output", 0, 0, 0
    names = itertools.cycle(recipes)
    while killed < count:
        name, run, kind = next(names), home / "killed", Process if runs % 10 == 9 else Command
        expected = whole(home, name)
        shutil.rmtree(run, ignore_errors=True)
        left = min(4, count - killed)
        while True:
            command = kind(*next_command(home, name, run), output=output)
            if left and kill_at_random(command, run, STEPS, dice):
                killed, left = killed + 1, left - 1
                continue
            code = command.wait()
            assert code == 0, (name, output.read_text())
            break
        runs += 1
        equal += (adapter_files(run), logged(run)) == expected
        print(f"{killed} kills, {runs} runs, {equal} equal", flush=True)
    what = f"runs over {len(recipes)} recipes that ended with the bits of an uninterrupted run, after {killed} kills"
    return what, f"{equal} of {runs}"


def commits(home, recipes, every):
    """Kill runs before calls of their commits, one call after another until a run gets through."""
    output, points, equal = home / "output", 0, 0
    for name in IN_COMMITS:
        expected = whole(home, name)
        for number in itertools.count(1, every):
            run = home / "killed"
            shutil.rmtree(run, ignore_errors=True)
            begin = next_command(home, name, run)
            code = Command(*begin, output=output, prepare=kill_in_commit, prepared_with=(number,)).wait()
            if code == 0:
                break
            assert code == -9, (name, number, output.read_text())
            assert Command("train", "--resume", run, output=output).wait() == 0, (name, number, output.read_text())
            points += 1
            equal += (adapter_files(run), logged(run)) == expected
            print(f"{name}: call {number}, {equal} of {points} equal", flush=True)
    what = f"runs that ended with those bits, killed before a call of a commit, over {len(IN_COMMITS)} defenses"
    return what, f"{equal} of {points}"


def suite(what, files, chosen, marked="not slow and not docs", count=None):
    """Tests of the suite, counted; a test with a size of its own counts that often."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked, *files.split()]
    done = subprocess.run([*command, *(("-k", chosen) if chosen else ())], cwd=ROOT, capture_output=True, text=True)
    passed, failed = (
        sum(map(int, re.findall(rf"(\d+) {word}", done.stdout))) for word in ("passed", "(?:failed|error)")
    )
    if failed or not passed:
        print(done.stdout[-5000:], flush=True)
    if count is not None:
        passed, failed = passed * count, failed * count
    return what, f"{passed} of {passed + failed}"


def write(rows, said):
    """Write the page."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    load = f"one of them used, beside other work that took the load to {os.getloadavg()[2]:.0f}"
    table = "\n".join(f"| {what} | {result} | {minutes} |" for what, result, minutes in rows)
    PAGE.write_text(f"""# Reliability

What large crash tests found; `make soak` makes this page. How checkpoints work is in
[formats](formats.md#checkpoints).

{datetime.now(UTC):%Y-%m-%d}, {machine}, {load};
`{said}`:

| what | result | minutes |
| --- | --- | --- |
{table}

Each kill is a SIGKILL to the real command, while it begins, within its steps and commits, or as it ends; adapter
folder and log are compared byte by byte, the log without its times. `make soak` asks for 500 kills, 10,000 flips and
each call of a commit; the table has the sizes that were run. `make test` has smaller sizes of all of this, and `make
test-slow` kills a run of SmolLM2-135M three times.
""")
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
