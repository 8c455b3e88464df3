"""A run where the machine misbehaves: a disk that fills, a clock that jumps."""

import io
import itertools
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from disk_faults import fill_at
from forked import Command, adapter_files, begun
from interrupted import Stopping, logged, recipe_of, with_a_tiny_model
from staytrue.errors import StaytrueError
from staytrue.runs import train
from staytrue.utils.console import Bar


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return with_a_tiny_model(tmp_path_factory.mktemp("home"))


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of so many bytes; skipped where this is not allowed."""
    mounted = []

    def mount(size):
        place = tmp_path / f"disk-{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"cannot mount a tmpfs: {error}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # a failed write may have left a file open


def test_a_disk_that_fills_ends_the_run_in_a_sentence_and_it_goes_on_when_there_is_space(home, tmp_path, disk):
    """A disk of each size from too small for a manifest to large enough."""
    whole = train.train(recipe_of(home), tmp_path / "whole")
    ends = set()
    for size in range(8_192, 10_000_000, 81_920):
        run, failed = disk(size) / "run", None
        try:
            train.train(recipe_of(home), run)
        except (StaytrueError, OSError) as error:  # the command prints either as a sentence
            failed = error
        if failed is None:
            break
        assert re.search(r"No space left on device|where 0\.\d MB were free", str(failed)), size
        ends.add(type(failed).__name__)
        if not (run / "recipe.yaml").exists() or "state" not in (run / "manifest.json").read_text():
            continue
        assert not list(run.rglob(".unfinished"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(run.parent)], check=True)
        parts = train.resume(run)
        assert parts.manifest["adapter"] == whole.manifest["adapter"], size
        assert logged(run) == logged(tmp_path / "whole")
    assert failed is None
    assert "TrainingError" in ends


def test_a_disk_that_is_full_at_any_write_of_a_run_ends_it_in_a_sentence_and_it_goes_on(home, tmp_path, disk):
    """The disk is filled before each file is opened to be written, one after another, until the run gets through."""
    recipe = recipe_of(home, [{"kl": {"weight": 0.1}}], train={"max_steps": 2, "save_steps": 1}, holdout=0.2)
    train.train(recipe, tmp_path / "whole")
    (tmp_path / "recipe.yaml").write_text(recipe.text())
    place, output, resumed = disk("16m"), tmp_path / "output", 0
    for number in itertools.count(1):
        shutil.rmtree(place / "run", ignore_errors=True)
        start = ("train", tmp_path / "recipe.yaml", "--out", place / "run")
        code = Command(*start, output=output, prepare=fill_at, prepared_with=(number, str(place))).wait()
        if not (place / "filler").exists():
            assert code == 0
            break
        (place / "filler").unlink()
        if code == 0:  # as where a file is removed again and takes no byte
            continue
        said = output.read_text()
        assert code == 1, (number, said)
        assert "Traceback" not in said, (number, said)
        assert len(re.findall("^staytrue: ", said, re.MULTILINE)) == 1, (number, said)
        assert re.search(r"No space left on device|0\.\d MB were free", said), (number, said)
        if begun(place / "run"):
            resumed += 1
            assert Command("train", "--resume", place / "run", output=output).wait() == 0, (number, output.read_text())
            assert adapter_files(place / "run") == adapter_files(tmp_path / "whole"), number
    assert number > 25
    assert resumed > 15


@pytest.mark.parametrize("jump", [3_600, -3_600, 86_400, -86_400, 0])
def test_a_clock_that_jumps_or_stands_still_changes_nothing(home, tmp_path, monkeypatch, jump):
    """The wall clock moves by so many seconds at each look (0: it stands still); the monotonic clock goes on."""
    whole = train.train(recipe_of(home), tmp_path / "whole")
    real, looks = time.time(), itertools.count()

    class Noting(Stopping):
        def step(self, step, numbers):
            for entry in (tmp_path / "run/checkpoints").glob("checkpoint-*"):
                os.utime(entry, (time.time(),) * 2)
            super().step(step, numbers)

    monkeypatch.setattr(time, "time", lambda: real + jump * next(looks))
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe_of(home), tmp_path / "run", Noting(7))
    kept = sorted(entry.name for entry in (tmp_path / "run/checkpoints").iterdir())
    assert kept == ["checkpoint-4", "checkpoint-6"]
    parts = train.resume(tmp_path / "run")
    assert parts.manifest["resumed"] == [6]
    assert parts.manifest["adapter"] == whole.manifest["adapter"]
    assert 0 < parts.manifest["seconds"] < 3_600


@pytest.mark.parametrize("jump", [3_600, -86_400])
def test_the_time_left_is_of_a_clock_that_only_goes_forward(monkeypatch, jump):
    looks, stream = itertools.count(), io.StringIO()
    monkeypatch.setattr(time, "time", lambda: 1e9 + jump * next(looks))
    shown = Bar("train", stream)
    shown.begin(10)
    for step in range(1, 11):
        shown.step(step, {"loss": 1.0})
    lefts = re.findall(r"(-?\d+) (s|min|h|d) left", stream.getvalue())
    assert lefts
    assert {(number, unit) for number, unit in lefts} == {("0", "s")}


def test_budgets_locks_and_progress_read_no_wall_clock():
    """`time.time` in the sources: each place is named here with what it is for."""
    source = Path(train.__file__).parents[1]
    users = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if "time.time()" in path.read_text()}
    assert users == set()
