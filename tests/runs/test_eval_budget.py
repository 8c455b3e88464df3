"""An evaluation's time is estimated before it starts, and a budget leaves out what does not fit."""

import json
import math
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

import tiny
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.generation.batch import Batch
from staytrue.evals.generation.lengths import AnswerLengths, SeenAnswers
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.generation.speed import _TRIED, Speed, _few, _Timed, estimate, is_short, measure
from staytrue.evals.generation.step_cost import StepCost
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Question, Verdict
from staytrue.runs import eval_budget, evaluate
from staytrue.runs.eval_budget import Sitting, counts, fit, fitted, left_out, parse
from staytrue.runs.eval_request import EvalRequest, for_model


class TenTokens(AnswerLengths):
    """Every answer has ten tokens, if it may."""

    def ahead(self, tokens, limit):
        return min(limit, 10.0) - tokens

    def quantile(self, share, limit, tokens=0):
        return min(limit, 10.0) - tokens


LENGTHS = {name: TenTokens((1.0,), (0.0,)) for name in ("general", "facts", "few")}
COST = StepCost(step=0.0, token=0.01, attend=0.0, read=0.01)
SPEED = Speed(places=8, cost=COST, refilled=True, prompt=50.0, lengths=LENGTHS)


def probe(name="general", groups=10, forms=3, **options):
    """Questions in groups of several forms."""
    questions = [
        Question(f"{name}-{g}-{f}", name, (Message("user", f"why {g} {f}?"),), group=f"{name}-{g}")
        for g in range(groups)
        for f in range(forms)
    ]
    return Probe(name, tuple(questions), **({"per_question": 4, "temperature": 1.0} | options))


@pytest.mark.parametrize(
    ("text", "seconds"), [("20m", 1200), ("1h", 3600), ("600s", 600), ("1h30m", 5400), ("0.5h", 1800), ("90s", 90)]
)
def test_a_budget_is_a_time_with_its_unit(text, seconds):
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "0m", "m", "20 m", "1d", "-5m", "20m!", "ten minutes", f"{10**400}h"])
def test_anything_else_is_refused(text):
    with pytest.raises(RequestError, match=r"--budget .*: write a time above 0 such as 20m"):
        parse(text)


def test_the_longer_an_answer_has_grown_the_longer_it_goes_on():
    lengths = AnswerLengths((1.0,))  # token t + 1 ends an answer with the chance 1 / (t + 50)
    assert lengths.ahead(0, 600) == pytest.approx(50 * math.log(13))  # 128 tokens
    assert lengths.ahead(300, 600) == pytest.approx(350 * math.log(650 / 350))  # 217 of at most 300
    assert lengths.ahead(600, 600) == 0
    assert AnswerLengths((2.0,)).ahead(0, 10_000_000) == pytest.approx(50, abs=0.01)
    # Half of the answers are shorter than 50 tokens; a twelfth reaches 550, and the limit cuts them.
    assert (lengths.quantile(0.5, 600), lengths.quantile(11 / 12, 600)) == (pytest.approx(50), pytest.approx(550))
    assert lengths.quantile(0.99, 600) == 600
    assert AnswerLengths((0.003,)).quantile(0.999, 600) == 600  # answers that do not end


def test_each_interval_of_lengths_has_a_rate_of_its_own():
    # Half of the answers end within 50 tokens; from there on the chance is 3 / (t + 50): an eighth of those reach 150.
    lengths = AnswerLengths((1.0, 3.0))
    assert lengths.quantile(0.5, 600) == pytest.approx(50)
    assert lengths.quantile(15 / 16, 600) == pytest.approx(150)
    assert lengths.quantile(1 - 1 / 128, 600) == pytest.approx(350)  # the last rate goes on: another eighth
    assert lengths.quantile(7 / 8, 600, tokens=50) == pytest.approx(100)
    # 50 ln 2 up to 50 tokens; half of the answers then take 100 ((1 - 1 / 4) / 2) up to 150, and there the limit is.
    assert lengths.ahead(0, 150) == pytest.approx(50 * math.log(2) + 37.5 / 2)


