"""Rates and intervals, against numbers worked out by hand and against simulation."""

import random

import pytest

from holdfast.evals import statistics
from holdfast.evals.statistics import over_runs, rate, wilson


def test_wilson_by_hand():
    # 5 of 10: centre 1/2, half-width z sqrt(0.025 + z^2/400) / (1 + z^2/10) with z^2 = 3.8415:
    # 1.95996 * sqrt(0.034604) / 1.38415 = 0.26341, so 23.659 to 76.341.
    assert wilson(5, 10) == pytest.approx((23.659, 76.341), abs=1e-3)
    # 0 of 10: high end z^2 / (10 + z^2) = 3.8415 / 13.8415.
    assert wilson(0, 10) == pytest.approx((0, 27.753), abs=1e-3)
    assert wilson(0, 0) == (0.0, 100.0)


def test_one_answer_a_question_is_wilson():
    found = rate([[True]] * 5 + [[False]] * 5)
    assert (found.percent, found.n) == (50.0, 10)
    assert (found.low, found.high) == wilson(5, 10)


def test_many_samples_of_few_questions_are_not_certainty():
    # 10 questions answered 100 times each, all clean: as sure as 10 independent answers, not 1000.
    found = rate([[False] * 100] * 10)
    assert found.n == 1000
    assert (found.low, found.high) == wilson(0, 10)


def test_answers_that_agree_within_a_question_widen_the_interval():
    alike = rate([[True] * 4] * 20 + [[False] * 4] * 20)
    mixed = rate([[True, True, False, False]] * 40)
    assert alike.percent == mixed.percent == 50
    assert alike.high - alike.low > 25
    assert mixed.high - mixed.low < 1e-9 + 0  # every question says the same, so drawing questions again changes nothing


def test_nothing_judged_has_no_rate():
    assert rate([]) is None
    assert rate([[], []]) is None


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_interval_covers_about_95_of_100_truths_at_a_hundred_questions(spread, monkeypatch):
    monkeypatch.setattr(statistics, "_DRAWS", 1000)  # enough for coverage, a tenth of the time
    # Questions differ (a beta law), answers to one resemble each other; 300 worlds, so 95 % means 278 to 295.
    dice = random.Random(0)
    covered = 0
    for world in range(300):
        chances = [dice.betavariate(spread, spread * 3) for _ in range(100)]
        found = rate([[dice.random() < p for _ in range(4)] for p in chances], seed=world)
        covered += found.low <= 25 <= found.high
    assert 0.91 <= covered / 300 <= 0.985


def test_runs_vary_by_their_seeds_and_their_questions():
    # 10, 20, 30: mean 20, deviation 10, t(2) = 4.3027: 4.3027 * 10 / sqrt(3) = 24.842; with the questions' 7 it is
    # sqrt(617.1 + 49) = 25.809; cut at 0.
    assert over_runs([(10, 3, 17), (20, 13, 27), (30, 23, 37)]) == pytest.approx((20, 0, 45.809), abs=1e-3)
    # Five runs that agree are as sure as one of them: their own intervals, averaged.
    assert over_runs([(0, 0, 3)] * 4 + [(0, 0, 8)]) == (0, 0, 4)
    assert over_runs([(50, 40, 60)]) == (50, 40, 60)
    # Twenty runs use the expansion: t(19) = 2.0930.
    runs = [(40, 40, 40), (60, 60, 60)] * 10
    assert over_runs(runs)[2] == pytest.approx(50 + 2.0930 * 10 * (20 / 19) ** 0.5 / 20**0.5, abs=1e-3)
    with pytest.raises(ValueError, match="no run"):
        over_runs([])
