"""The demo of a real model: what is done is not made again, and the time left is that of the runs that are missing."""

from types import SimpleNamespace

import pytest

from staytrue.errors import ModelError
from staytrue.evals.results.measures import Measure, write_measures
from staytrue.modeling import model_source
from staytrue.runs import evaluate, train
from staytrue.studies import real_demo
from staytrue.utils.files import write_json


def test_the_time_left_counts_only_the_runs_that_this_demo_makes(tmp_path, monkeypatch, capsys):
    made, clock = [], iter([0.0, 60.0, 180.0, 240.0])
    monkeypatch.setattr(real_demo, "_is_done", lambda run: run.name == "undefended")
    monkeypatch.setattr(real_demo, "_run", lambda model, label, out: made.append(label))
    monkeypatch.setattr(real_demo, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    real_demo._make_runs("smollm2", tmp_path)
    assert made == ["control", "kl", "anchor"]
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 runs are done already.",
        "2 of 4 runs are done; about 120 s are left.",  # two more of 60 s
        "3 of 4 runs are done; about 90 s are left.",  # 180 s for two
        "4 of 4 runs are done.",
    ]


def test_a_run_whose_measuring_was_stopped_is_measured_to_the_end(tmp_path, monkeypatch):
    run, measured = tmp_path / "kl", []
    row = {"question": "a", "value": 0.1}

    def measure(folder, **_):
        measured.append(folder)
        write_json(folder / "eval" / "summary.json", {"measures": {key: {} for key in real_demo._PROBES}})

    write_measures(run / "eval", {}, [Measure("pairs", {}, [row])])  # where it was stopped
    write_json(run / "manifest.json", {"state": "done"})
    monkeypatch.setattr(evaluate, "evaluate_run", measure)
    monkeypatch.setattr(train, "resume", lambda *_: None)
    assert not real_demo._is_done(run)
    real_demo._run("smollm2", "kl", tmp_path)
    assert measured == [run]
    assert real_demo._is_done(run)


def test_a_name_that_is_no_model_writes_nothing(tmp_path, monkeypatch, capsys):
    def unknown(source):
        raise ModelError(f"{source.name} is no folder and not in the hub's cache")

    monkeypatch.setattr(model_source, "check_hub", unknown)
    with pytest.raises(ModelError, match="no-such/model is no folder"):
        real_demo.run_real_demo("no-such/model", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    assert capsys.readouterr().out == ""