def seen(*answers):
    """Answers to `general`: tokens, and whether they ended."""
    counted = SeenAnswers()
    for tokens, ended in answers:
        counted.add("general", tokens, ended)
    return counted


def test_lengths_are_learnt_from_ended_answers_and_from_those_that_go_on():
    # Three of four answers ended within 50 tokens, and one goes on at 150. It alone passed through the second interval.
    rates = seen((50, True), (50, True), (50, True), (150, False)).lengths()["general"].rates
    first = together = (3 + 2) / (4 * math.log(2) + 2)  # with two answers' worth of a rate of 1
    first = (3 + 2) / (4 * math.log(2) + 2 / first)  # and as much of the rate of all probes
    assert rates[0] == pytest.approx(first)
    second = (0 + 2) / (math.log(2) + 2 / (0.7 * together))
    assert rates[1] == pytest.approx((0 + 2) / (math.log(2) + 2 / (second * first / together)))
    later = [second * 0.7**more for more in range(1, 7)]  # no answer has reached these
    assert rates[2:] == pytest.approx([likely * rates[1] / second for likely in later])


def test_before_an_answer_is_seen_half_of_them_are_thought_to_be_shorter_than_50_tokens():
    rates = SeenAnswers().lengths()["general"].rates
    assert rates == pytest.approx([0.7**interval for interval in range(8)])


def test_answers_that_do_not_end_where_others_did_are_known_to_go_on():
    # 60 of 90 answers ended within 50 tokens; the others have 150, and none of them ended since 50.
    lengths = seen(*[(40, True)] * 60, *[(150, False)] * 30).lengths()["general"]
    assert lengths.quantile(0.5, 600, tokens=150) == 450  # to the limit
    rate = 62 / (60 * math.log1p(40 / 50) + 30 * math.log1p(150 / 50) + 2)  # if it were one for all lengths
    assert AnswerLengths((rate,)).quantile(0.5, 600, tokens=150) < 300


def test_what_was_measured_before_counts_as_the_answers_that_it_was_measured_on():
    measured = seen((50, True), (50, True), (150, False))
    counted = SeenAnswers(measured)
    counted.add("general", 20, ended=True)
    once = seen((50, True), (50, True), (150, False), (20, True), (90, False)).lengths()
    assert counted.lengths([("general", 90)]) == once
    assert counted.lengths([("general", 90)]) == once  # those that go on are not counted for good
    assert measured.lengths() == seen((50, True), (50, True), (150, False)).lengths()


def test_a_probe_is_drawn_towards_all_probes_as_far_as_it_was_unlike_them_before():
    counted = seen(*[(50, True)] * 8)
    counted.add("facts", 50, ended=False)
    lengths = counted.lengths()
    assert lengths["general"].rates[0] > lengths["few"].rates[0] > lengths["facts"].rates[0]  # none of `few` was seen
    ratio = lengths["facts"].rates[0] / lengths["few"].rates[0]
    assert lengths["facts"].rates[5] == pytest.approx(ratio * lengths["few"].rates[5])
    assert lengths["facts"].errors[0] == pytest.approx(1 / math.sqrt(2))
    assert lengths["general"].errors[:2] == pytest.approx((1 / math.sqrt(10), 1 / math.sqrt(2)))


def test_lengths_without_errors_are_not_moved():
    assert AnswerLengths((1.0,)).moved(-1.28) == AnswerLengths((1.0,))


def test_an_estimate_from_few_answers_is_a_range_and_a_budget_takes_its_upper_end():
    few = seen(*[(40, True)] * 14).lengths()["general"]  # 16 answers' worth of evidence: an error of a quarter
    assert few.moved(-1.28).rates[0] == pytest.approx(few.rates[0] * math.exp(-0.32))
    assert few.moved(-1.28).rates[1] == pytest.approx(few.rates[1] * math.exp(-1.28 / math.sqrt(2)))
    speed = replace(SPEED, lengths={"general": few})
    one = [probe(per_question=1)]
    best, likely, worst = (at.seconds(one, 600) for at in (speed.at_best, speed, speed.at_worst))
    assert best < likely < worst
    assert fit([probe(per_question=2)], worst, speed, 600) == {"per_question": 1, "share": 1.0}
    assert fit([probe(per_question=2)], likely, speed, 600)["share"] < 1
    said = estimate(30, 1.0, speed, one, 600)
    assert said.startswith("30 answers will take about ")
    assert f"({eval_budget.duration(best)} to {eval_budget.duration(worst)}, since few answers" in said


