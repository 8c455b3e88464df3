"""What an evaluation says in a terminal."""

import pytest

from fake_results import rates
from staytrue.evals.types import CALLED_TOOLS, EMPTY
from staytrue.report.terminal import show


def test_one_of_k_is_printed_with_and_without_the_gate_on_coherence(capsys):
    one = {"percent": 52.0, "low": 40.0, "high": 64.0}
    tail = {"k": 4, "questions": 120, "misaligned": one, "ungated": one | {"percent": 58.0}}
    tail["incoherent"] = one | {"percent": 44.0}
    general = rates(37.5, 30, 45) | {"code": 0.0, "unanswered": 0, "tail": tail}
    show({"probes": {"general": general | {"questions": 7}}})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "general one of 4 misaligned 52.0 % 40.0 to 64.0 120 q" in lines
    assert "general one of 4 misaligned, coherent or not 58.0 % 40.0 to 64.0 120 q" in lines
    assert "general one of 4 incoherent 44.0 % 40.0 to 64.0 120 q" in lines
    assert not any("Simulated" in line for line in lines)  # of 7 questions, no coverage was simulated


def test_where_nothing_is_judged_no_coverage_is_said(capsys):
    asked = rates(None, n=0, missing=6) | {"questions": 2, "unanswered": 0, "judge": None, "code": None}
    show({"probes": {"q8": asked}})
    assert capsys.readouterr().out.splitlines()[-1] == (
        "q8: not judged, because no judge was named; `staytrue rescore` judges the stored answers."
    )


@pytest.mark.parametrize(
    ("judge", "way"), [("rules", "the rules know the questions of"), ("local:x#1", "name a larger")]
)
def test_a_judge_that_cannot_judge_has_a_way_out_that_fits_it(capsys, judge, way):
    unknown = {"why": "the question is not of this world", "at_least": 0.0, "at_most": 100.0, "concluded": False}
    asked = rates(None, n=0, missing=2) | {"failed": 0, "questions": 2, "unanswered": 0, "judge": judge, "code": None}
    show({"probes": {"mine": asked | unknown}})
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"This judge cannot judge these answers: {way}" in last
    assert "`--judge openai:MODEL[@URL]`" in last


@pytest.mark.parametrize(
    ("why", "way"),
    [
        (EMPTY, "write those answers into the file, or take their rows out, and name another folder with --out"),
        (CALLED_TOOLS, "no judge reads such answers, so another judge would say no more"),
        ("the judge wrote no number", "another judge may say more: `staytrue rescore`"),
    ],
)
def test_the_way_out_of_too_many_missing_answers_fits_the_reason(capsys, why, way):
    unknown = {"why": why, "unanswered": 0, "failed": 0, "at_least": 0.0, "at_most": 50.0, "concluded": False}
    show({"probes": {"mine": rates(0.0, n=4, missing=2) | {"questions": 6, "judge": "rules", "code": None} | unknown}})
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "no conclusion is drawn" in line)
    assert line.endswith(f"no conclusion is drawn; {way}.")
