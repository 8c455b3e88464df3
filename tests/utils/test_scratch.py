"""Scratch folders: removed when their work ends, also by the next one after a kill, and never while in use."""

import fcntl

import pytest

from staytrue.utils.run_dir import locked
from staytrue.utils.scratch import scratch_beside


def left(folder):
    folder.mkdir()
    (folder / "weights").write_text("half")
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
    killed = left(tmp_path / ".m[o]del.unfinished-aaaa")
    used = left(tmp_path / ".m[o]del.unfinished-bbbb")
    others = [left(tmp_path / name) for name in (".model.unfinished-aaaa", ".m[o]del-backup", "m[o]del.unfinished-a")]
    with locked(used), scratch_beside(tmp_path / "m[o]del"):
        assert not killed.exists()
    assert all(folder.exists() for folder in (used, *others))


def test_a_scratch_folder_is_locked_while_it_is_used(tmp_path):
    with scratch_beside(tmp_path / "model") as first, scratch_beside(tmp_path / "model") as second:
        assert first.exists()
        assert second.exists()
        assert first != second


def test_where_a_file_system_has_no_locks_nothing_is_taken_for_left(tmp_path, monkeypatch):
    def without(*_):
        raise OSError("no locks")

    perhaps_used = left(tmp_path / ".model.unfinished-aaaa")
    monkeypatch.setattr(fcntl, "flock", without)
    with scratch_beside(tmp_path / "model"):
        assert perhaps_used.exists()