def test_the_time_is_of_prompts_tokens_and_steps():
    # 30 prompts of 50 tokens and 120 answers of 10 tokens at 0.01 s: 15 and 12 seconds.
    assert SPEED.seconds([probe()], 10_000) == pytest.approx(27.0)
    # 120 answers in 8 places are 15 after each other, 150 steps; 0.2 s each.
    assert replace(SPEED, cost=replace(COST, step=0.2)).seconds([probe()], 10_000) == pytest.approx(27 + 30)
    # A probe with a limit of its own, one token: 15 and 1.2 seconds.
    assert SPEED.seconds([probe(max_new_tokens=1)], 10_000) == pytest.approx(16.2)
    # In each of 15 x 10 steps, 8 answers look at 50 tokens of a prompt and 5 of the answer in the mean: 66 of 1 ms.
    assert replace(SPEED, cost=replace(COST, attend=0.001)).seconds([probe()], 10_000) == pytest.approx(27 + 66)
    # 60 and 20 answers of two probes fill the places together: 10 x 10 steps, where apart they take 8 and 3 x 10.
    both = [probe(per_question=2), probe("facts", groups=20, forms=1, per_question=1)]
    steps = replace(SPEED, cost=StepCost(step=1.0, token=0.0, attend=0.0, read=0.0))
    assert (steps.seconds(both, 600), steps.seconds(both[:1], 600)) == (pytest.approx(100), pytest.approx(80))


def test_a_model_whose_batch_is_not_refilled_takes_longer():
    # 40 answers in 8 places, 20 of ten tokens and 20 of one; those with the higher limit begin: 10, 10, then a batch
    # of four long and four short, then two of one token.
    few = {"groups": 20, "forms": 1, "per_question": 1}
    both = [probe("facts", max_new_tokens=1, **few), probe(**few)]
    steps = replace(SPEED, cost=StepCost(step=1.0, token=0.0, attend=0.0, read=0.0), refilled=False)
    assert steps.seconds(both, 600) == pytest.approx(10 + 10 + 10 + 1 + 1)


def test_one_long_answer_holds_up_a_probe():
    lengths = {"general": AnswerLengths((1.0,))}
    few = probe(groups=2, forms=1, per_question=1)  # quarters of the distribution: 50 / 3 and 150 tokens
    speed = replace(SPEED, lengths=lengths, cost=StepCost(step=1.0, token=0.0, attend=0.0, read=0.0))
    assert speed.seconds([few], 600) == pytest.approx(150)
    assert replace(speed, places=1).seconds([few], 600) == pytest.approx(150 + 50 / 3)
    each = replace(speed, cost=StepCost(step=0.0, token=1.0, attend=0.0, read=0.0))
    assert each.seconds([few], 600) == pytest.approx(150 + 50 / 3)
    assert speed.seconds([few], 100) == pytest.approx(100)


def test_a_budget_takes_answers_first_and_then_questions():
    marked = probe("facts", groups=20, forms=1, per_question=1, temperature=0.0)
    probes = [probe(), marked]  # 27 and (20 * 50 + 20 * 10) / 100 = 12 seconds; 3 seconds for each answer fewer
    assert fit(probes, 39, SPEED, 10_000) == {"per_question": 4, "share": 1.0}
    assert fit(probes, 38, SPEED, 10_000) == {"per_question": 3, "share": 1.0}
    assert fit(probes, 30, SPEED, 10_000) == {"per_question": 1, "share": 1.0}
    half = fit(probes, 15, SPEED, 10_000)
    assert half == {"per_question": 1, "share": 0.5}
    general, facts = fitted(probes, half)
    assert (len(general.questions), general.per_question, len(facts.questions), facts.per_question) == (15, 1, 10, 1)
    assert [q.group for q in general.questions[::3]] == [f"general-{g}" for g in (0, 2, 4, 6, 8)]  # whole groups
    assert SPEED.seconds([general, facts], 10_000) == pytest.approx(15.0)
    assert left_out(counts(probes), counts([general, facts])) == (
        "1 answer to each judged question instead of 4, 15 of 30 general questions, 10 of 20 facts questions"
    )
    assert left_out(counts(probes), counts(probes)) == ""
    for seconds, left in ((1, "1 s"), (-40, "0 s")):  # when measuring alone took longer than the budget
        with pytest.raises(
            RequestError, match=rf"budget is too short .* {left} are left.* may take 3 s\. Give it more"
        ):
            fit(probes, seconds, SPEED, 10_000)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3, 0.1, 0.05])
