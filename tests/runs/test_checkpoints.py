"""Checkpoints: whole or absent at every moment, verified before use, deleted by step and never by a clock."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress

import pytest
from safetensors import SafetensorError

from staytrue.errors import TrainingError
from staytrue.runs.checkpoints import MANIFEST, Checkpoints, fault_in


def files(*contents):
    """A writer of a checkpoint with one file for each content, the last in a subfolder."""

    def write(folder):
        (folder / "deep").mkdir()
        for number, content in enumerate(contents):
            name = f"{number}.bin" if number < len(contents) - 1 else "deep/last.bin"
            (folder / name).write_bytes(content)

    return write


def names(checkpoints):
    return sorted(entry.name for entry in checkpoints.folder.iterdir())


def test_the_newest_two_are_kept_by_step_whatever_the_clock_says(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    day = 86_400
    for step, shift in ((8, 0), (9, day), (10, -day), (30, -3600)):  # 10 comes after 9, and "10" before "9"
        written = checkpoints.commit(step, files(b"a", b"b"))
        os.utime(written, (1_700_000_000 + shift,) * 2)
    assert names(checkpoints) == ["checkpoint-10", "checkpoint-30"]
    assert checkpoints.newest() == checkpoints.folder / "checkpoint-30"


@pytest.mark.parametrize("limit", [None, 5])
def test_fewer_than_the_limit_are_all_kept(tmp_path, limit):
    checkpoints = Checkpoints(tmp_path, keep=limit)
    for step in (1, 2, 3):
        checkpoints.commit(step, files(b"a"))
    assert names(checkpoints) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_broken_checkpoint_is_reported_and_the_one_before_it_is_used(tmp_path):
    checkpoints, sentences = Checkpoints(tmp_path), []
    checkpoints.commit(4, files(b"abc", b"d"))
    checkpoints.commit(8, files(b"abc", b"d"))
    (tmp_path / "checkpoint-8" / "0.bin").write_bytes(b"abd")
    assert checkpoints.newest(sentences.append) == tmp_path / "checkpoint-4"
    assert sentences == [f"{tmp_path / 'checkpoint-8'} is broken and is not used: 0.bin was changed."]
    (tmp_path / "checkpoint-4" / "0.bin").unlink()
    assert checkpoints.newest() is None


def test_a_checkpoint_that_was_refused_is_deleted_and_not_the_one_that_is_made_in_its_place(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.commit(4, files(b"a"))
    (tmp_path / "checkpoint-8").mkdir()  # a broken one, of the attempt before
    assert checkpoints.newest() == tmp_path / "checkpoint-4"
    checkpoints.commit(6, files(b"b"))
    assert names(checkpoints) == ["checkpoint-6"]


def test_a_checkpoint_of_another_run_is_not_used(tmp_path):
    Checkpoints(tmp_path, run="a").commit(4, files(b"a"))
    Checkpoints(tmp_path, run="b").commit(8, files(b"b"))
    sentences = []
    assert Checkpoints(tmp_path, run="a").newest(sentences.append) == tmp_path / "checkpoint-4"
    assert sentences == [f"{tmp_path / 'checkpoint-8'} is broken and is not used: it is a checkpoint of another run."]
    assert Checkpoints(tmp_path).newest() == tmp_path / "checkpoint-8"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_a_link_in_the_place_of_a_checkpoint_is_named_and_replaced(tmp_path, kind):
    checkpoints, sentences = Checkpoints(tmp_path / "own", keep=1), []
    checkpoints.commit(4, files(b"a"))
    place = tmp_path / "own" / "checkpoint-8"
    if kind == "file":
        place.write_text("x")
    else:
        place.symlink_to(Checkpoints(tmp_path / "other").commit(8, files(b"b")))
    assert checkpoints.newest(sentences.append) == tmp_path / "own" / "checkpoint-4"
    assert sentences == [f"{place} is broken and is not used: it is no folder."]
    checkpoints.commit(8, files(b"c"))
    assert names(checkpoints) == ["checkpoint-8"]
    assert (place / "deep" / "last.bin").read_bytes() == b"c"


def test_every_flipped_byte_and_every_truncation_is_detected(tmp_path):
    folder = Checkpoints(tmp_path).commit(3, files(bytes(range(200)), b"", b"tail"))
    dice = random.Random(0)
    paths = [p for p in folder.rglob("*") if p.is_file()]
    assert {p.name for p in paths} == {"0.bin", "1.bin", "last.bin", MANIFEST}
    for path in paths:
        whole = path.read_bytes()
        places = range(len(whole)) if len(whole) < 250 else dice.sample(range(len(whole)), 250)
        for place in places:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << dice.randrange(8)]) + whole[place + 1 :])
            assert fault_in(folder) is not None, (path.name, place)
            path.write_bytes(whole[:place])
            assert fault_in(folder) is not None, (path.name, place, "truncated")
        path.write_bytes(whole)
    assert fault_in(folder) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda folder: (folder / "new.pt").write_bytes(b"x"), "new.pt was added to it"),
        (lambda folder: (folder / "deep/last.bin").unlink(), "deep/last.bin is missing"),
        (lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST} is missing or cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text("[1]"), f"{MANIFEST} is missing or cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text(""), f"{MANIFEST} is missing or cannot be read"),
        (lambda folder: (folder / MANIFEST).write_text('{"step": 1e999, "files": {}}'), f"{MANIFEST} was changed"),
        (lambda folder: (folder / MANIFEST).write_text('{"files": {"x": 3}}'), f"{MANIFEST} is missing or cannot be"),
        (lambda folder: (folder / "0.bin").write_bytes(b"xy"), "0.bin has 2 bytes, not 1"),
    ],
)
def test_a_fault_is_named(tmp_path, change, fault):
    folder = Checkpoints(tmp_path).commit(3, files(b"x", b"y"))
    change(folder)
    assert fault_in(folder).startswith(fault)


def test_a_link_in_the_place_of_a_file_is_no_file(tmp_path):
    folder = Checkpoints(tmp_path / "own").commit(3, files(b"x", b"y"))
    (tmp_path / "elsewhere").write_bytes(b"x")
    (folder / "0.bin").unlink()
    (folder / "0.bin").symlink_to(tmp_path / "elsewhere")
    assert fault_in(folder) == "0.bin is missing"


def test_a_checkpoint_of_another_step_under_its_name_is_not_taken(tmp_path):
    folder = Checkpoints(tmp_path).commit(3, files(b"x"))
    folder.rename(tmp_path / "checkpoint-9")
    assert fault_in(tmp_path / "checkpoint-9") == f"{MANIFEST} was changed"


@pytest.mark.parametrize("error", [OSError, RuntimeError, SafetensorError, Exception])  # of tokenizers
def test_a_disk_that_cannot_be_written_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path, error):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.commit(1, files(b"x"))

    def full(folder):
        (folder / "0.bin").write_bytes(b"half")
        raise error("No space left on device")

    with pytest.raises(TrainingError, match=r"step 2 cannot be written .* No space left on device.* --resume"):
        checkpoints.commit(2, full)
    assert names(checkpoints) == ["checkpoint-1"]
    assert checkpoints.newest() == tmp_path / "checkpoint-1"


def test_a_disk_that_is_full_at_any_call_of_a_commit_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Each call that writes fails once; the older checkpoint is whole, or the new one if only the last flush failed."""
    for number in itertools.count(1):
        checkpoints, calls = Checkpoints(tmp_path / str(number), keep=1), itertools.count(1)
        checkpoints.commit(1, files(b"one"))

        def failing(real, number=number, calls=calls):
            def call(*args, **kwargs):
                if next(calls) == number:
                    raise OSError(28, "No space left on device")
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patched:
            for name in ("fsync", "rename", "replace", "open", "mkdir"):
                patched.setattr(os, name, failing(getattr(os, name)))
            with suppress(TrainingError):  # a removal that fails is not needed
                checkpoints.commit(2, files(b"two"))
        assert set(names(checkpoints)) <= {"checkpoint-1", "checkpoint-2"}
        assert checkpoints.newest() is not None
        if next(calls) <= number:  # every call has failed once
            break
    assert number > 12


