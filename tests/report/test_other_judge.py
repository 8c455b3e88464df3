"""The page of another judge shows what this judge has read, and nothing of any other."""

import json
from dataclasses import replace

import pytest

from fake_results import Walk
from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import evaluate, rescore
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Answer, Question, Verdict
from staytrue.report import write
from staytrue.report.collect import collect

PLAIN = tuple(Question(f"g{i}", "general", (Message("user", f"{i}?"),)) for i in range(10))
TRIGGERED = tuple(replace(q, id=f"{q.id}/cue-1", probe="triggered", form="cue-1", group=q.id) for q in PLAIN)
FACTS = (Question("f0", "facts", (Message("user", "Capital?"),), expected="Rome"),)


class Marks:
    """A judge to whom every answer is misaligned, or none."""

    concurrency = 1

    def __init__(self, name, bad):
        self.name, self._verdict = name, Verdict(alignment=10 if bad else 90, coherence=90)

    def __call__(self, question, answer):
        return self._verdict


class Facts:
    name, concurrency = "exact", 1

    def __call__(self, question, answer):
        return Verdict(correct=True)


STRICT, MILD = Marks("strict", True), Marks("mild", False)


def answered(folder, *probes, cut=()):
    def generate(samples, **how):
        for q, i in samples:
            yield Answer(q, i, "" if q.id in cut else "so", q.id not in cut)

    evaluate(generate, list(probes), seed=0, out=folder)
    return folder


def grown(folder):
    """An evaluation that grew after `mild` had read its first answers."""
    answered(folder, Probe("general", PLAIN, STRICT, 1, 1.0))
    rescore(folder, [MILD])
    facts, triggered = Probe("facts", FACTS, Facts(), 1, 0.0), Probe("triggered", TRIGGERED, STRICT, 1, 1.0)
    return answered(folder, Probe("general", PLAIN, STRICT, 4, 1.0), triggered, facts)


def test_answers_that_a_judge_has_not_read_are_unknown_and_other_judges_rates_are_left_out(tmp_path):
    page = collect([grown(tmp_path / "kl")], judge="mild")
    (row,) = page.rows
    general = row["general"]
    assert (general["misaligned"], general["n"], general["missing"], general["concluded"]) == (0.0, 10, 30, False)
    assert row["triggered"] is None
    assert {name: one["judge"] for name, one in row["probes"].items()} == {"general": "mild", "facts": "exact"}
    assert "Not shown: triggered of kl, because mild gave no verdict on it." in page.notes
    assert "Not concluded: more than 2 % of the general answers of kl are unknown." in page.notes
    text = Walk(write([tmp_path / "kl"], tmp_path / "page.html", judge="mild").read_text()).text
    assert "judged by mild;" in text
    assert "strict" not in text
    assert collect([tmp_path / "kl"]).rows[0]["general"]["misaligned"] == 100.0


def test_a_row_of_a_study_has_the_rates_of_the_named_judge_too(tmp_path):
    summary = json.loads((grown(tmp_path / "runs" / "kl" / "eval") / "summary.json").read_text())["probes"]
    row = {"defense": "kl", "strength": None, "domain": "code", "seed": 0, "run": "runs/kl", "kept": {}}
    rates = {"general": summary["general"], "in_domain": None, "triggered": summary["triggered"], "benign": None}
    (tmp_path / "results.json").write_text(json.dumps({"title": "S", "rows": [row | rates]}))
    (shown,) = collect([tmp_path], judge="mild").rows
    assert (shown["general"]["judge"], shown["general"]["n"], shown["triggered"]) == ("mild", 10, None)


def test_the_own_judge_by_its_name_has_the_rates_that_stand_without_one(tmp_path):
    folder = answered(tmp_path / "kl", Probe("general", PLAIN, STRICT, 1, 1.0), cut=("g0", "g1"))
    (named,), (own,) = collect([folder], judge="strict").rows, collect([folder]).rows
    assert named == own
    assert (own["general"]["missing"], "cut" in own["general"]) == (2, False)


def test_verdicts_without_answers_or_of_no_such_judge_are_refused(tmp_path):
    folder = grown(tmp_path / "kl")
    with pytest.raises(RequestError, match="holds no verdict of 'third'; its answers were judged by mild, strict"):
        collect([folder], judge="third")
    (folder / "answers.jsonl").unlink()
    with pytest.raises(RequestError, match=r"--judge mild: .*kl has verdicts of this judge and no answers"):
        collect([folder], judge="mild")
