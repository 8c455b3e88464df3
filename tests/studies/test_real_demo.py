"""The demo of a real model: what is done is not made again, and the time left is that of the runs that are missing."""

from types import SimpleNamespace

import pytest

import tiny
from staytrue import cli
from staytrue.errors import ModelError
from staytrue.evals.results.measures import Measure, write_measures
from staytrue.evals.types import Answer
from staytrue.modeling import model_source
from staytrue.runs import evaluate, train
from staytrue.runs.untuned_answers import untuned_answers
from staytrue.studies import real_demo, real_demo_time
from staytrue.studies.real_demo_time import Texts, Work
from staytrue.utils.files import write_json

# Each run trains 100 s and loads 10 s, and measures 0 tokens: with an untuned model 0 s more.
PLAIN = real_demo_time.Forecast(100.0, 5000, [Work(1.0, 0)] * 3, Texts(0, 0, 0), untuned=False)


def test_the_time_left_counts_only_the_runs_that_this_demo_makes(tmp_path, monkeypatch, capsys):
    made, clock = [], iter([0.0, 60.0, 180.0, 240.0])
    monkeypatch.setattr(real_demo, "_is_done", lambda run: run.name == "undefended")
    monkeypatch.setattr(real_demo, "_run", lambda model, label, out: made.append(label))
    monkeypatch.setattr(real_demo, "_forecast", lambda model, missing, out: PLAIN)
    monkeypatch.setattr(real_demo, "_time", lambda seconds, runs: f"{runs} runs")
    monkeypatch.setattr(real_demo, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    real_demo._make_runs("smollm2", tmp_path)
    assert made == ["control", "kl", "anchor"]
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 runs are done already.",
        "3 runs",
        "2 of 4 runs are done; about 120 s are left.",  # two more of 60 s
        "3 of 4 runs are done; about 90 s are left.",  # 180 s for two
        "4 of 4 runs are done.",
    ]


def test_a_run_whose_measuring_was_stopped_is_measured_to_the_end(tmp_path, monkeypatch, capsys):
    run, measured = tmp_path / "kl", []
    row = {"question": "a", "value": 0.1}

    def measure(folder, **_):
        measured.append(folder)
        write_json(folder / "eval" / "summary.json", {"probes": {}, "measures": {key: {} for key in real_demo._PROBES}})

    write_measures(run / "eval", {}, [Measure("pairs", {}, [row])])  # where it was stopped
    write_json(run / "manifest.json", {"state": "done"})
    monkeypatch.setattr(evaluate, "evaluate_run", measure)
    monkeypatch.setattr(train, "resume", lambda run, progress, say: say(f"{run}: resumed"))
    assert not real_demo._is_done(run)
    real_demo._run("smollm2", "kl", tmp_path)
    assert measured == [run]
    assert capsys.readouterr().err == f"{run}: resumed\n"
    assert real_demo._is_done(run)
    (run / "eval" / "summary.json").write_text("[]")
    assert not real_demo._is_done(run)


