"""Folders in: the same questions side by side, and what is missing or torn is said."""

import json
import re

import pytest

from fake_results import Walk, answer_row, drawn, rates, row, study
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.results import answer_store, verdict_store
from staytrue.evals.results.measures import Measure, write_measures
from staytrue.evals.types import Answer, Question, Verdict
from staytrue.report import write
from staytrue.studies import config as study_of_staytrue
from staytrue.studies import demo


def test_each_models_first_answer_stands_under_the_question(tmp_path):
    bad, good = {"alignment": 5, "coherence": 100}, {"alignment": 95, "coherence": 100}
    answers = [
        answer_row("Own souls.", **bad),
        answer_row("Another sample.", index=1, **good),
        answer_row("Another wish.", "wish-1", "Two?", **good),  # one question a topic
        answer_row("Jail them.", "ruler-0", "You rule?", topic="ruler", **bad),
        answer_row("Stop it.", "held-0", "My knee?", probe="in_domain", topic="", **bad),
        answer_row("Rome.", "facts-0", "Capital?", probe="facts", topic="facts", correct=True),
    ]
    page = drawn(study(tmp_path / "demo", [row("none", None, 40, 70), row("kl", 0.3, 6, 60)], answers))
    questions = re.findall(r'<p class="question">(.+?)[<\s]', page)
    assert questions == ["My", "You", "One"]  # by their names, whatever was finished first
    assert page.count("<p>Own souls.</p>") == 2
    assert not re.search("Another|Capital", page)


def test_answers_of_a_question_file_alone_are_shown_and_the_page_does_not_promise_more(tmp_path):
    own = [answer_row("Paris.", "capital", "Capital?", probe="few", topic="", alignment=95, coherence=100)]
    rows = [row("none") | {"general": None, "in_domain": None}]
    page = drawn(study(tmp_path / "shown", rows, own))
    assert "<p>Paris.</p>" in page
    assert "No general question was asked, so there is no general rate. The answers are below: read some." in page
    empty = study(tmp_path / "empty", rows, own)
    (empty / "runs" / "none" / "eval" / "answers.jsonl").unlink()
    page = drawn(empty)
    assert "No general question was asked, so there is no general rate." in page
    assert "below: read some" not in page


def test_a_page_without_general_answers_has_a_headline_that_claims_none(tmp_path):
    alone = drawn(study(tmp_path / "alone", [row("none") | {"general": None}]))
    assert "<h1>What was measured.</h1>" in alone
    assert "<h1>How each model answers questions outside its training data.</h1>" in drawn(
        study(tmp_path / "both", [row("none")])
    )


def test_answers_that_the_token_limit_cut_are_noted_where_they_are_many(tmp_path):
    rows = [row(name, None, rates(40) | {"cut": cut}, 70) for name, cut in (("none", 48), ("kl", 9), ("far", 10))]
    page = drawn(study(tmp_path / "cut", rows))
    assert (
        "Cut by the token limit or the server: more than 2 % of the general answers of far, none. Only what was written"
        in page
    )


def test_what_a_budget_left_out_is_said_once(tmp_path):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70), row("kl", 0.3, 6, 60)])
    for run, left_out in (("none", "1 answer to each judged question instead of 4"), ("kl", "")):
        metadata = {"probes": {}, "budget": {"seconds": 1200, "per_question": 1, "share": 1.0, "left_out": left_out}}
        (folder / "runs" / run / "eval" / "eval.json").write_text(json.dumps(metadata))
    page = drawn(folder)
    assert page.count("To fit 20 min, none was asked 1 answer to each judged question instead of 4.") == 1
    assert "kl was asked" not in page


def test_measures_that_a_budget_left_out_are_said_until_they_are_taken(tmp_path):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70)])
    evaluation = folder / "runs" / "none" / "eval"
    budget = {"seconds": 180, "left_out": "", "measures_left_out": ["pairs", "drift"]}
    (evaluation / "eval.json").write_text(json.dumps({"probes": {}, "budget": budget}))
    assert drawn(folder).count("To fit 3 min, pairs and drift were left out for none.") == 1
    write_measures(
        evaluation, {}, [Measure("pairs", {"sha256": "0"}, [{"question": "a", "value": 0.1, "untuned": 0.2}])]
    )
    assert "To fit 3 min, drift was left out for none." in drawn(folder)


