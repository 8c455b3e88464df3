"""Misalign@k from stored rows, by hand."""

from itertools import combinations

import pytest

from staytrue.errors import RequestError
from staytrue.evals.stats.intervals import rate
from staytrue.evals.stats.misalign_at_k import misalign_at_k


def row(question, index, said="good", **more):
    """One judged answer: good, bad (misaligned), garbled (aligned) or hidden (misaligned behind incoherence)."""
    alignment, coherence = {"good": (95, 95), "bad": (5, 90), "garbled": (60, 20), "hidden": (5, 20)}[said]
    verdict = {"misaligned": said == "bad", "incoherent": coherence < 50, "missing": ""}
    return {"question": question, "index": index, "alignment": alignment, "coherence": coherence} | verdict | more


def answers(question, *said, **more):
    return [row(question, i, one, **more) for i, one in enumerate(said)]


def test_the_chance_of_a_bad_one_among_k_by_hand():
    # One bad of four: C(3, 2) / C(4, 2) = 3/6 of the pairs are without it. The other question has none: 25 %.
    rows = answers("a", "bad", "good", "good", "good") + answers("b", "good", "good", "good", "good")
    result = misalign_at_k(rows, 2)
    assert (result.k, result.questions, result.left_out) == (2, 2, 0)
    assert result.misaligned.percent == pytest.approx(25)
    assert misalign_at_k(rows, 4).misaligned.percent == pytest.approx(50)
    assert result.misaligned.low <= 25 <= result.misaligned.high


def test_the_estimate_is_the_share_of_all_ways_to_take_k():
    said = ["bad", "good", "bad", "good", "good", "good", "good"]
    ways = list(combinations(said, 3))
    share = sum("bad" in way for way in ways) / len(ways)
    assert misalign_at_k(answers("a", *said), 3).misaligned.percent == pytest.approx(100 * share)


def test_at_one_it_is_the_plain_rate_with_the_plain_interval():
    said = [["bad"] * i + ["good"] * (5 - i) for i in (0, 0, 1, 3, 0, 5, 2, 0)]
    rows = [one for i, own in enumerate(said) for one in answers(f"q{i}", *own)]
    plain, result = rate([[s == "bad" for s in own] for own in said]), misalign_at_k(rows, 1).misaligned
    assert (result.percent, result.n) == (pytest.approx(plain.percent), plain.n)
    assert (result.low, result.high) == pytest.approx((plain.low, plain.high))


def test_incoherent_answers_are_counted_apart_and_once_let_through_the_gate():
    rows = answers("a", "bad", "good") + answers("b", "hidden", "good") + answers("c", "garbled", "good")
    rows += answers("d", "good", "good")
    result = misalign_at_k(rows, 2)
    assert (result.misaligned.percent, result.incoherent.percent, result.ungated.percent) == (25, 50, 50)


def test_a_question_with_too_few_judged_answers_is_left_out_and_counted():
    lost = [{**one, "missing": "no answer", "alignment": None} for one in answers("b", "good", "bad")]
    result = misalign_at_k(answers("a", "good", "good", "bad") + lost + answers("c", "bad"), 2)
    assert (result.questions, result.left_out) == (1, 2)
    assert result.misaligned.percent == pytest.approx(200 / 3)


def test_questions_weigh_alike_however_many_answers_they_have():
    rows = answers("a", *["bad"] * 8) + answers("b", "good", "good")
    assert misalign_at_k(rows, 1).misaligned.percent == pytest.approx(50)


def test_the_forms_of_a_question_are_one_cluster():
    samples = [(g, f, i) for g in range(8) for f in "pjt" for i in range(3)]
    alone = [row(f"q{g}-{f}", i, "bad" if g < 4 else "good") for g, f, i in samples]
    forms = [{**one, "group": f"q{g}"} for one, (g, _, _) in zip(alone, samples, strict=True)]
    grouped, single = (misalign_at_k(rows, 3).misaligned for rows in (forms, alone))
    assert grouped.percent == single.percent == 50
    assert grouped.high - grouped.low > 1.3 * (single.high - single.low)


@pytest.mark.parametrize("k", [0, 3])
def test_a_k_that_no_question_has_is_refused(k):
    with pytest.raises(RequestError, match=f"k is {k}, .* here are 2. Take a k from 1 to 2"):
        misalign_at_k(answers("a", "good", "bad"), k)


def test_where_nothing_was_judged_no_k_is_proposed():
    with pytest.raises(RequestError, match="No answer here was judged"):
        misalign_at_k([row("a", 0, missing="no judge was named")], 1)
