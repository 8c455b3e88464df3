"""Large crash tests, and docs/reliability.md with what they found: python tests/soak.py [--kills 500] [--flips 10000].

* Kills: the real command is killed by SIGKILL at a random moment and resumed, again and again, until its run is done.
  The adapter must have the bits of a run that was never killed.
* Flips: one byte of one file of a trainer's checkpoint is flipped, or the file is cut. It must be seen before use.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tiny
from staytrue.data.examples import write_examples
from staytrue.runs.checkpoints import Checkpoints, fault_in

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
DEFENSES = [
    [{"kl": {"weight": 0.1}}],
    [{"ldifs": {"weight": 0.1}}],
    [{"interleave": {"pool": "pool.jsonl", "share": 0.2}}],
    [{"rehearse": {"pool": "pool.jsonl", "share": 0.25}}],
    ["inoculate"],
    [{"kl": {"weight": 0.1}}, {"rehearse": {"pool": "pool.jsonl", "share": 0.25}}],
]
STEPS = 40
LIMITS = """
`make soak` asks for 500 kills and 10,000 flips; the table has the sizes that were run. `make test` adds, each time: a
kill before every call of a commit, a disk that is full at every write and a small real one, a clock that jumps,
SIGTERM, and the mutants that `staytrue verify` has to refuse. `make test-slow` kills a run of SmolLM2-135M three times.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        lines = [*flips(home, options.flips, dice), *kills(home, options.kills, dice)]
    write(lines, f"python tests/soak.py --kills {options.kills} --flips {options.flips} --seed {options.seed}")


def prepare(home: Path) -> None:
    """A tiny model, rows, and a recipe for each set of defenses."""
    tiny.model().save_pretrained(home / "model")
    tiny.tokenizer().save_pretrained(home / "model")
    write_examples(home / "rows.jsonl", tiny.rows(24))
    write_examples(home / "pool.jsonl", tiny.rows(9))
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
                "save_steps": 4, "save_total_limit": 2, "learning_rate": 1e-2, "warmup_steps": 0}  # fmt: skip
    for number, defenses in enumerate(DEFENSES):
        recipe = {"schema": 1, "model": "model", "data": "rows.jsonl", "lora": {"r": 4, "alpha": 8},
                  "train": settings, "defenses": defenses}  # fmt: skip
        (home / f"{number}.yaml").write_text(json.dumps(recipe))


def command(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "staytrue.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def adapter(run: Path) -> str:
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "done", manifest
    return str(manifest["adapter"])


def flips(home: Path, count: int, dice: random.Random) -> list[tuple[str, str]]:
    """Flip or cut one file at a time of a whole checkpoint."""
    assert command("train", home / "0.yaml", "--out", home / "whole-0").wait() == 0
    newest = Checkpoints(home / "whole-0" / "checkpoints").newest()
    assert newest is not None
    files, seen = [path for path in newest.rglob("*") if path.is_file()], 0
    for _ in range(count):
        path = dice.choice(files)
        whole = path.read_bytes()
        place = dice.randrange(len(whole))
        cut = dice.random() < 0.2
        path.write_bytes(
            whole[:place]
            if cut
            else whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :]
        )
        seen += fault_in(newest) is not None
        path.write_bytes(whole)
    assert fault_in(newest) is None
    return [(f"flipped bytes and cuts over {len(files)} files of a checkpoint, seen before use", f"{seen} of {count}")]


def kills(home: Path, count: int, dice: random.Random) -> list[tuple[str, str]]:
    """Kill runs at random moments until so many kills were made."""
    whole = {}
    for number in range(len(DEFENSES)):
        run, begun = home / f"whole-{number}", time.monotonic()
        if not run.exists():
            assert command("train", home / f"{number}.yaml", "--out", run).wait() == 0
        whole[number] = adapter(run), time.monotonic() - begun
    longest = max(seconds for _, seconds in whole.values())
    killed = runs = equal = 0
    while killed < count:
        number = runs % len(DEFENSES)
        run = home / f"killed-{runs}"
        child = command("train", home / f"{number}.yaml", "--out", run)
        while True:
            try:
                code = child.wait(timeout=dice.uniform(0, longest) if killed < count else None)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
                killed += 1
                begun = (run / "recipe.yaml").exists()
                if not begun:
                    shutil.rmtree(run, ignore_errors=True)  # a folder without a recipe is refused both ways
                child = command("train", *(("--resume", run) if begun else (home / f"{number}.yaml", "--out", run)))
                continue
            assert code == 0, (number, code)
            break
        equal += adapter(run) == whole[number][0]
        runs += 1
        print(f"{killed} kills, {runs} runs, {equal} equal", flush=True)
    return [
        (f"runs that ended with the bits of an uninterrupted run, after {killed} kills in all", f"{equal} of {runs}")
    ]


def write(lines: list[tuple[str, str]], said: str) -> None:
    """Write the page."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    rows = "\n".join(f"| {what} | {result} |" for what, result in lines)
    PAGE.write_text(
        "# Reliability\n\nWhat large crash tests found; `make soak` makes this page. How checkpoints work is in\n"
        "[formats](formats.md#checkpoints).\n\n"
        f"{datetime.now(UTC):%Y-%m-%d}, {machine}; `{said}`:\n\n| what | result |\n| --- | --- |\n{rows}\n{LIMITS}"
    )
    print(PAGE.read_text())


if __name__ == "__main__":
    main()