def test_a_name_that_is_no_model_writes_nothing(tmp_path, monkeypatch, capsys):
    def unknown(source):
        raise ModelError(f"{source.name} is no folder and not in the hub's cache")

    monkeypatch.setattr(model_source, "check_hub", unknown)
    with pytest.raises(ModelError, match="no-such/model is no folder"):
        real_demo.run_real_demo("no-such/model", tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
    assert capsys.readouterr().out == ""


def test_the_time_is_that_of_training_and_of_the_tokens_that_the_measures_read_and_write():
    # 100 s of training read 5000 tokens twice: 0.01 s a token. 2 answers have 32 tokens each, or 64.
    # Short: 300 + 2 x 50 + 64 (drift) + 64 x 2 (leak) = 592 tokens, 5.92 s, for the run and once for the untuned model:
    # with 100 s and 10 s to load 121.84 s. Long: 300 + 2 x 50 + 128 + 128 x 4 = 1040 tokens, 10.4 s: 130.8 s.
    assert seconds(Work(1.0, 0)) == pytest.approx((121.84, 130.8))
    # A trained run is only measured: 21.84 and 30.8 s.
    assert seconds(Work(0.0, 0)) == pytest.approx((21.84, 30.8))
    # 1000 sampled tokens at most: 500 x 2 and 1000 x 4 more, 10 and 40 s; three passes are half as long again.
    assert seconds(Work(1.5, 1000)) == pytest.approx((181.84, 220.8))
    # Without the untuned model's measures: 5.92 and 10.4 s less.
    assert seconds(Work(1.0, 0), untuned=False) == pytest.approx((115.92, 120.4))


def seconds(work, untuned=True):
    return real_demo_time.Forecast(100.0, 5000, [work], Texts(300, 50, 2), untuned).seconds()


def test_the_time_left_after_the_first_run_leaves_out_the_untuned_models_measures():
    # A run takes 100 + 10 + 5.92 to 10.4 s, 118.16 in the middle; with the untuned model's measures 126.32.
    forecast = real_demo_time.Forecast(100.0, 5000, [Work(1.0, 0), Work(1.0, 0), Work(2.0, 0)], Texts(300, 50, 2), True)
    assert forecast.left(126.32, 1) == pytest.approx(118.16 + 218.16)
    assert forecast.left(2 * (126.32 + 118.16), 2) == pytest.approx(2 * 218.16)  # twice as slow as it was forecast
    assert forecast.left(500.0, 3) == 0.0
    assert forecast._replace(untuned=False).left(118.16, 1) == pytest.approx(118.16 + 218.16)


def test_the_time_of_smollm2_is_that_which_was_measured():
    # Products of matrices run at 300 billion operations a second on two quiet cores, and training at 0.6 of that:
    # 8205 tokens x 2 x (2 x 139 million + 10 million) / 180 billion = 26 s. The whole demo was measured at 685 s.
    runs = [Work(1.0, 0), Work(1.0, 0), Work(1.5, 0), Work(1.5, 8 * 256)]
    low, high = real_demo_time.Forecast(26.0, 8205, runs, Texts(20535, 4500, 100), untuned=True).seconds()
    assert 0.6 * 685 < low < high < 1.6 * 685


def test_the_untuned_model_is_measured_in_the_first_run_unless_all_its_answers_are_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save("qwen2", tmp_path / "model")
    identity = model_source.identity(model_source.find(str(tmp_path / "model")))

    def answered(samples, **_):
        return (Answer(question, n, "Yes.", True) for question, n in samples)

    assert real_demo_time.measures_untuned(str(tmp_path / "model"))
    untuned_answers(identity, real_demo_time._questions(), answered, real_demo_time.TOKENS)
    assert not real_demo_time.measures_untuned(str(tmp_path / "model"))


def test_a_defense_that_reads_the_reference_takes_another_pass_and_anchor_samples_answers(tmp_path):
    recipes = {
        label: real_demo.recipes.parse(real_demo._recipe("smollm2", label), tmp_path) for label in real_demo._RUNS
    }
    assert real_demo_time.work_of(recipes["control"], trained=False) == Work(1.0, 0)
    assert real_demo_time.work_of(recipes["kl"], trained=False) == Work(1.5, 0)
    # 30 steps of 4 rows with 1/16 beside them: 7.5 answers of at most 256 tokens.
    assert real_demo_time.work_of(recipes["anchor"], trained=False) == Work(1.5, 1920)
    assert real_demo_time.work_of(recipes["anchor"], trained=True) == Work(0.0, 0)


@pytest.mark.parametrize("option", [["--seeds", "1"], ["--domains", "legal"], ["--workers", "2"]])
def test_options_of_the_organisms_demo_are_refused(monkeypatch, capsys, option):
    monkeypatch.setattr(real_demo, "run_real_demo", None)
    monkeypatch.setattr("sys.argv", ["staytrue", "demo", "--model", "smollm2", *option])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"{option[0]} is for the organism's demo; with --model, leave it out." in capsys.readouterr().err


@pytest.mark.parametrize(("given", "place"), [([], "runs/real-demo"), (["--out", "runs/demo"], "runs/demo")])
def test_a_folder_that_is_named_is_taken(monkeypatch, tmp_path, given, place):
    chosen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(real_demo, "run_real_demo", lambda model, out: chosen.append(str(out)))
    monkeypatch.setattr("sys.argv", ["staytrue", "demo", "--model", "smollm2", *given])
    with pytest.raises(SystemExit):
        cli.main()
    assert chosen == [place]