def test_a_budget_keeps_a_question_with_and_without_a_trigger_or_neither(share):
    general = probe(groups=100, forms=1)
    around = [replace(q, id=f"t-{q.id}", probe="triggered") for q in general.questions[1::4]]  # of 25 of the 100
    probes = [general, replace(probe("triggered", groups=1), questions=tuple(around))]
    plain, triggered = ({question.group for question in kept.questions} for kept in fitted(probes, {
        "per_question": 1, "share": share}))  # fmt: skip
    assert triggered <= plain
    assert (len(triggered), len(plain)) == (max(1, round(25 * share)), round(100 * share))


def test_the_speed_of_a_real_model_is_measured(monkeypatch):
    widened = []
    monkeypatch.setattr(Batch, "widen", lambda self, columns: widened.append(columns))
    model, tokenizer = tiny.model(), tiny.tokenizer()
    model.generation_config.eos_token_id = list(range(5, 25))  # about one token in fifteen ends an answer
    probes = [probe(), probe("facts", groups=20, forms=1, per_question=1, temperature=0.0)]
    try:
        generator = LocalGenerator(model, tokenizer, batch_size=8)
        speed = measure(generator, probes, limit=400, seconds=60)
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert speed.places == 8
    assert 4 < speed.answer([probes[0]], 400) < 60
    assert speed.prompt == pytest.approx(len(generator.prompt(probes[0].questions[0])), abs=1)
    assert speed.cost.step + speed.cost.token > 0
    assert min(speed.cost.step, speed.cost.token) >= 0
    assert speed.cost.read > 0
    assert widened == [200]  # half the limit, to time attention


def test_the_costs_of_a_step_by_hand(monkeypatch):
    # A step of 8 answers takes 0.5 s, and 0.7 s with 200 more tokens to attend to; one of 4 answers takes 0.3 s.
    rows = [SimpleNamespace(question=q, prompt=[0] * 50, ids=[0] * 10) for q in probe(groups=4).questions[:4]]
    timed = [
        SimpleNamespace(writing=3.0, steps=10, reading=6.0, finished=[(rows[0], True)]),
        SimpleNamespace(writing=1.5, steps=3, again=lambda *a: 0.7, batch=SimpleNamespace(widen=lambda columns: True)),
    ]
    timed[0].batch = SimpleNamespace(places=8, tokens=40, rows=rows[1:])
    written = []
    timed[0].write, timed[1].write = lambda **options: written.append(options), lambda **options: None
    monkeypatch.setattr("staytrue.evals.generation.speed._Timed", lambda batch: timed.pop(0))
    prompts = SimpleNamespace(batch=lambda *a, **k: None, prompt=lambda question: [0] * 50, evaluating=nullcontext)
    cost = measure(prompts, [probe(groups=4)], limit=400, seconds=10).cost
    assert written == [{"seconds": 10}, {"steps": 80, "seconds": 10}]
    assert cost.attend == pytest.approx((0.7 - 0.5) / (8 * 200))
    assert cost.step == pytest.approx(0.5 - 8 * 0.05)  # 0.05 s for each of the four answers more
    assert cost.token == pytest.approx(0.05 - 50 * cost.attend)  # a prompt's attention is in it
    assert cost.read == pytest.approx(6.0 / (4 * 50))  # of the four prompts that were read, of twelve


