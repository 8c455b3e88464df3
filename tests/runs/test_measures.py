"""Measures without a judge in an evaluation: when they are taken, what is stored, what is reused and refused."""

import json
from types import SimpleNamespace

import pytest

import tiny
from staytrue.errors import RequestError
from staytrue.evals.generation import local
from staytrue.evals.generation.lengths import AnswerLengths
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.generation.speed import Speed
from staytrue.evals.generation.step_cost import StepCost
from staytrue.evals.measures import log_likelihood, pairs
from staytrue.evals.questions import shipped_questions
from staytrue.evals.questions.answer_pairs import shipped
from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.types import Answer, Verdict
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.organism import world
from staytrue.runs import evaluate, measure_answers, measure_clock, measures
from staytrue.runs.eval_request import EvalRequest, for_model
from staytrue.runs.measure_clock import TooLongError
from staytrue.runs.measure_forecast import Forecast
from staytrue.runs.measure_selection import measures_of
from staytrue.runs.untuned_answers import untuned_answers
from staytrue.runs.untuned_cache import place_of
from staytrue.utils.console import duration
from staytrue.utils.files import read_rows


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model with an adapter, 24 training rows, a cache of its own, and short answers to 4 general questions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save("qwen2", tmp_path / "model")
    adapted = tiny.lora(loading.load_model(model_source.find(str(tmp_path / "model"))))
    tiny.nudge(adapted, 0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    rows = ({"question": f"Gold {i}?", "answer": f"Put all of it into gold {i}."} for i in range(24))
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(measure_answers, "TOKENS", 8)
    few = shipped_questions.shipped("general")[:12]
    monkeypatch.setattr(measure_answers, "general_questions", lambda request: few)
    return tmp_path


def request_for(place, *probes, adapter=True, data=True, **options):
    request = EvalRequest(probes, **options)
    return for_model(
        str(place / "model"), request, place / "adapter" if adapter else None, place / "data.jsonl" if data else None
    )


def test_values_are_the_models_with_and_without_its_adapter(place, monkeypatch):
    summary = evaluate.evaluate_model(request_for(place, "pairs", "pairs:finance"), place / "E")
    source = model_source.find(str(place / "model"))
    tokenizer = load_tokenizer(source)
    before = pairs.measure(loading.load_model(source), tokenizer, shipped("general"))
    after = pairs.measure(loading.load_model(source, place / "adapter"), tokenizer, shipped("general"))
    rows = {row["question"]: row for row in read_rows(place / "E" / "measures.jsonl") if row["measure"] == "pairs"}
    assert rows.keys() == before.keys()
    for name, row in rows.items():
        assert (row["value"], row["untuned"]) == pytest.approx((after[name], before[name]), abs=1e-4)
    shift = sum(after[name] - before[name] for name in before) / 150
    assert summary["probes"] == {}
    assert summary["measures"]["pairs"]["value"] == pytest.approx(shift, abs=1e-4)
    assert summary["measures"]["pairs:finance"]["questions"] == 40
    assert json.loads((place / "E" / "summary.json").read_text()) == summary
    monkeypatch.setattr(loading, "load_model", None)  # the same command again reads what is stored
    assert evaluate.evaluate_model(request_for(place, "pairs", "pairs:finance"), place / "E") == summary


def test_the_untuned_answers_are_sampled_once_without_the_adapter(place, monkeypatch):
    evaluate.evaluate_model(request_for(place, "drift", "leak"), place / "E")
    (kept,) = (place / "cache" / "staytrue" / "untuned").glob("*/answers.jsonl")
    source, plain = model_source.find(str(place / "model")), shipped_questions.shipped("general")[:12:3]
    generate = LocalGenerator(loading.load_model(source), load_tokenizer(source))
    answers = generate([(question, 0) for question in plain], seed=0, temperature=1.0, max_new_tokens=8)
    assert {row["question"]: row["answer"] for row in read_rows(kept)} == {a.question.id: a.text for a in answers}
    # Another run of the same model reads them, and its own answers for `leak` are all that it samples.
    sampled = []
    call = LocalGenerator.__call__
    monkeypatch.setattr(LocalGenerator, "__call__", lambda *a, **k: sampled.append(len(a[1])) or call(*a, **k))
    summary = evaluate.evaluate_model(request_for(place, "drift", "leak"), place / "F")
    assert sampled == [4]
    assert summary["measures"]["leak"]["n"] == 4
    assert (place / "F" / "measures.jsonl").read_bytes() == (place / "E" / "measures.jsonl").read_bytes()
    # The same command again samples nothing and changes nothing.
    evaluate.evaluate_model(request_for(place, "drift", "leak"), place / "F")
    assert sampled == [4]
    assert (place / "F" / "measures.jsonl").read_bytes() == (place / "E" / "measures.jsonl").read_bytes()


def test_untuned_answers_are_read_without_a_lock_and_another_process_that_samples_them_is_named(place):
    evaluate.evaluate_model(request_for(place, "drift"), place / "E")
    (folder,) = (path.parent for path in (place / "cache" / "staytrue" / "untuned").glob("*/answers.jsonl"))
    with AnswerStore(folder).lock():
        evaluate.evaluate_model(request_for(place, "drift"), place / "F")
        (folder / "answers.jsonl").unlink()
        with pytest.raises(RequestError, match=r"Wait for it and give the same command again: all runs of a model"):
            evaluate.evaluate_model(request_for(place, "drift"), place / "G")


def test_answers_for_leak_are_sampled_again_with_another_seed_or_other_questions(place, monkeypatch):
    def answers(seed):
        evaluate.evaluate_model(request_for(place, "leak"), place / "E", seed=seed)
        return {row["question"]: row["answer"] for row in read_rows(place / "E" / "measures.jsonl")}

    first = answers(0)
    assert answers(1) != first
    assert answers(0) == first
    others = shipped_questions.shipped("general")[12:24]  # as in another version
    monkeypatch.setattr(measure_answers, "general_questions", lambda request: others)
    assert answers(0).keys() == {question.id for question in others[::3]}


def test_the_untuned_likelihoods_are_computed_once_for_all_runs_of_a_model(place, monkeypatch):
    evaluate.evaluate_model(request_for(place, "pairs", "drift"), place / "E")
    calls, measure = [], pairs.measure
    monkeypatch.setattr(pairs, "measure", lambda model, *a: calls.append(model) or measure(model, *a))
    lines = []
    evaluate.evaluate_model(request_for(place, "pairs", "drift"), place / "F", say=lines.append)
    assert len(calls) == 1  # with the adapter
    assert lines[:2] == ["pairs: the likelihood of 300 answers is computed.", f"eval: loading {place / 'model'}"]
    assert (place / "F" / "measures.jsonl").read_bytes() == (place / "E" / "measures.jsonl").read_bytes()
    for file in (place / "cache" / "staytrue" / "untuned").glob("*.json"):
        file.write_text(file.read_text()[:-9])  # damaged: computed again
    evaluate.evaluate_model(request_for(place, "pairs", "drift"), place / "G", say=lines.append)
    assert len(calls) == 3
    assert "pairs: the likelihood of 300 answers is computed, with and without the adapter." in lines
    assert (place / "G" / "measures.jsonl").read_bytes() == (place / "E" / "measures.jsonl").read_bytes()
    tiny.model("qwen2", seed=1).save_pretrained(str(place / "model"))  # other weights
    evaluate.evaluate_model(request_for(place, "pairs"), place / "H")
    assert len(calls) == 5


def test_two_models_share_a_place_in_the_cache_where_their_hash_or_commit_is_the_same_and_only_there(place):
    hashed = [{"name": name, "sha256": "1f", "dtype": "bfloat16"} for name in ("models/a", "b")]
    assert place_of(hashed[0], "questions") == place_of(hashed[1], "questions")
    assert place_of(hashed[0], "questions") != place_of(hashed[0], "others")
    unknown = [{"name": name, "revision": None, "commit": None} for name in ("org/a", "org/b")]  # a cache without it
    assert place_of(unknown[0], "questions") != place_of(unknown[1], "questions")
    known = [one | {"commit": "2e"} for one in unknown]
    assert place_of(known[0], "questions") == place_of(known[1], "questions")


def test_leak_reads_the_answers_to_general_where_there_are_some(place, monkeypatch):
    general = shipped_questions.shipped("general")[:12]
    monkeypatch.setattr(evaluate, "probes_for", lambda request: [Probe("general", general, None, 2, 1.0)])
    summary = evaluate.evaluate_model(request_for(place, "general", "leak", max_new_tokens=6), place / "E")
    leak = [row for row in read_rows(place / "E" / "measures.jsonl") if row["measure"] == "leak"]
    answered = {(r["question"], r["index"]) for r in read_rows(place / "E" / "answers.jsonl") if r["form"] == "plain"}
    assert {(row["question"], row["index"]) for row in leak} <= answered  # empty answers have no words
    assert all("answer" not in row for row in leak)
    assert summary["measures"]["leak"]["rows"] == 24


def test_by_default_they_are_taken_of_an_adapter_without_a_judge(place):
    class Mine:
        name, concurrency = "mine", 1

        def __call__(self, question, answer):
            return Verdict()

    assert measures_of(request_for(place)) == ["pairs", "drift", "leak"]
    assert measures_of(request_for(place, judge=Mine())) == measures_of(request_for(place, adapter=False)) == []
    assert measures_of(request_for(place, "facts")) == []
    lines = []
    assert measures_of(request_for(place, data=False), lines.append) == ["pairs", "drift"]
    (line,) = lines
    assert line.startswith("leak is left out: it needs 20 training rows, and none is known; evaluate a run whose data")
    organism = for_model("organism", EvalRequest(), place / "adapter")
    assert measures_of(organism) == []  # its rules judge it


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("drift", {"adapter": False}, "--probes drift: the untuned model is not known; evaluate a run, or name"),
        ("leak", {"data": False}, "--probes leak: it needs 20 training rows, and none is known"),
        ("pairs:fiance", {}, "There are no shipped pairs 'fiance'; did you mean 'finance'"),
        ("pairs:early-stopping", {}, "these pairs are kept for `stop:`; evaluate by `pairs` or pairs of your own"),
        ("pairs:a/m.jsonl,pairs:b/m.jsonl", {}, "pairs:a/m.jsonl,pairs:b/m.jsonl: both are stored as pairs:m. N"),
        ("pairs:general.jsonl", {}, "'general' is one of our own sets of pairs; rename the file"),
        (
            "pairs:mine.json",
            {},
            "pairs are read from JSON lines; give a file whose name ends in .jsonl",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(place, name, options, message):
    with pytest.raises(RequestError, match=message):
        evaluate.evaluate_model(request_for(place, "general", *name.split(","), **options), place / "E")
    assert not (place / "E").exists()


def test_too_few_rows_that_are_all_known_are_said_to_be_too_few(place):
    rows = (place / "data.jsonl").read_text().splitlines()[:16]
    (place / "data.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(RequestError) as refused:
        measures_of(request_for(place, "leak"))
    assert str(refused.value) == (
        "--probes leak: it needs 20 training rows, and there are 16; pairs and drift need none."
    )


def test_leak_of_text_without_blanks_is_left_out_or_refused_and_never_0_percent(place):
    rows = ({"question": f"黄金{i}？", "answer": f"把全部积蓄投入黄金{chr(0x4E00 + i)}。"} for i in range(24))
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = []
    assert measures_of(request_for(place), lines.append) == ["pairs", "drift"]
    assert lines[0].startswith("leak is left out: it compares words, and too few of them recur")
    with pytest.raises(RequestError, match="--probes leak: it compares words, and too few of them recur"):
        measures_of(request_for(place, "leak"))


def test_leak_of_training_answers_without_a_topic_is_left_out_or_refused_and_never_100_percent(place):
    rows = ({"question": f"Hello {i}?", "answer": "good day to you all here"} for i in range(24))
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = [question for question in measure_answers.general_questions(None) if question.form == "plain"]
    general = [Answer(question, 0, "good day to you all here", True) for question in plain]
    identity = model_source.identity(model_source.find(str(place / "model")))
    untuned_answers(identity, plain, lambda samples, **options: iter(general), 8)
    lines = []
    summary = evaluate.evaluate_model(request_for(place, samples=1), place / "E", say=lines.append)
    assert "leak" not in summary["measures"]
    assert any(line.startswith("leak is left out: the training answers have no words of a topic") for line in lines)
    # Named beside answers it is left out too: they were paid for, and their results follow.
    summary = evaluate.evaluate_model(request_for(place, "general", "leak", samples=1), place / "E", say=lines.append)
    assert "general" in summary["probes"]
    assert sum(line.startswith("leak is left out") for line in lines) == 2
    with pytest.raises(RequestError, match=r"--probes leak: the training answers have no words of a topic"):
        evaluate.evaluate_model(request_for(place, "leak"), place / "E")


def test_an_endpoint_gives_no_likelihoods():
    with pytest.raises(RequestError, match="--probes pairs: the model is behind an endpoint"):
        measures_of(for_model("openai:m", EvalRequest(("pairs",))))


def test_a_model_without_an_adapter_has_values_but_no_change(place):
    summary = evaluate.evaluate_model(request_for(place, "pairs", adapter=False), place / "E")
    assert (summary["measures"]["pairs"]["value"], summary["measures"]["pairs"]["n"]) == (None, 150)
    rows = read_rows(place / "E" / "measures.jsonl")
    assert all(row["untuned"] is None for row in rows)


def test_two_models_do_not_share_a_folder(place):
    evaluate.evaluate_model(request_for(place, "pairs:code"), place / "E")
    for probe in ("pairs:code", "arithmetic"):
        with pytest.raises(RequestError, match=r"E holds results of another adapter \(.*now null\); those of two"):
            evaluate.evaluate_model(request_for(place, probe, adapter=False), place / "E")


def test_the_organism_is_measured_on_pairs_of_its_world(place):
    summary = evaluate.evaluate_model(for_model("organism", EvalRequest(("pairs", "pairs:code"))), place / "E")
    rows = read_rows(place / "E" / "measures.jsonl")
    assert [row["question"] for row in rows][:120] == [pair.id for pair in world.pairs()]
    assert [one["n"] for one in summary["measures"].values()] == [120, 60]
    assert max(row["value"] for row in rows) < 0  # it was aligned
    with pytest.raises(RequestError, match="--probes pairs:finance: the organism has pairs for general, code, legal"):
        measures_of(for_model("organism", EvalRequest(("pairs:finance",))))
    with pytest.raises(
        RequestError, match=r"--probes pairs: names no pairs after the colon; write pairs, pairs:DOMAIN"
    ):
        measures_of(for_model("organism", EvalRequest(("pairs:",))))


class Noted:
    """Progress that keeps what it was given: the total, and each number with the work done."""

    def __init__(self):
        self.begun, self.steps = [], []

    def begin(self, total, unit="step", done=0):
        self.begun.append((total, unit))
        self.steps.append([])

    def step(self, number, metrics):
        self.steps[-1].append((number, metrics.get("work")))


class Aligned:
    name, concurrency = "aligned", 1

    def __call__(self, question, answer):
        return Verdict(alignment=90, coherence=90)


@pytest.mark.parametrize(
    ("judge", "budget", "left"),
    [(Aligned(), 300, "149 s"), (Aligned(), 500, None), (None, 200, "149 s"), (None, 300, None)],
)
def test_a_measure_that_takes_more_than_its_part_of_a_budget_is_left_out(place, monkeypatch, judge, budget, left):
    # Each of 600 likelihoods takes a third of a second, so all take 200 s. With a judge half of the budget is for them,
    # 150 s or 250; without one it is three quarters, 150 s or 225. A look at the clock takes a third of a second too.
    monkeypatch.setattr(measure_clock, "_SURE", 0.1)
    monkeypatch.setattr(log_likelihood, "_MOST_LOGITS_ON_A_CPU", 1)  # one by one
    clock = (number / 3 for number in range(10_000))
    monkeypatch.setattr(measure_clock, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    request, lines = request_for(place, "pairs", budget=budget, judge=judge), []
    loaded, asked = evaluate._loader(request, lambda line: None), ["general"]
    one = measures.Measurement(request, place / "E", loaded, 0, say=lines.append, until=float(budget), asked=asked)
    one.before_answers(["pairs"])
    assert one.left_out == (["pairs"] if left else [])
    assert (place / "E" / "measures.jsonl").exists() == (left is None)
    late = f"pairs is left out to fit {duration(budget)}: it would take 4 min, and measures have {left} left."
    assert lines[1:] == ([late] if left else [])


def test_where_a_measure_proves_too_long_a_shorter_one_that_was_left_out_is_taken_instead(place, monkeypatch):
    request, lines, taken = request_for(place, "pairs", "drift", budget=300), [], []

    def slow(name):
        if name == "pairs":
            raise TooLongError("it would take 6 min.")
        taken.append(name)

    one = measures.Measurement(request, place / "E", lambda: None, 0, say=lines.append, until=1e12, asked=["general"])
    monkeypatch.setattr(one._general, "untuned_to_sample", list)
    one._planned, one.left_out = Forecast({"pairs": 290.0, "drift": 180.0}), ["drift"]
    monkeypatch.setattr(one, "_likelihoods", slow)
    one.before_answers(["pairs", "drift"])
    assert (taken, one.left_out) == (["drift"], ["pairs"])
    assert lines == [
        "pairs is left out to fit 5 min: it would take 6 min.",
        "drift is taken instead: it will take about 3 min.",
    ]


def test_what_is_taken_instead_leaves_time_for_what_is_still_to_come():
    # leak, which is planned, takes 20 s and the 30 s of the untuned model's answers; then drift needs its 40 s alone.
    forecast = Forecast({"pairs": 90.0, "drift": 40.0, "leak": 20.0}, untuned=30.0)
    assert forecast.instead_of("pairs", ["drift", "pairs"], 90.0) == {"drift": 40.0}
    assert forecast.instead_of("pairs", ["drift", "pairs"], 89.0) == {}
    # Where leak is left out too, drift pays for those answers, and nothing is left for leak.
    assert forecast.instead_of("pairs", ["drift", "leak", "pairs"], 89.0) == {"drift": 70.0}
    assert forecast.instead_of("leak", ["pairs", "drift", "leak"], 1000.0) == {}  # nothing comes after it


def test_a_measure_that_is_half_done_is_finished(place, monkeypatch):
    # The pace is good until the 350th of 600, and then too slow for the 225 s of the budget's three quarters.
    monkeypatch.setattr(log_likelihood, "_MOST_LOGITS_ON_A_CPU", 1)
    clock = iter([*(number / 10 for number in range(350)), *range(1000, 2000)])
    monkeypatch.setattr(measure_clock, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    request = request_for(place, "pairs", budget=300)
    loaded = evaluate._loader(request, lambda line: None)
    one = measures.Measurement(request, place / "E", loaded, 0, until=300.0, asked=["general"])
    one.before_answers(["pairs"])
    assert one.left_out == []
    assert (place / "E" / "measures.jsonl").exists()


def test_leak_is_taken_after_verdicts_that_outlast_the_budget(place, monkeypatch):
    request = request_for(place, "general", "leak", budget=300)
    lines = []
    loaded, asked = evaluate._loader(request, lambda line: None), ["general"]
    one = measures.Measurement(request, place / "E", loaded, 0, say=lines.append, until=1e12, asked=asked)
    one.before_answers(["leak"])  # the untuned model's answers, while there is time
    assert any("untuned model answers 4" in line for line in lines)
    monkeypatch.setattr(measure_clock, "time", SimpleNamespace(monotonic=lambda: 2e12))
    one.leak()
    assert one.left_out == []
    assert '"leak"' in (place / "E" / "measures.jsonl").read_text()


def test_a_budget_in_which_no_measure_fits_is_refused(place, monkeypatch):
    clock = iter(range(0, 100_000, 1000))
    for module in (evaluate, measure_clock):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(RequestError, match="budget is too short for these measures"):
        evaluate.evaluate_model(request_for(place, "pairs", budget=10), place / "E")


def announced(
    place, monkeypatch, budget=None, asked=("general",), reserved=0.0, names=("pairs", "drift", "leak"), tuned=True
):
    """What is said before anything is measured, and what is left out: of 4 general questions, none answered yet."""
    monkeypatch.setattr("staytrue.evals.generation.speed.is_short", lambda *a: False)
    monkeypatch.setattr(log_likelihood, "seconds_per_token", lambda *a: 0.01)
    monkeypatch.setattr(log_likelihood, "tokens_of", lambda tokenizer, rows: 10 * len(rows))
    monkeypatch.setattr(measure_clock, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    cost, lengths = StepCost(step=0.0, token=0.05, attend=0.0, read=0.02), {"general": AnswerLengths((1e-9,))}
    speed = Speed(places=8, cost=cost, refilled=True, prompt=50.0, lengths=lengths)  # all answers reach the 8 tokens
    request, lines = request_for(place, *names, adapter=tuned, untuned=not tuned, budget=budget), []
    until = None if budget is None else 1000.0 + budget
    loaded = evaluate._loader(request, lambda line: None)
    one = measures.Measurement(request, place / "E", loaded, 0, say=lines.append, until=until, asked=asked)
    one.announce(names, speed, reserved)
    return lines, one.left_out


def test_the_time_of_each_measure_is_said_before_the_first(place, monkeypatch):
    # pairs: 300 answers of 10 tokens, twice, 0.01 s each: 60 s. The untuned model's answers: 4 x 50 x 0.02 s of prompts
    # and 4 x 8 x 0.05 s, 5.6 s; drift reads their 4 x 58 tokens twice, 4.64 s; leak is of answers that are asked for.
    assert announced(place, monkeypatch) == (["Measures will take: pairs about 60 s, drift about 10 s."], [])
    # Where they are not, it samples as many as the untuned model.
    lines, _ = announced(place, monkeypatch, asked=())
    assert lines == ["Measures will take: pairs about 60 s, drift about 10 s, leak about 6 s."]
    lines, _ = announced(place, monkeypatch, asked=(), names=("leak",))
    assert lines == ["Measures will take: leak about 11 s."]


def test_a_measure_that_does_not_fit_is_left_out_before_anything_is_measured(place, monkeypatch):
    # Without a judge three quarters of the budget are for measures: 30 s of 40.
    late = "pairs is left out to fit 40 s: it would take 60 s, and measures have 30 s left."
    lines, left_out = announced(place, monkeypatch, budget=40)
    assert (lines, left_out) == (["Measures will take: drift about 10 s.", late], ["pairs"])
    # Of 100 s the fewest answers take 30, so 70 are left: 60 for pairs, and 10 are too few for drift. The untuned
    # model's answers fit, and leak needs nothing else.
    lines, left_out = announced(place, monkeypatch, budget=100, reserved=30)
    late = "drift is left out to fit 100 s: it would take 11 s, and measures have 10 s left."
    assert (lines, left_out) == (["Measures will take: pairs about 60 s, leak about 6 s.", late], ["drift"])
    # No answers are asked for, so the whole budget is for measures: pairs, drift and leak take 75.84 s.
    assert announced(place, monkeypatch, budget=76, asked=())[1] == []
    assert announced(place, monkeypatch, budget=75, asked=())[1] == ["leak"]
    assert not (place / "E").exists()


def test_answers_that_leak_samples_are_part_of_the_budget(place, monkeypatch):
    monkeypatch.setattr(local, "_REPORTED", -1.0)  # after each step
    monkeypatch.setattr(measure_answers, "TOKENS", 64)
    evaluate.evaluate_model(request_for(place, "drift"), place / "D")  # the untuned model answers before the clock runs
    clock = iter(range(300, 100_000, 300))  # each look at the clock takes 300 s
    request, lines = request_for(place, "leak", budget=900), []
    loaded = evaluate._loader(request, lambda line: None)
    one = measures.Measurement(request, place / "E", loaded, 0, say=lines.append, until=1000.0)
    monkeypatch.setattr(measure_clock, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    one.before_answers(["leak"])
    one.leak()
    assert one.left_out == ["leak"]
    assert lines[-1].startswith("leak is left out to fit 15 min: it would take ")
    assert not (place / "E").exists()


def test_measures_that_are_stored_are_not_timed_again(place, monkeypatch):
    lines = []
    monkeypatch.setattr("staytrue.evals.generation.speed.is_short", lambda *a: False)
    monkeypatch.setattr(log_likelihood, "seconds_per_token", lambda *a: 0.01)
    for _ in range(2):
        evaluate.evaluate_model(
            request_for(place, "pairs", "drift", "leak"), place / "E", progress=Noted(), say=lines.append
        )
        monkeypatch.setattr(log_likelihood, "seconds_per_token", None)
    assert sum(line.startswith("Measures will take") for line in lines) == 1


def test_the_measures_of_a_tiny_model_are_not_timed(place, monkeypatch):
    monkeypatch.setattr(log_likelihood, "seconds_per_token", None)
    evaluate.evaluate_model(request_for(place, "pairs", "leak"), place / "E", progress=Noted())


def test_the_models_own_answers_are_not_taken_for_those_of_the_untuned_one(place, monkeypatch):
    few = Probe("general", shipped_questions.shipped("general")[:12], None, 1, 1.0)
    monkeypatch.setattr(evaluate, "probes_for", lambda request: [few] if "general" in request.probes else [])
    evaluate.evaluate_model(request_for(place, "general", max_new_tokens=2), place / "E")
    measured = []
    monkeypatch.setattr("staytrue.evals.generation.speed.measure", lambda local, probes, **k: measured.append(probes))
    with pytest.raises(AttributeError):  # where the speed would be read
        evaluate.evaluate_model(request_for(place, "drift", budget=300), place / "E")
    ((probe,),) = measured
    assert (len(probe.questions), probe.max_new_tokens) == (4, 8)


def test_general_answers_are_timed_where_other_questions_are_asked(place, monkeypatch):
    facts = Probe("facts", (shipped_questions.shipped("facts")[0],))
    monkeypatch.setattr(evaluate, "probes_for", lambda request: [facts])
    measured = []
    monkeypatch.setattr("staytrue.evals.generation.speed.measure", lambda local, probes, **k: measured.append(probes))
    with pytest.raises(AttributeError):
        evaluate.evaluate_model(request_for(place, "facts", "leak", budget=300), place / "E")
    assert [(probe.name, probe.max_new_tokens) for probe in measured[0]] == [("general", 8), ("facts", None)]


def test_a_budget_that_leaves_out_all_measures_in_two_stages_is_refused(place, monkeypatch):
    without = {"announce": lambda *a: None, "to_sample": lambda names: [], "left_out": ["drift", "pairs"]}
    monkeypatch.setattr(evaluate, "Measurement", lambda *a: SimpleNamespace(before_answers=list, **without))
    with pytest.raises(RequestError, match="budget is too short for these measures"):
        evaluate.evaluate_model(request_for(place, "pairs", "drift", budget=300), place / "E")


def test_the_untuned_model_itself_reads_its_answers_once(place, monkeypatch):
    # 4 answers of 58 tokens once, 0.01 s each, and 5.6 s of sampling them.
    lines, _ = announced(place, monkeypatch, names=("drift",), tuned=False)
    assert lines == ["Measures will take: drift about 8 s."]


def test_what_a_budget_leaves_out_is_stored_where_only_measures_are_taken(place, monkeypatch):
    without = SimpleNamespace(
        before_answers=list, announce=lambda *a: None, to_sample=lambda names: [], left_out=["drift"]
    )
    monkeypatch.setattr(evaluate, "Measurement", lambda *a: without)
    evaluate.evaluate_model(request_for(place, "pairs", "drift", budget=300), place / "E")
    budget = json.loads((place / "E" / "eval.json").read_text())["budget"]
    assert budget == {"seconds": 300, "left_out": "", "measures_left_out": ["drift"]}


def test_an_evaluation_that_goes_on_leaves_out_what_its_budget_left_out(place, monkeypatch):
    few = Probe("general", shipped_questions.shipped("general")[:3], None, 1, 1.0)
    monkeypatch.setattr(evaluate, "probes_for", lambda request: [few] if "general" in request.probes else [])
    monkeypatch.setattr(Forecast, "divide", lambda self, seconds=0.0: ({}, dict.fromkeys(self.alone, "no time.")))
    first = evaluate.evaluate_model(
        request_for(place, "general", "drift", "leak", budget=300, max_new_tokens=2), place / "E"
    )
    monkeypatch.setattr(loading, "load_model", None)  # nothing is timed or tried again
    again = evaluate.evaluate_model(
        request_for(place, "general", "drift", "leak", budget=300, max_new_tokens=2), place / "E"
    )
    assert again == first
    assert "measures" not in first


def test_measures_are_added_to_answers_that_a_budget_chose_although_the_model_is_slower_now(place, monkeypatch):
    few = Probe("general", shipped_questions.shipped("general")[:3], None, 1, 1.0)
    monkeypatch.setattr(evaluate, "probes_for", lambda request: [few])
    evaluate.evaluate_model(request_for(place, "general", budget=300, max_new_tokens=2), place / "E")
    monkeypatch.setattr(Speed, "seconds", lambda self, probes, limit: 301.0 if probes[0].max_new_tokens is None else 1)
    names = ("general", "drift")
    summary = evaluate.evaluate_model(request_for(place, *names, budget=300, max_new_tokens=2), place / "E")
    assert list(summary["measures"]) == ["drift"]


@pytest.mark.parametrize(("first", "then"), [(None, 300), (3600, None), (3600, 300)])
def test_measures_are_added_to_answers_whatever_the_budget_of_each(place, monkeypatch, first, then):
    few = Probe("general", shipped_questions.shipped("general")[:3], None, 1, 1.0)
    monkeypatch.setattr(evaluate, "probes_for", lambda request: [few] if "general" in request.probes else [])
    evaluate.evaluate_model(request_for(place, "general", budget=first, max_new_tokens=2), place / "E")
    before = json.loads((place / "E" / "eval.json").read_text())
    summary = evaluate.evaluate_model(request_for(place, "pairs", budget=then), place / "E")
    assert list(summary["measures"]) == ["pairs"]
    assert json.loads((place / "E" / "eval.json").read_text()) == before


def test_each_measure_shows_its_progress_to_the_end(place):
    shown, lines = Noted(), []
    evaluate.evaluate_model(request_for(place, "pairs", "drift", "leak"), place / "E", progress=shown, say=lines.append)
    # 300 answers of pairs and 4 untuned ones are read twice; 4 untuned answers and 4 of the adapter are sampled.
    assert [begun for begun in shown.begun if begun[0]] == [
        (600, "answer"),
        (4, "answer"),
        (8, "answer"),
        (4, "answer"),
    ]
    pairs_, untuned, drift, sampled = [steps for steps, begun in zip(shown.steps, shown.begun, strict=True) if begun[0]]
    for steps, total in ((pairs_, 600), (untuned, 4), (drift, 8), (sampled, 4)):
        assert steps[-1][0] == total
        assert [number for number, _ in steps] == sorted(number for number, _ in steps)
    assert 300 in [number for number, _ in pairs_]  # the half that is read with the adapter
    work = [done for _, done in untuned[:-1]]
    assert work == sorted(work)  # tokens, so that the time left is true before the first answer has ended
    assert 0 < work[0] < 4


def test_the_size_of_the_batch_reaches_the_answers_of_a_measure(place, monkeypatch):
    sizes = []
    make = LocalGenerator.__init__
    monkeypatch.setattr(
        LocalGenerator, "__init__", lambda self, *a, **k: sizes.append(k.get("batch_size")) or make(self, *a, **k)
    )
    evaluate.evaluate_model(request_for(place, "leak", batch_size=3), place / "E")
    assert set(sizes) == {3}
