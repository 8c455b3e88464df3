"""The demo of a real model: what is done is not made again, and the time left is that of the runs that are missing."""

from types import SimpleNamespace

from staytrue.evals.results.measures import Measure, write_measures
from staytrue.studies import real_demo


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


def test_a_run_whose_measuring_was_stopped_is_not_done(tmp_path):
    assert not real_demo._is_done(tmp_path)
    row = {"question": "a", "value": 0.1}
    for name in ("pairs", "drift", "leak"):
        assert not real_demo._is_done(tmp_path)
        write_measures(tmp_path / "eval", {}, [Measure(name, {}, [row])])
    assert real_demo._is_done(tmp_path)
