"""Scratch folders: removed when their work ends, also by the next one after a kill, and never while in use."""

import os
import time

import pytest

from staytrue.utils.run_dir import locked
from staytrue.utils.scratch import scratch_beside


def aged(folder, seconds=100):
    folder.mkdir()
    (folder / "weights").write_text("half")
    os.utime(folder, (time.time() - seconds,) * 2)
    return folder


def test_what_is_written_is_renamed_into_place_and_nothing_is_left_beside_it(tmp_path):
    with scratch_beside(tmp_path / "new" / "model") as scratch:
        (scratch / "model").mkdir()
        (scratch / "model").rename(tmp_path / "new" / "model")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_a_fault_leaves_nothing(tmp_path):
    def fail():
        with scratch_beside(tmp_path / "model") as scratch:
            (scratch / "model").mkdir()
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_or_another_persons_is_not(tmp_path):
    killed = aged(tmp_path / ".m[o]del.unfinished-aaaa")
    used = aged(tmp_path / ".m[o]del.unfinished-bbbb")
    young = aged(tmp_path / ".m[o]del.unfinished-cccc", seconds=1)  # its process may be about to lock it
    others = [aged(tmp_path / name) for name in (".model.unfinished-aaaa", ".m[o]del-backup", "m[o]del.unfinished-a")]
    with locked(used), scratch_beside(tmp_path / "m[o]del"):
        assert not killed.exists()
    assert all(folder.exists() for folder in (used, young, *others))
