"""What was made before the project was renamed is still read."""

import os

from staytrue.config.recipe import read
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


def test_paid_verdicts_of_the_old_name_are_taken_over(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "holdfast").mkdir()
    response_cache()  # makes an empty one
    made = tmp_path / "staytrue" / "judgments.sqlite"
    if made.exists():
        os.replace(made, tmp_path / "holdfast" / "judgments.sqlite")
    else:
        (tmp_path / "holdfast" / "judgments.sqlite").write_bytes(b"")
    before = (tmp_path / "holdfast" / "judgments.sqlite").read_bytes()
    response_cache()
    assert made.exists()
    assert (tmp_path / "holdfast" / "judgments.sqlite").read_bytes() == before


def test_a_demo_folder_of_the_old_name_is_replaced(tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / ".holdfast-demo").write_text("")
    (out / "results.json").write_text("{}")
    _take_over(out)
    assert sorted(p.name for p in out.iterdir()) == [".staytrue-demo"]