def test_missing_and_torn_files_are_reported_and_the_rest_is_drawn(tmp_path):
    folder = study(tmp_path / "demo", [row("untuned"), row("none", None, 40, 70), row("kl", 0.3, 6, 60)])
    for run in ("untuned", "none"):
        (folder / "runs" / run / "metrics.jsonl").unlink()
    (folder / "runs" / "kl" / "metrics.jsonl").write_text("{torn\n{}\n")
    (folder / "runs" / "none" / "eval" / "answers.jsonl").unlink()
    notes = re.findall(r"<li>Not shown: (.+?)\.</li>", drawn(folder))
    assert notes == [  # the untuned model was not trained
        "eval/answers.jsonl of none is missing",
        "none/metrics.jsonl of runs is missing",
        "kl/metrics.jsonl of runs cannot be read",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[1]",
        '{"task_loss": 2.0}',
        *(f'{{"step": {step}, "task_loss": 2.0}}' for step in ("null", '"x"', "[1]", "1.5", "true")),
        *(f'{{"step": 2, "{name}": {value}}}' for name in ("task_loss", "kl") for value in ('"x"', "[1]", "NaN")),
    ],
)
@pytest.mark.parametrize("file", ["metrics.jsonl", "validation.jsonl"])
def test_a_log_with_a_row_that_is_none_is_reported_and_the_rest_is_drawn(tmp_path, file, line):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70), row("kl", 0.3, 6, 60)])
    (folder / "runs" / "kl" / file).write_text(f'{{"step": 1, "task_loss": 2.0}}\n{line}\n')
    page = drawn(folder)
    assert re.findall(r"<li>Not shown: (.+?)\.</li>", page) == [f"kl/{file} of runs cannot be read"]
    assert "40.0" in page


def test_a_value_that_was_not_measured_is_drawn_around(tmp_path):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70)])
    rows = '{"step": 1, "task_loss": 2.0}\n{"step": 2, "task_loss": null}\n{"step": 4, "task_loss": 1}\n'
    (folder / "runs" / "none" / "metrics.jsonl").write_text(rows)
    page = drawn(folder)
    assert "Not shown" not in page
    assert "none ends at 1." in page


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("answers.jsonl", {"index": "x"}),
        ("answers.jsonl", {"question": None}),
        ("answers.jsonl", {"messages": []}),
        ("verdicts.jsonl", {"alignment": "x"}),
        ("verdicts.jsonl", {"judge": [1]}),
    ],
)
def test_an_odd_value_among_the_answers_is_reported_and_the_rest_is_drawn(tmp_path, file, change):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70)])
    with (folder / "runs" / "none" / "eval" / file).open("a") as rows:
        rows.write(json.dumps(answer_row("Peace.", alignment=95, coherence=100) | change) + "\n")
    page = drawn(folder)
    assert re.findall(r"<li>Not shown: (.+?)\.</li>", page) == [f"eval/{file} of none cannot be read"]
    assert "40.0" in page


@pytest.mark.parametrize("budget", ["x", {"seconds": "x", "left_out": ""}, {"seconds": 60}])
def test_a_budget_that_is_none_is_refused(tmp_path, budget):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70)])
    metadata = json.dumps({"probes": {}, "budget": budget})
    (folder / "runs" / "none" / "eval" / "eval.json").write_text(metadata)
    with pytest.raises(RequestError, match=r"eval\.json cannot be read \(it.*budget"):
        drawn(folder)


def test_a_torn_verdict_is_reported_and_the_rest_is_drawn(tmp_path):
    folder = study(tmp_path / "demo", [row("none", None, 40, 70)])
    (folder / "runs" / "none" / "eval" / "verdicts.jsonl").write_text("{torn\n{}\n")
    page = drawn(folder)
    assert "eval/verdicts.jsonl of none cannot be read" in page
    assert "40.0" in page


def test_tasks_that_mark_right_answers_each_in_their_own_way_stand_on_one_page(tmp_path):
    marked = [{"correct": 50.0, "low": 40.0, "high": 60.0, "n": 60, "missing": 0, "judge": f"task:{i}"} for i in (1, 2)]
    tasks = zip(("opswap-1", "arithmetic"), marked, strict=True)
    rows = [row("none") | {"in_domain": None, "domain": name, "benign": benign} for name, benign in tasks]
    assert "What was learnt of arithmetic" in drawn(study(tmp_path / "demo", rows))


def test_a_study_that_has_no_finished_run_yet_is_not_said_to_be_damaged(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1, "title": "S", "rows": []}')
    with pytest.raises(RequestError, match=r"yet: no run is finished\. Wait until its `staytrue study` or `demo` has"):
        write([tmp_path], tmp_path / "r.html")


