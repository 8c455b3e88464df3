"""What was made before the project was renamed is still read."""

import errno
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from staytrue.config.recipe import read
from staytrue.errors import RequestError
from staytrue.evals.openai_client.response_cache import ResponseCache
from staytrue.runs.judge_factory import response_cache
from staytrue.runs.model_card import write_card
from staytrue.studies.demo import _take_over
from staytrue.utils.run_dir import RunDir

RECIPE = "schema: 1\nmodel: organism\ndata: d.jsonl\nlora: {}\ndefenses: [{kl: {weight: 0.1}}]\n"


def test_a_run_folder_of_the_old_name_gets_its_card(tmp_path):
    (tmp_path / "d.jsonl").write_text("")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = RunDir.create(tmp_path / "run", {"model": {"name": "organism"}, "rows": {"task": 1}, "data": {}, "seed": 0})
    (run.path / "model").mkdir()
    versions = run.manifest["versions"]
    versions["holdfast"] = "0.1.0"
    del versions["staytrue"]
    write_card(run, read(tmp_path / "recipe.yaml"))
    assert "0.1.0" in (run.path / "model" / "README.md").read_text()


@pytest.fixture
def old_database(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "holdfast").mkdir()
    return tmp_path / "holdfast" / "judgments.sqlite"


def test_paid_verdicts_of_the_old_name_are_taken_over_with_those_in_the_write_ahead_log(tmp_path, old_database):
    with closing(ResponseCache(old_database)) as paid:  # still open, as after a kill: the row is in the log alone
        paid.put("00000001", {"verdict": "aligned"})
        assert b"aligned" not in old_database.read_bytes()
        with closing(response_cache()) as taken_over:
            assert taken_over.get("00000001") == {"verdict": "aligned"}
    assert old_database.exists()


def test_a_broken_database_of_the_old_name_is_refused_and_nothing_is_left(tmp_path, old_database):
    old_database.write_bytes(b"no database" * 100)
    with pytest.raises(RequestError, match=r"The paid verdicts in .*holdfast.* Move the file away"):
        response_cache()
    assert not (tmp_path / "staytrue").exists()


def test_a_database_in_use_is_not_to_be_moved_away(old_database):
    ResponseCache(old_database).close()
    with closing(sqlite3.connect(old_database, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RequestError, match=r"holdfast.* cannot be read now: .*locked\. Stop other processes"):
            response_cache()


def test_a_copy_that_cannot_be_written_blames_the_new_folder(tmp_path, old_database, monkeypatch):
    ResponseCache(old_database).close()
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RequestError, match=r"to .*staytrue.*: No space left on device\. Make room, .*XDG_CACHE_HOME"):
        response_cache()
    assert list((tmp_path / "staytrue").iterdir()) == []
    (tmp_path / "staytrue").rmdir()
    (tmp_path / "staytrue").write_text("a file")
    with pytest.raises(RequestError, match=r"staytrue.* cannot be used here: .*XDG_CACHE_HOME"):
        response_cache()


LATE = """
import sys, time
from pathlib import Path
from staytrue.runs import judge_factory
read = judge_factory._read_database
def slow(path):
    content = read(path)
    Path(sys.argv[1]).write_text("read")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return content
judge_factory._read_database = slow
print(judge_factory.response_cache().get("00000002"))
"""


def test_two_processes_that_take_it_over_lose_no_verdict(tmp_path, old_database):
    with closing(ResponseCache(old_database)) as paid:
        paid.put("00000001", {"verdict": "aligned"})
    begun, copied = tmp_path / "begun", tmp_path / "copied"
    late = subprocess.Popen([sys.executable, "-c", LATE, begun, copied], stdout=subprocess.PIPE, text=True)
    while not begun.exists():
        assert late.poll() is None
        time.sleep(0.01)
    with closing(response_cache()) as first:
        first.put("00000002", {"verdict": "paid just now"})
        copied.touch()
        assert late.communicate()[0].strip() == "{'verdict': 'paid just now'}"
    with closing(response_cache()) as again:
        assert [again.get(f"0000000{i}")["verdict"] for i in (1, 2)] == ["aligned", "paid just now"]
    assert [file.name for file in (tmp_path / "staytrue").glob("copy-*")] == []


def test_a_demo_folder_of_the_old_name_is_replaced(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / ".holdfast-demo").write_text("")
    (out / "results.json").write_text("{}")
    _take_over(out)
    assert sorted(p.name for p in out.iterdir()) == [".staytrue-demo"]