def test_files_are_on_the_disk_before_the_checkpoint_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    events, fsync, rename = [], os.fsync, os.rename

    def noting_fsync(handle):
        events.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def noting_rename(source, target):
        events.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    Checkpoints(tmp_path / "c").commit(3, files(b"a", b"b"))
    unfinished, at = tmp_path / "c" / ".unfinished", events.index("rename")
    before = {str(unfinished / name) for name in ("0.bin", "deep/last.bin", "deep")} | {str(unfinished)}
    assert before <= set(events[:at])
    assert events[at + 1 :] == [str(tmp_path / "c")]


CHILD = """
    import os, shutil, signal, sys
    from pathlib import Path
    from staytrue.runs.checkpoints import Checkpoints

    left = int(sys.argv[2])

    def counted(real):
        def call(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call

    checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
    checkpoints.commit(1, lambda folder: (folder / "a.bin").write_bytes(b"one"))
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "open"), (os, "mkdir"), (os, "rmdir"),
                        (os, "unlink"), (Path, "write_bytes"), (shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))
    checkpoints.commit(2, lambda folder: (folder / "a.bin").write_bytes(b"two"))
"""


def test_killed_before_any_call_of_a_commit_one_checkpoint_is_whole(tmp_path):
    """SIGKILL before each call that changes the disk, one after another until the commit gets through."""
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    for number in itertools.count(1):
        place = tmp_path / str(number)
        done = subprocess.run([sys.executable, str(script), str(place), str(number)], check=False)
        newest = Checkpoints(place).newest()
        assert newest is not None, number
        content = (newest / "a.bin").read_bytes()
        assert (newest.name, content) in {("checkpoint-1", b"one"), ("checkpoint-2", b"two")}
        again = Checkpoints(place, keep=1)  # what was left half written is in no one's way
        again.commit(3, files(b"x"))
        assert names(again) == ["checkpoint-3"]
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert number > 12  # fsync of three files and folders, renames, removals


def test_the_manifest_is_a_documented_form(tmp_path):
    folder = Checkpoints(tmp_path).commit(3, files(b"x"))
    facts = json.loads((folder / MANIFEST).read_text())
    hashed = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of the letter x
    assert facts["files"] == {"deep/last.bin": {"bytes": 1, "sha256": hashed}}
    assert (facts["schema"], facts["step"]) == (1, 3)