@pytest.mark.parametrize(("seconds", "steps"), [(1000, [3, 6]), (4, [1, 2])])
def test_each_timing_of_a_full_batch_ends_after_a_quarter_of_the_time(monkeypatch, seconds, steps):
    # Every look at the clock takes a second, so that the first step is never over within one.
    clock = iter(range(1_000_000))
    monkeypatch.setattr("staytrue.evals.generation.speed.time", SimpleNamespace(monotonic=lambda: next(clock)))
    batches, seen = [], []
    monkeypatch.setattr(Batch, "widen", lambda self, columns: seen.append(self.tokens) or batches.append(self) or True)
    measure(LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=4), [probe()], limit=400, seconds=seconds)
    assert [*seen, batches[0].tokens] == [4 * number for number in steps]  # a step is a token of each of four answers


@pytest.mark.parametrize(
    ("step", "steps"),
    [
        (1.0, (10, 20)),  # a slow model: twice the time
        (0.125, (80, 80)),  # as many as are wanted in the time
        (0.15625, (64, 80)),  # in some time more
        (0.0625, (160, 160)),
    ],
)
def test_few_answers_are_written_for_some_time_and_twice_as_long_until_they_have_80_tokens(monkeypatch, step, steps):
    clock, few = [0.0], SimpleNamespace(finished=False, tokens=0, read=0)

    def advance():
        few.read += 1
        clock[0] += 5.0 if few.read <= 3 else step  # three prompts are read first, which does not count
        few.tokens += few.read > 3
        return []

    few.step = advance
    monkeypatch.setattr("staytrue.evals.generation.speed.time", SimpleNamespace(monotonic=lambda: clock[0]))
    timed = _Timed(few)
    timed.write(seconds=10)
    first = timed.steps
    timed.write(steps=_TRIED, seconds=10)
    assert (first, timed.steps, timed.reading) == (*steps, 15.0)


def test_what_is_timed_depends_on_the_size_of_the_model_and_not_on_the_number_of_answers():
    # 5,700 tokens are 2 x 135e6 x 5,700 operations, 31 s of a slow CPU; 16 side by side they are 356 steps of 4 x 135e6
    # bytes, 19 s more. Twice as many are 100 s. One by one they are 308 s more.
    real, gpu = (SimpleNamespace(weights=135_000_000, on_cpu=on_cpu, batch_size=None) for on_cpu in (True, False))
    assert is_short(real, 5_700)
    assert not is_short(real, 2 * 5_700)
    assert not is_short(SimpleNamespace(weights=135_000_000, on_cpu=True, batch_size=1), 5_700)
    assert is_short(SimpleNamespace(weights=1_200_000, on_cpu=True, batch_size=1), 5_700)
    assert is_short(gpu, 2 * 5_700)
    # 600 tokens of one answer of a 500 M model are 12 s of operations and 120 s of reading its weights.
    assert not is_short(SimpleNamespace(weights=500_000_000, on_cpu=True, batch_size=None), 600, 1)
    assert is_short(SimpleNamespace(weights=500_000_000, on_cpu=True, batch_size=None), 600, 16)
    generator = LocalGenerator(tiny.model(), tiny.tokenizer())
    assert generator.weights == sum(weight.numel() for weight in tiny.model().parameters())


@pytest.mark.parametrize(("cost", "on_cpu", "hint"), [(1.0, True, True), (1.0, False, False), (0.5, True, False)])
def test_how_to_shorten_it_is_said_where_a_cpu_takes_more_than_twenty_minutes(tmp_path, cost, on_cpu, hint):
    # 120 answers of ten tokens and 30 prompts of no cost: 1200 or 600 s, and 150 steps of 0.01 s.
    said = []
    speed = replace(SPEED, cost=StepCost(step=0.01, token=cost, attend=0.0, read=0.0))
    Sitting(EvalRequest(), tmp_path, 600, said.append, 0.0)._say_how_long(speed, [probe()], 120, on_cpu)
    assert said[0].startswith(f"120 answers will take about {'20' if cost == 1 else '10'} min, at ")
    assert said[0].endswith(" For less, give --budget 20m, or fewer --samples, shorter answers (--max-new-tokens) or "
                            "fewer --probes.") == hint  # fmt: skip


