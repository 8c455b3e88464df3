"""What was made before the project was renamed is still read."""

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
    assert list((tmp_path / "staytrue").iterdir()) == []


def test_a_demo_folder_of_the_old_name_is_replaced(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / ".holdfast-demo").write_text("")
    (out / "results.json").write_text("{}")
    _take_over(out)
    assert sorted(p.name for p in out.iterdir()) == [".staytrue-demo"]