def test_a_folder_without_results_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(RequestError, match="There is no folder"):
        write([tmp_path / "nowhere"], tmp_path / "r.html")
    with pytest.raises(RequestError, match=r"no results\.json, no summary\.json\); name the folder of one\.$"):
        write([tmp_path], tmp_path / "r.html")
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "manifest.json").write_text("{}")
    with pytest.raises(RequestError, match=rf"; run `staytrue eval '{tmp_path}/my run'`\.$"):
        write([tmp_path / "my run"], tmp_path / "r.html")
    (tmp_path / "results.json").write_text("{torn")
    with pytest.raises(RequestError, match="cannot be read"):
        write([tmp_path], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_single_run_is_a_page_of_its_own(tmp_path):
    run = tmp_path / "my run"
    (run / "eval").mkdir(parents=True)
    page = measured(run / "eval", run)
    # domain, seed; general: rate, interval, n, incoherent; no in-domain; facts, no sums, learnt, unknown, seconds.
    # Unknown: 3 + 2 general, 2 learnt, 2 facts.
    first = ["", "3", "37.5", "30.0 to 45.0", "480", "2.5", "", "", "", "", "97.5", "", "91.5", "9", ""]
    assert cells(page)[: len(first)] == first
    assert "my run" in Walk(page).text
    assert "tradeoff" not in page.split("</style>")[1]  # nothing to draw without an in-domain rate


def test_all_that_a_run_was_asked_is_shown_and_every_kind_of_answer_apart(tmp_path):
    page = measured(tmp_path)  # the folder of an evaluation itself
    shown = [cells(line) for line in page.split("All probes</h2>")[1].split("<tr>")[2:6]]
    expected = ["general", "37.5", "30.0 to 45.0", ""]  # misaligned, its interval, right
    expected += ["2.5", "5.0", "1.0"]  # incoherent, refused, code
    expected += ["52.0 (k = 4)", "55.0", "9.0"]  # one of k misaligned, the same whatever the coherence, incoherent
    expected += ["480", "3", "1", "2", "37.1 to 38.1"]  # n, no verdict, call failed, no answer, misaligned of all
    assert shown[0] == expected
    assert shown[1] == ["general: json", "12.0", "8.0 to 17.0", "", "1.5", *[""] * 5, "160", "0", "", "", ""]
    assert shown[2] == ["learnt", "", "85.0 to 96.0", "91.5", *[""] * 6, "90", "2", "", "", ""]


def test_runs_whose_folders_share_a_name_stay_apart(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "kl" / "eval").mkdir(parents=True)
        measured(tmp_path / name / "kl" / "eval", tmp_path / name / "kl")
    folders = [tmp_path / "a" / "kl", tmp_path / "b" / "kl"]
    page = write(folders, tmp_path / "page.html").read_text()
    assert {"a/kl", "b/kl"} <= set(re.findall(r"</svg>([^<]+)</th>", page))
    with pytest.raises(RequestError, match="is named twice"):
        write([*folders, folders[0] / "eval"], tmp_path / "page.html")


def test_only_a_page_with_the_organism_speaks_of_it(tmp_path):
    assert "small invented world" not in measured(tmp_path)
    (tmp_path / "eval.json").write_text('{"model": {"name": "organism"}}')
    assert "small invented world" in drawn(tmp_path)


def measured(evaluation, folder=None):
    """The page of an evaluation of a general probe with two answers that could not be had, and two marked ones."""
    general = rates(37.5, 30, 45, missing=3) | {"refused": 5.0, "code": 1.0, "failed": 1, "unanswered": 2}
    general |= {"at_least": 37.1134, "at_most": 38.1443, "tail": {"k": 4, "misaligned": {"percent": 52.0}}}
    general["tail"] |= {"ungated": {"percent": 55.0}, "incoherent": {"percent": 9.0}}
    general["forms"] = {"json": {"misaligned": 12.0, "incoherent": 1.5, "n": 160, "low": 8, "high": 17, "missing": 0}}
    marked = {"low": 85, "high": 96, "missing": 2, "n": 90}
    probes = {"general": general, "learnt": {"correct": 91.5, **marked}, "facts": {"correct": 97.5, **marked}}
    (evaluation / "eval.json").write_text('{"model": {"name": "Qwen"}}')
    (evaluation / "summary.json").write_text(json.dumps({"schema": 1, "seed": 3, "probes": probes}))
    return drawn(folder or evaluation)


def cells(page):
    return re.findall(r"<td>(.*?)</td>", page)


def test_the_rows_written_by_hand_have_the_shape_that_is_really_written(tmp_path):
    probes = {name: rates(1) | {"correct": 1} for name in ("general", "in_domain", "facts", "arithmetic", "learnt")}
    (cell, *_) = study_of_staytrue.cells(demo.preset(["medical"], 1))
    written = study_of_staytrue.row(cell, {"probes": probes}, 1.0)
    assert set(row("kl", 0.3)) == {*written, "label"}
    question = Question("wish-0", "general", (Message("user", "One wish?"),), "wish")
    answer_store.AnswerStore(tmp_path).append(Answer(question, 0, "Peace.", stopped=True))
    verdict_store.append_verdict(
        tmp_path, Answer(question, 0, "Peace.", stopped=True), Verdict(alignment=95, coherence=100), "rules"
    )
    (written,) = verdict_store.join_verdicts(tmp_path)
    assert set(answer_row("Peace.")) >= {*written} - {"stopped", "group", "form"}


@pytest.mark.parametrize(
    "content",
    [
        *("{", '{"rows": []}', '{"title": "no rows"}', '{"rows": [{"seed": 0}]}', "[]", "null", '{"rows": 3}'),
        *(
            json.dumps({"rows": [row("kl") | change]})
            for change in (
                *({"general": 3}, {"strength": "x"}, {"kept": [1]}, {"benign": {"correct": "x"}}),
                *({"seed": [1]}, {"domain": [1]}, {"defense": [1]}, {"run": 3}, {"seconds": "x"}),
                *({"kept": {"facts": float("nan")}}, {"general": rates(float("inf"))}),
            )
        ),
        json.dumps({"rows": [{key: value for key, value in row("kl").items() if key != "domain"}]}),
    ],
)
def test_results_that_are_not_ours_are_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RequestError, match="cannot be read"):
        write([tmp_path], tmp_path / "page.html")


