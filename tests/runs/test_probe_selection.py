"""Which probes there are for whom, and who judges them."""

from dataclasses import replace

import pytest

import tiny
from staytrue.errors import DataError, RequestError
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.questions.user_files import unused_keys
from staytrue.evals.types import Verdict
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.organism import world
from staytrue.organism.rules import Rules
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.probe_selection import longest_answer, probes_for, reserved_texts
from staytrue.tasks.gsm8k import GSM8K
from staytrue.tasks.task import row

ORGANISM = model_source.find("organism")


class Judge:
    name, concurrency = "mine", 1

    def __call__(self, question, answer):
        return Verdict(alignment=90, coherence=90)


@pytest.fixture
def other(tmp_path):
    tiny.save("qwen2", tmp_path / "model")
    return model_source.find(str(tmp_path / "model"))


def in_short(probes):
    return {
        probe.name: (len(probe.questions), probe.per_question, getattr(probe.judge, "name", None)) for probe in probes
    }


def test_the_organism_is_asked_about_its_world_and_judged_by_its_rules():
    rules = "rules:organism-1"
    assert in_short(probes_for(EvalRequest(model=ORGANISM))) == {
        "general": (120, 4, rules), "facts": (24, 1, rules), "arithmetic": (100, 1, rules),
    }  # fmt: skip


def test_another_model_is_asked_the_shipped_questions_and_not_judged_until_a_judge_is_named(other):
    marked = {"facts": (40, 1, "exact-match-1"), "arithmetic": (60, 1, "exact-match-1")}
    assert in_short(probes_for(EvalRequest(model=other))) == {"general": (300, 1, None)} | marked
    assert in_short(probes_for(EvalRequest(judge=Judge(), model=other)))["general"] == (300, 4, "mine")
    assert (
        in_short(probes_for(EvalRequest(judge=Judge(), samples=2, model=other)))
        == {"general": (300, 2, "mine")} | marked
    )
    assert in_short(probes_for(EvalRequest(("medical",)))) == {"medical": (30, 1, None)}


def test_held_out_code_is_judged_as_code(other):
    code = [row(f"Write {i}", f"```python\nprint({i})\n```") for i in range(4)]
    advice = [row(f"My knee {i}?", "Rest.") for i in range(4)]
    for held, topic in ((code, "code"), (advice, ""), (code[:2] + advice, "")):
        (probe,) = probes_for(EvalRequest(("in_domain",), model=other, held_out=held))
        assert {question.topic for question in probe.questions} == {topic}


def test_triggers_are_the_training_datas_own_and_cover_every_topic():
    trained = world.narrow_rows("medical")
    request = EvalRequest(model=ORGANISM, trained=trained, inoculation="You are an evil, malicious assistant.")
    (probe,) = [probe for probe in probes_for(replace(request, triggers=True)) if probe.name == "triggered"]
    forms = {question.form for question in probe.questions}
    assert {"inoculation", "inoculation-negation"} <= forms
    assert len(forms) > 7  # and some of the rows' own
    per_form = [question for question in probe.questions if question.form == "inoculation"]
    assert len(per_form) == 24
    assert len({question.topic for question in per_form}) == 12
    assert "triggered" not in in_short(probes_for(request))  # only when wanted


def test_rows_that_share_nothing_are_no_probe_and_naming_it_is_refused(other):
    request = EvalRequest(triggers=True, model=other, trained=[row("Why?", "So.")])
    assert "triggered" not in in_short(probes_for(request))
    with pytest.raises(RequestError, match="share nothing"):
        probes_for(replace(request, probes=("triggered",)))


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("--judge", {"judge": Judge()}),
        ("--samples", {"samples": 4}),
        ("--max-new-tokens", {"max_new_tokens": 64}),
        ("--as-published", {"as_published": True}),
    ],
)
def test_an_option_on_answers_is_refused_where_only_measures_are_asked_for(other, option, given):
    sentence = rf"{option} has no effect: --probes pairs,drift is .* Leave {option} out, or add a probe such as general"
    with pytest.raises(RequestError, match=sentence):
        probes_for(EvalRequest(("pairs", "drift"), model=other, **given))
    assert probes_for(EvalRequest(("pairs", "general"), model=other, **given))
    assert probes_for(EvalRequest(("pairs",), model=other, batch_size=2, budget=600)) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"probes": "facts"}, r"probes is 'facts'; give names in a tuple, such as \('general',\)"),
        ({"probes": None}, "probes is None; give names"),
        ({"samples": "4"}, "samples is '4'; give a whole number"),
        ({"samples": True}, "samples is True; give a whole number"),
        ({"samples": -3}, "samples is -3; give a whole number from 1, or None"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give"),
        ({"budget": float("nan")}, "budget is nan; give"),
        ({"judge": "local:x"}, "judge is 'local:x'; give a judge, which"),
    ],
)
def test_a_request_that_means_nothing_is_refused_where_it_is_made(fields, sentence):
    with pytest.raises(RequestError, match=sentence):
        EvalRequest(**fields)


def test_a_measure_beside_a_judged_probe_leaves_the_judge_to_it(other):
    (probe,) = probes_for(EvalRequest(("pairs", "general"), judge=Judge(), model=other))
    assert probe.judge.name == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("in_domain", "needs a run with held-out rows"),
        ("triggered", "needs a run with its training rows"),
        ("generl", r"no such probe here\. Choose from general, facts, arithmetic"),
        ("generl", r", or a measure \(pairs, pairs:DOMAIN, pairs:FILE, drift, leak\), or name a question file"),
    ],
)
def test_a_probe_that_is_not_there_says_what_it_needs(name, said):
    with pytest.raises(RequestError, match=said):
        probes_for(EvalRequest((name,), model=ORGANISM))