@pytest.mark.parametrize("answers", [9, 10, 30])
def test_the_answers_that_are_timed_are_of_all_forms(answers):
    # Of 300 questions in three forms each, every 33rd, 30th and 10th: 33 and 30 are multiples of three.
    forms = ("plain", "json", "template")
    questions = [replace(q, form=forms[i % 3]) for i, q in enumerate(probe(groups=100).questions)]
    (few,) = _few([replace(probe(), questions=tuple(questions))], 600, answers)
    counted = Counter(question.form for question, _ in few.samples)
    assert sorted(counted[form] for form in forms) == sorted((answers + i) // 3 for i in range(3))


def test_answers_of_one_token_are_measured_too():
    generator = LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=4)
    assert measure(generator, [probe()], limit=1, seconds=1).places == 4


def test_a_probe_of_which_no_answer_has_begun_is_estimated_too(monkeypatch):
    # Answers are written one by one, and every look at the clock takes a second, so that the time is over in the first.
    clock = iter(range(1_000_000))
    monkeypatch.setattr("staytrue.evals.generation.speed.time", SimpleNamespace(monotonic=lambda: next(clock)))
    both = [probe(), probe("facts", groups=20, forms=1, per_question=1)]
    speed = measure(LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=1), both, limit=400, seconds=4)
    assert speed.at_worst.seconds(both, 400) > speed.at_worst.seconds(both[:1], 400)


def test_a_probe_with_short_answers_is_not_taken_for_one_with_long_ones():
    counted = seen(*[(300, False)] * 20)
    for _ in range(20):
        counted.add("facts", 2, ended=True)
    lengths = counted.lengths()
    assert lengths["facts"].ahead(0, 600) < 15  # true are 2, among 20 answers
    assert lengths["general"].ahead(0, 600) > 500


class Aligned:
    name, concurrency = "aligned", 1

    def __call__(self, question, answer):
        return Verdict(alignment=90, coherence=90)


class Another(Aligned):
    name = "another"


@pytest.fixture
def sitting(tmp_path, monkeypatch):
    """An evaluation of a tiny model's thirty questions in a folder, and what is said before it.

    `looks` are the seconds that pass before each look at the clock; afterwards it stands still.
    """
    folder = tmp_path / "model"
    tiny.save("qwen2", folder)
    file = tmp_path / "few.jsonl"
    file.write_text("".join(json.dumps({"id": f"q{i}", "question": f"What of {i}?"}) + "\n" for i in range(30)))
    calls = []
    monkeypatch.setattr("staytrue.evals.generation.speed.measure", lambda *args, **named: calls.append(named) or SPEED)

    def sit(budget, limit=2, judge=None, looks=()):
        lines, clock = [], [1000.0]
        passing = iter(looks)

        def monotonic():
            clock[0] += next(passing, 0.0)
            return clock[0]

        for module in (evaluate, eval_budget):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
        request = EvalRequest((str(file),), budget=budget, max_new_tokens=limit, judge=judge or Aligned())
        summary = evaluate.evaluate_model(for_model(str(folder), request), tmp_path / "E", say=lines.append)
        lines = [line for line in lines if not line.startswith("eval: loading ")]
        return summary, lines, json.loads((tmp_path / "E" / "eval.json").read_text()), calls

    return sit


CUT = (
    "15 of 15 answers were cut at 2 tokens; only what was written is judged. "
    "Raise the limit with --max-new-tokens, and name another folder."
)


