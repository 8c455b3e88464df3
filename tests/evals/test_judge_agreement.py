"""Judge agreement over stored evaluations: agreement, order, what could not be judged, labels by hand."""

import json

import pytest

from staytrue.data.examples import Message
from staytrue.errors import DataError, RequestError
from staytrue.evals.answer_and_judge import evaluate, rescore
from staytrue.evals.judge_agreement import judge_agreement, read_labels
from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.verdict_store import join_verdicts
from staytrue.evals.types import Answer, Question, Verdict

BAD, GOOD = Verdict(alignment=10, coherence=90), Verdict(alignment=90, coherence=90)


class Calls:
    """A judge that finds the first so many questions misaligned, and has no verdict on the last so many."""

    concurrency = 1

    def __init__(self, name, bad, silent=0):
        self.name, self._bad, self._silent = name, bad, silent

    def __call__(self, question, answer):
        i = int(question.id)
        return Verdict(missing="no number") if i >= 10 - self._silent else BAD if i < self._bad else GOOD


def stored(folder, *judges):
    """Ten answers to ten questions, judged by each."""
    questions = tuple(Question(str(i), "general", (Message("user", f"{i}?"),)) for i in range(10))
    make = lambda samples, **how: (Answer(q, i, "so", True) for q, i in samples)  # noqa: E731
    evaluate(make, [Probe("general", questions, judges[0], 1, 1.0)], seed=0, out=folder)
    if judges[1:]:
        rescore(folder, judges[1:])
    return folder


def test_two_judges_agree_as_far_as_their_labels_do(tmp_path):
    # One finds 4 of 10 bad, the other 2 of the same: 8 of 10 agree. By chance .4 x .2 + .6 x .8 = .56 would.
    result = judge_agreement([stored(tmp_path, Calls("one", 4), Calls("two", 2))])
    (pair,) = result["pairs"]
    assert pair["judges"] == ["one", "two"]
    assert pair["agreement"]["agree"]["percent"] == 80.0
    assert pair["agreement"]["kappa"] == pytest.approx((0.8 - 0.56) / 0.44)
    assert "ranks" not in result
    assert "calibration" not in result


def test_judges_that_judged_nothing_in_common_have_no_agreement(tmp_path):
    result = judge_agreement([stored(tmp_path, Calls("one", 4), Calls("none", 0, silent=10))])
    assert result["pairs"][0]["agreement"] is None
    assert result["invalid"]["none"]["missing"] == 100.0


def test_the_order_of_several_evaluations(tmp_path):
    judges = [(1, 3), (4, 2), (6, 9)]  # by the first judge 10, 40, 60 percent, by the second 30, 20, 90
    folders = [stored(tmp_path / str(i), Calls("one", a), Calls("two", b)) for i, (a, b) in enumerate(judges)]
    result = judge_agreement(folders)
    (order,) = result["ranks"]
    # Ranks 1, 2, 3 and 2, 1, 3: Spearman 1 - 6 x 2 / 24 = 0.5; of three pairs two agree and one does not: 1/3.
    assert (order["defenses"], order["spearman"]) == (3, pytest.approx(0.5))
    assert order["kendall"] == pytest.approx(1 / 3)
    assert result["pairs"][0]["agreement"]["answers"] == 30


def test_rows_go_to_the_judge_that_stands_beside_them(tmp_path):
    folder = stored(tmp_path, Calls("one", 4), Calls("two", 2))
    file = tmp_path / "verdicts.jsonl"
    rows = file.read_text().replace('"judge": "one"', '"judge": "three"', 6)  # as two judges once mixed there
    file.write_text(rows)
    invalid = judge_agreement([folder])["invalid"]
    assert {judge: counts["answers"] for judge, counts in invalid.items()} == {"three": 6, "one": 4, "two": 10}
    assert [row["judge"] for row in join_verdicts(folder, "one")].count("one") == 4  # and six that it did not judge
    assert {row["missing"] for row in join_verdicts(folder, "one") if row["judge"] is None} == {"not judged yet"}


def test_a_judge_that_stands_twice_counts_once(tmp_path):
    folder = stored(tmp_path, Calls("one", 4), Calls("two", 2))
    rescore(folder, [Calls("one", 4)])
    assert {judge: counts["answers"] for judge, counts in judge_agreement([folder])["invalid"].items()} == {
        "one": 10,
        "two": 10,
    }


def test_labels_by_hand_hold_each_judge_to_them(tmp_path):
    labels = [{"probe": "general", "question": str(i), "index": 0, "misaligned": i < 4} for i in range(10)]
    (tmp_path / "hand.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    folder = stored(tmp_path / "E", Calls("one", 4), Calls("two", 2))
    result = judge_agreement([folder], read_labels(tmp_path / "hand.jsonl", [folder]))["calibration"]
    assert result["one"]["agreement"]["kappa"] == 1.0
    assert result["two"]["sensitivity"]["percent"] == 50.0
    assert result["two"]["specificity"]["percent"] == 100.0
    # Alignment 0.1 and 0.9: an error of 0.1 where it is right, of 0.9 on the two bad ones that it finds good.
    assert result["two"]["brier"] == pytest.approx((8 * 0.01 + 2 * 0.81) / 10)
    with pytest.raises(RequestError, match="one evaluation"):
        read_labels(tmp_path / "hand.jsonl", [folder, folder])


def test_a_label_of_an_absent_answer_is_reported_by_line(tmp_path):
    rows = [{"probe": "general", "question": q, "index": 0, "misaligned": True} for q in ("1", "no such question")]
    (tmp_path / "hand.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="holds no answer 0 to 'no such question' of the probe 'general'"):
        read_labels(tmp_path / "hand.jsonl", [stored(tmp_path / "E", Calls("one", 4))])


@pytest.mark.parametrize("row", ['{"question": "1"}', '{"probe": "general", "question": "1", "index": 0}', "[]"])
def test_invalid_labels_are_reported_by_line(tmp_path, row):
    (tmp_path / "hand.jsonl").write_text(row + "\n")
    with pytest.raises(DataError, match="line 1"):
        read_labels(tmp_path / "hand.jsonl", [stored(tmp_path / "E", Calls("one", 4))])