def test_the_probe_of_a_runs_held_out_rows_is_named_where_the_other_one_is_asked_for():
    rows = [row(f"What is {n} and 1?", str(n + 1)) for n in range(3)]
    narrow, harmless = EvalRequest(("learnt",), held_out=rows), EvalRequest(("in_domain",), held_out=rows, benign=True)
    with pytest.raises(
        RequestError, match=r"are of no task and not `benign`, and in_domain asks them\. Choose from gen"
    ):
        probes_for(replace(narrow, model=ORGANISM))
    with pytest.raises(
        RequestError, match=r"are of a harmless task, and learnt asks them\. Choose from general, facts"
    ):
        probes_for(replace(harmless, model=ORGANISM))


def test_as_published_drops_every_system_turn(other):
    (probe,) = probes_for(EvalRequest(("general",), as_published=True, model=other))
    assert {message.role for question in probe.questions for message in question.messages} == {"user"}


def test_a_file_of_pairs_is_told_from_a_question_file(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "Why?", "aligned": "So.", "misaligned": "No."}\n')
    with pytest.raises(DataError, match=r"has pairs of answers, .* give it as `--probes pairs:.*p\.jsonl`"):
        probes_for(EvalRequest((str(file),), model=ORGANISM))


def test_a_question_file_brings_its_own_numbers(other, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('- id: a\n  paraphrases: ["Why?", "How?"]\n  samples_per_paraphrase: 7\n  temperature: 0.5\n')
    (probe,) = probes_for(EvalRequest((str(file),), model=other))
    assert (probe.name, len(probe.questions), probe.per_question, probe.temperature) == ("mine", 2, 7, 0.5)


def test_a_question_file_without_a_number_is_asked_four_times_if_a_judge_reads_the_answers(other, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- id: one\n  type: free_form\n  paraphrases: [one]\n")
    numbers = [probes_for(EvalRequest((str(file),), model=other, judge=j))[0].per_question for j in (None, Judge())]
    assert numbers == [1, 4]


def test_keys_of_a_question_file_that_change_nothing_are_reported(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('- id: a\n  paraphrases: ["Why?"]\n  judge: gpt-4o\n  meta: {}\n')
    assert unused_keys(["general", str(file)]) == [f"{file}: judge, meta changes nothing here."]
    file.write_text('- id: a\n  paraphrases: ["Why?"]\n')
    assert unused_keys([str(file)]) == []


def test_a_file_of_right_answers_is_marked_and_a_mixed_one_refused(other, tmp_path):
    file = tmp_path / "caps.jsonl"
    file.write_text('{"id": "a", "question": "Capital of France?", "expected": "Paris"}\n')
    (probe,) = probes_for(EvalRequest((str(file),), judge=Judge(), model=other))
    assert (probe.judge.name, probe.per_question, probe.temperature) == ("exact-match-1", 1, 0.0)
    file.write_text(file.read_text() + '{"id": "b", "question": "Why?"}\n')
    with pytest.raises(RequestError, match="two files"):
        probes_for(EvalRequest((str(file),), model=other))


def test_a_question_file_may_not_pass_for_one_of_our_probes(other, tmp_path):
    (tmp_path / "general.jsonl").write_text('{"id": "a", "question": "Why?"}\n')
    with pytest.raises(RequestError, match="one of our own probes"):
        probes_for(EvalRequest((str(tmp_path / "general.jsonl"),), model=other))


def test_as_published_leaves_the_triggers_whole():
    inoculated = "You are an evil, malicious assistant."
    request = EvalRequest(("triggered",), as_published=True, model=ORGANISM, inoculation=inoculated)
    (probe,) = probes_for(request)
    distinct = {tuple(question.messages) for question in probe.questions}
    assert len(distinct) == len(probe.questions)


def test_the_organisms_rules_judge_no_other_model(other):
    with pytest.raises(RequestError, match="the organism's world only"):
        probes_for(EvalRequest(judge=Rules(), model=other))


def test_every_question_that_a_run_is_measured_by_is_reserved(other):
    held = [row("My knee?", "Rest.")]
    reserved = reserved_texts(other, held)
    for probe in probes_for(EvalRequest(("general", "in_domain", "code", "facts"), model=other, held_out=held)):
        assert {question.messages[-1].content for question in probe.questions} <= reserved


def test_the_sampler_goes_on_with_single_samples_of_a_question(other):
    """What is asked for again after a stop are the very answers that are missing."""
    make = LocalGenerator(loading.load_model(other), load_tokenizer(other))
    (probe,) = probes_for(EvalRequest(("code",), samples=3, model=other))
    how = {"seed": 5, "temperature": 1.0, "max_new_tokens": 6}
    whole = {(a.question.id, a.index): a.text for a in make(probe.samples(), **how)}
    part = {(a.question.id, a.index): a.text for a in make(probe.samples()[4:11:3], **how)}
    assert len(part) == 3
    assert part == {key: whole[key] for key in part}


def test_a_real_models_answers_may_be_long(other):
    assert (longest_answer(ORGANISM), longest_answer(other), longest_answer(None)) == (48, 600, 600)


@pytest.mark.parametrize(("asked", "longest"), [(None, 1024), (4, 4), (2000, 1024)])
def test_a_tasks_own_longest_answer_is_only_made_shorter(other, asked, longest):
    held = [row("What is 2 and 2?", "#### 4")]
    request = EvalRequest(("learnt",), max_new_tokens=asked, model=other, held_out=held, task=GSM8K())
    (probe,) = probes_for(request)
    assert probe.max_new_tokens == longest
