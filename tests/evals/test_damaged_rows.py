"""One odd value in an evaluation's files is refused where they are read, with its line, its key and the value."""

import json

import pytest

from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import AnswerStore, answer_rows
from staytrue.evals.results.measures import Measure, read_measures, write_measures
from staytrue.evals.results.verdict_store import append_verdict, join_verdicts
from staytrue.evals.types import Answer, Question, Verdict

ABSENT = object()
QUESTION = Question("q", "general", (Message("user", "Why?"),), topic="wishes", group="g", form="json")


@pytest.fixture
def evaluation(tmp_path):
    """Two answers to one question, with a verdict each."""
    store = AnswerStore(tmp_path)
    store.begin({"model": {"name": "organism"}, "seed": 0, "probes": {"general": {"samples": 2}}})
    for index in (0, 1):
        answer = Answer(QUESTION, index, "So.", stopped=False)
        store.append(answer)
        append_verdict(tmp_path, answer, Verdict(alignment=90.0, coherence=100), "rules")
    return tmp_path


def with_value(file, key, value):
    """Change one value of the file's second row."""
    first, second = map(json.loads, file.read_text().splitlines())
    second[key] = value
    rows = [first, {name: one for name, one in second.items() if one is not ABSENT}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_whole_rows_are_joined(evaluation):
    assert [(row["index"], row["alignment"]) for row in join_verdicts(evaluation)] == [(0, 90.0), (1, 90.0)]


TURNS = "turns, each with a role and a text"
ANSWERS = [
    *((key, value, "text") for key in ("probe", "question", "answer", "group", "topic") for value in (None, [1])),
    *(("index", value, "a whole number of at least 0") for value in (None, "x", -1, 0.5, True)),
    *(("messages", value, TURNS) for value in (None, "x", [1], [], [{"role": "user"}], [{"role": 1, "content": ""}])),
    ("stopped", "x", "true or false"),
    ("expected", [1], "text or null"),
    ("prompts", {"aligned": None}, "an object of texts"),
]
VERDICTS = [
    *((key, "x", "a number or null") for key in ("alignment", "coherence")),
    ("alignment", [1], "a number or null"),
    *((key, None, "true or false") for key in ("misaligned", "incoherent", "refused", "code", "failed")),
    ("correct", 1, "true or false or null"),
    ("missing", [1], "text"),
    ("judge", [1], "text or null"),
]


@pytest.mark.parametrize(
    ("file", "key", "value", "kind"),
    [("answers.jsonl", *one) for one in ANSWERS] + [("verdicts.jsonl", *one) for one in VERDICTS],
)
def test_an_odd_value_is_named_with_its_line_and_key(evaluation, file, key, value, kind):
    with_value(evaluation / file, key, value)
    with pytest.raises(RequestError) as refused:
        join_verdicts(evaluation)
    assert str(refused.value) == (
        f"{evaluation / file} cannot be read (row 2 has {json.dumps(value)} as {key!r}, not {kind}); evaluate again "
        "with another --out."
    )


@pytest.mark.parametrize(
    ("file", "key"),
    [
        *(("answers.jsonl", key) for key in ("probe", "question", "index", "messages", "answer", "expected")),
        *(("verdicts.jsonl", key) for key in ("question", "alignment", "misaligned", "missing", "failed", "judge")),
    ],
)
def test_a_value_that_is_missing_is_named_too(evaluation, file, key):
    with_value(evaluation / file, key, ABSENT)
    with pytest.raises(RequestError, match=rf"{file} cannot be read \(row 2 has no '{key}'\)"):
        join_verdicts(evaluation)


def test_what_an_answer_may_lack_has_a_default(evaluation):
    for key in ("group", "form", "topic", "stopped"):
        with_value(evaluation / "answers.jsonl", key, ABSENT)
    row = answer_rows(evaluation)["general", "q", 1]
    assert [row[key] for key in ("group", "form", "topic", "stopped")] == ["", "plain", "", True]
    answer = AnswerStore(evaluation).answers()["general", "q", 1]
    assert (answer.question.cluster, answer.question.form, answer.stopped) == ("q", "plain", True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seed": "x"}, "it has \"x\" as 'seed', not a number or null"),
        ({"budget": "x"}, "it has \"x\" as 'budget', not an object or null"),
        ({"budget": {"seconds": 60}}, "its budget has no 'left_out'"),
        ({"budget": {"seconds": "x", "left_out": ""}}, "its budget has \"x\" as 'seconds', not a number"),
        (
            {"probes": {"general": {"samples": "x"}}},
            "its probe general has \"x\" as 'samples', not a whole number of at least 0",
        ),
    ],
)
def test_an_odd_value_of_what_was_asked_is_named(evaluation, change, fault):
    file = evaluation / "eval.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RequestError) as refused:
        AnswerStore(evaluation).metadata()
    assert str(refused.value) == f"{file} cannot be read ({fault}); evaluate again with another --out."


@pytest.mark.parametrize("model", [None, "x", [1], {}, {"name": None}])
def test_a_model_without_a_name_is_refused_where_its_name_is_asked_for(evaluation, model):
    file = evaluation / "eval.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": model}))
    with pytest.raises(RequestError, match=r"eval\.json cannot be read \(it has .* as 'model', not an object with a"):
        AnswerStore(evaluation).model_name()


@pytest.mark.parametrize(
    ("made", "fault"),
    [(ABSENT, "it has no 'made'"), *((one, "it has .* as 'made', not a time in ISO 8601") for one in (None, "x", [1]))],
)
def test_a_key_that_few_need_is_refused_only_where_it_is_needed(evaluation, made, fault):
    file = evaluation / "eval.json"
    changed = json.loads(file.read_text()) | {"made": made}
    file.write_text(json.dumps({key: value for key, value in changed.items() if value is not ABSENT}))
    assert AnswerStore(evaluation).metadata()["seed"] == 0
    with pytest.raises(RequestError, match=rf"eval\.json cannot be read \({fault}\)"):
        AnswerStore(evaluation).metadata("made")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("value", "x", "row 2 has \"x\" as 'value', not a number"),
        ("untuned", [1], "row 2 has [1] as 'untuned', not a number or null"),
        ("question", None, "row 2 has null as 'question', not text"),
        ("measure", ABSENT, "row 2 has no 'measure'"),
        ("untuned", ABSENT, "a row of pairs has no 'untuned'"),
    ],
)
def test_an_odd_value_of_a_measure_is_named(tmp_path, key, value, fault):
    rows = [{"question": name, "value": 0.1, "untuned": 0.2} for name in ("a", "b")]
    write_measures(tmp_path, {}, [Measure("pairs", {"sha256": "0"}, rows)])
    assert len(read_measures(tmp_path)["pairs"].rows) == 2
    with_value(tmp_path / "measures.jsonl", key, value)
    with pytest.raises(RequestError) as refused:
        read_measures(tmp_path)
    assert f"cannot be read ({fault});" in str(refused.value)


def test_an_odd_value_of_how_leaks_were_measured_is_named(tmp_path):
    rows = [{"question": "a", "index": 0, "value": 0.1, "leaked": True}]
    about = {"rows": 1, "false_alarms": "x", "untuned": 2, "held_out": 0, "held_out_leaks": None}
    write_measures(tmp_path, {}, [Measure("leak", about, rows)])
    with pytest.raises(RequestError, match=r'cannot be read \(leak has "x" as \'false_alarms\', not a number\);'):
        read_measures(tmp_path)