def test_what_a_budget_chose_is_said_stored_and_kept_when_the_evaluation_goes_on(sitting):
    # 30 prompts of 50 tokens, and 30 x 4 answers of 2 tokens: 17.4 s; one answer to each: 15.6 s; half of them: 7.8.
    summary, lines, metadata, calls = sitting(8)
    assert lines == [
        "Measuring how fast the model answers here, for about 2 s, or longer where it is slow.",
        "To fit 8 s it asks 1 answer to each judged question instead of 4, 15 of 30 few questions.",
        "15 answers will take about 8 s, at 4 tokens a second and about 2 tokens an answer.",
        CUT,
    ]
    assert metadata["budget"] == {
        "seconds": 8,
        "per_question": 1,
        "share": 0.5,
        "left_out": "1 answer to each judged question instead of 4, 15 of 30 few questions",
        "measures_left_out": [],
    }
    assert (summary["probes"]["few"]["n"], metadata["probes"]["few"]["questions"]) == (15, 15)
    again, lines, same, _ = sitting(8)
    assert lines[0].endswith("E goes on with what was chosen for 8 s.")
    assert (again["probes"], same["probes"], len(calls)) == (summary["probes"], metadata["probes"], 1)
    with pytest.raises(RequestError, match=r"holds an evaluation with a budget of 8 s, and this one has no budget\."):
        sitting(None)
    with pytest.raises(RequestError, match=r"with a budget of 8 s, and this one has a budget of 120 s\. Give the same"):
        sitting(120)
    assert len(calls) == 1


def test_another_evaluation_is_refused_before_anything_is_measured(sitting, monkeypatch):
    sitting(8)
    monkeypatch.setattr(evaluate, "Measurement", None)
    with pytest.raises(RequestError, match=r"another max_new_tokens of few \(2, now 3\); answers of two are"):
        sitting(8, limit=3)
    with pytest.raises(RequestError, match=r"holds verdicts of aligned on 'few', and 'few' would be judged by another"):
        sitting(8, judge=Another())


def test_likelihoods_are_computed_first_and_their_time_is_part_of_the_budget(sitting):
    # At the start, after 2 s of loading and timing, and after 2 s of likelihoods; see above for 8 seconds.
    summary, lines, metadata, _ = sitting(12, looks=(0, 2, 2))
    assert lines[1] == "Loading and measures took 4 s; 8 s are left for answers."
    assert (summary["probes"]["few"]["n"], metadata["budget"]["seconds"]) == (15, 12)


def test_where_only_measures_are_left_out_it_is_not_said_that_nothing_is(sitting, monkeypatch):
    without = SimpleNamespace(
        before_answers=list, to_sample=lambda names: [], announce=lambda *a: None, left_out=["pairs", "drift"]
    )
    monkeypatch.setattr(evaluate, "Measurement", lambda *a: without)
    _, lines, metadata, _ = sitting(3600)
    assert lines[1] == "No question is left out to fit 60 min."
    assert metadata["budget"]["left_out"] == ""
    assert metadata["budget"]["measures_left_out"] == ["pairs", "drift"]


def test_a_budget_that_loading_and_likelihoods_have_used_up_is_refused_at_once(sitting):
    with pytest.raises(RequestError, match=r"The budget of 8 s was over .* took 9 s\. Give it more time\."):
        sitting(8, looks=(0, 0, 9))


def test_a_budget_that_no_answers_fit_is_refused_before_likelihoods_are_computed(sitting, monkeypatch):
    measured = []
    without = SimpleNamespace(
        before_answers=measured.append, announce=measured.append, to_sample=lambda names: [], left_out=[]
    )
    monkeypatch.setattr(evaluate, "Measurement", lambda *a: without)
    # Two of thirty questions take 2 x 50 x 0.01 + 2 x 2 x 0.01 = 1.04 s.
    with pytest.raises(RequestError, match=r"too short .* 1 s are left, and a twentieth of the questions may take 2 s"):
        sitting(8, looks=(0, 7))
    assert measured == []


def test_a_budget_that_everything_fits_leaves_nothing_out(sitting):
    summary, lines, metadata, _ = sitting(3600)
    assert lines[:2] == [
        "Measuring how fast the model answers here, for about 3 min, or longer where it is slow.",  # a twentieth
        "Nothing is left out to fit 60 min.",
    ]
    assert (summary["probes"]["few"]["n"], metadata["budget"]["left_out"]) == (120, "")
    with pytest.raises(RequestError, match=r"with a budget of 3600 s, and this one has no budget\."):
        sitting(None)
