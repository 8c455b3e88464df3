"""Judges against each other and against labels by hand, with numbers worked out by hand."""

import pytest

from staytrue.errors import RequestError
from staytrue.evals.stats.agreement import agreement, calibration, invalid, ranks
from staytrue.evals.stats.intervals import rate


def verdict(question, bad, index=0, **more):
    row = {"probe": "general", "question": question, "index": index, "misaligned": bad, "missing": ""}
    return row | {"alignment": 10.0 if bad else 90.0} | more


def verdicts(marks, **more):
    """One answer to each question; x is misaligned."""
    return [verdict(f"q{i}", mark == "x", **more) for i, mark in enumerate(marks)]


def test_kappa_by_hand():
    # Both x 3 times, neither 4, one alone 2 and 1: agreement 0.7; x in 0.5 and 0.4, so chance is 0.2 + 0.3; 0.2 / 0.5.
    result = agreement(verdicts("xxxxx....."), verdicts("xxx..x...."))
    assert (result.answers, result.left_out, result.agree.percent) == (10, 0, pytest.approx(70))
    assert result.kappa == pytest.approx(0.4)
    plain = rate([[True]] * 7 + [[False]] * 3)
    assert result.low == pytest.approx((plain.low / 100 - 0.5) / 0.5)
    assert result.high == pytest.approx((plain.high / 100 - 0.5) / 0.5)


def test_judges_that_agree_on_everything_are_not_known_to_agree_always():
    result = agreement(verdicts("xx..."), verdicts("xx..."))
    assert (result.kappa, result.high) == (1, 1)
    assert result.low < 0.5


def test_agreement_by_chance_alone_has_no_kappa():
    result = agreement(verdicts("....."), verdicts("....."))
    assert (result.agree.percent, result.kappa, result.low, result.high) == (100, None, None, None)


def test_the_interval_is_over_questions_not_answers():
    marks = [[True, True, True, True]] * 6 + [[False, True, False, True]] * 6
    ours = [verdict(f"q{i}", True, j, group=f"g{i // 2}") for i in range(12) for j in range(4)]
    theirs = [verdict(f"q{i}", bad, j) for i, own in enumerate(marks) for j, bad in enumerate(own)]
    grouped = [marks[i] + marks[i + 1] for i in range(0, 12, 2)]
    result = agreement(ours, theirs).agree
    assert (result.low, result.high) == pytest.approx((rate(grouped).low, rate(grouped).high))


def test_what_one_of_the_two_did_not_judge_is_left_out_and_counted():
    ours = [*verdicts("xx.."), verdict("q9", True)]
    theirs = verdicts("x...")
    theirs[3]["missing"] = "the call failed"
    result = agreement(ours, [*theirs, verdict("q8", True), verdict("q7", True)])
    assert (result.answers, result.left_out) == (3, 4)
    assert result.agree.percent == pytest.approx(200 / 3)


def test_an_answer_that_neither_judged_is_not_counted_as_left_out_by_one():
    ours, theirs = verdicts("x..x"), verdicts("x..x")
    ours[3]["missing"] = theirs[3]["missing"] = "no number"
    theirs[2]["missing"] = "the call failed"
    result = agreement(ours, theirs)
    assert (result.answers, result.left_out) == (2, 1)


def test_nothing_in_common_is_no_agreement_and_answers_twice_are_refused():
    assert agreement(verdicts("x"), [verdict("other", True)]) is None
    with pytest.raises(RequestError, match=r"Sample 0 of the question 'q0' \(probe 'general'\) occurs twice"):
        agreement(verdicts("x") * 2, verdicts("x"))


def test_calibration_by_hand():
    # By hand all but q0 are bad. Squares 0.1^2, 0.2^2, 0.6^2, 1: 1.41 / 4. Bins: 0.9 and 1.0 share the last one (1.9
    # for 1 aligned), 0.2 for 0, 0.6 for 0: (0.9 + 0.2 + 0.6) / 4.
    ours = [verdict(f"q{i}", a < 30, alignment=a) for i, a in enumerate((90.0, 20.0, 60.0, 100.0))]
    labels = [{"probe": "general", "question": f"q{i}", "index": 0, "misaligned": i > 0} for i in range(4)]
    result = calibration([*ours, verdict("unlabelled", True)], labels)
    assert (result.brier, result.ece, result.scored) == (pytest.approx(0.3525), pytest.approx(0.425), 4)
    assert (result.sensitivity.percent, result.specificity.percent) == (pytest.approx(100 / 3), 100)
    # Agreement 2/4; misaligned 1/4 and 3/4: chance 3/16 + 3/16; kappa (1/2 - 3/8) / (5/8).
    assert (result.agreement.answers, result.agreement.left_out) == (4, 0)
    assert result.agreement.kappa == pytest.approx(0.2)


def test_errors_on_one_side_of_a_bin_do_not_cancel_those_of_another():
    # 0.25 for an aligned answer and 0.75 for a bad one: each bin is off by 0.75.
    ours = [verdict("q0", True, alignment=25.0), verdict("q1", False, alignment=75.0)]
    labels = [{"probe": "general", "question": f"q{i}", "index": 0, "misaligned": i == 1} for i in range(2)]
    assert calibration(ours, labels).ece == pytest.approx(0.75)


def test_an_answer_without_a_score_has_a_label_but_no_calibration():
    ours = [verdict("q0", False, alignment=None, refused=True), verdict("q1", False, missing="no number")]
    labels = [{"probe": "general", "question": f"q{i}", "index": 0, "misaligned": False} for i in range(2)]
    result = calibration(ours, labels)
    assert (result.scored, result.brier, result.ece, result.sensitivity) == (0, None, None, None)
    assert (result.specificity.percent, result.specificity.n, result.agreement.left_out) == (100, 1, 1)
    assert calibration(ours[1:], labels) is None


def test_rank_correlations_with_ties_by_hand():
    # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5). Five pairs in order, one tied: 5 / sqrt(5 * 6).
    one = {"anchor": 1.0, "kl": 2.0, "ldifs": 2.0, "none": 40.0}
    other = {"none": 9.0, "anchor": 0.1, "kl": 0.3, "ldifs": 0.2, "unknown": 5.0}
    result = ranks(one, other)
    assert result.defenses == 4
    assert result.spearman == pytest.approx(0.948683, abs=1e-6)
    assert result.kendall == pytest.approx(0.912871, abs=1e-6)
    backwards = ranks(one, {name: -rate for name, rate in one.items()})
    assert (backwards.spearman, backwards.kendall) == (pytest.approx(-1), pytest.approx(-1))


def test_a_judge_that_finds_all_alike_ranks_nothing():
    result = ranks({"kl": 0.0, "none": 0.0}, {"kl": 1.0, "none": 2.0})
    assert (result.spearman, result.kendall) == (None, None)
    assert ranks({"kl": 0.0, "none": 0.0}, {"kl": 1.0}) is None


def test_what_came_without_a_score_is_counted_by_its_reason():
    rows = verdicts("x.......")
    rows[0] |= {"missing": "HTTP 500", "failed": True}
    rows[1] |= {"missing": "no number"}
    rows[2] |= {"refused": True}
    rows[3] |= {"code": True}
    rows[4] |= {"refused": True}
    result = invalid(rows)
    assert (result.answers, result.missing, result.failed, result.refused, result.code) == (8, 12.5, 12.5, 25, 12.5)
    with pytest.raises(RequestError, match="no answer"):
        invalid([])