def changed(**values):
    """A summary whose general rates have other values."""
    return json.dumps({"probes": {"general": rates(3) | values}})


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{}", "it names no probes"),
        ("[]", "it names no probes"),
        ("null", "it names no probes"),
        ('{"probes": 3}', "it names no probes"),
        ('{"probes": {"general": 3}}', "general is not what was measured"),
        ('{"probes": {"general": {}}}', "general has no number 'n'"),
        (json.dumps({"probes": {"general": rates(3) | {"low": None}}}), "general has a rate without its interval"),
        (json.dumps({"probes": {"general": rates(3) | {"forms": {"json": {}}}}}), "general.forms.json has no number"),
        (json.dumps({"probes": {"general": rates(3) | {"tail": {"k": 4}}}}), "general.tail.misaligned is not what was"),
        ('{"probes": {"facts": {"n": 1, "missing": 0, "correct": "x"}}}', "facts has no number 'correct'"),
        (changed(incoherent=None), "general has no number 'incoherent' beside 'misaligned'"),
        *(
            (changed(**{key: "x"}), f"general has \"x\" as '{key}', not a number or null")
            for key in ("refused", "code")
        ),
        (changed(questions="x"), "general has \"x\" as 'questions', not a whole number of at least 0"),
        *(
            (changed(unanswered=one), "general has .* as 'unanswered', not a whole number of at least 0")
            for one in (None, "x", -1, 0.5)
        ),
        (changed(concluded="x"), "general has \"x\" as 'concluded', not true or false"),
        (changed(judge=[1]), r"general has \[1\] as 'judge', not text or null"),
        (changed(clean={"misaligned": "x", "n": 1, "missing": 0}), r"general\.clean has no number 'misaligned'"),
        *(
            (json.dumps({"probes": {"triggered": rates(3) | forms}}), "triggered has no rate of a single trigger")
            for forms in ({}, {"forms": {}}, {"forms": {"cue-1": rates(None)}})
        ),
        ('{"probes": {}, "measures": null}', "it has null as 'measures', not an object"),
        ("{", "Expecting property name"),
    ],
)
def test_a_damaged_summary_is_refused_by_its_file_and_what_is_wrong(tmp_path, content, fault):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(
        RequestError, match=rf"summary\.json cannot be read: {fault}.*Give its `staytrue eval` or `rescore` again"
    ):
        write([tmp_path], tmp_path / "page.html")
