"""Means over questions and seeds, and their differences, by hand."""

import math

import numpy as np
import pytest

from staytrue.errors import RequestError
from staytrue.evals.stats.means import difference, mean

T4 = 2.7764451  # Student's t, 4 degrees of freedom, 95 %


def values(numbers):
    return {f"q{i}": float(number) for i, number in enumerate(numbers)}


def test_one_seed_gives_students_interval():
    # Mean 3, standard deviation sqrt(2.5), standard error sqrt(2.5 / 5).
    result = mean([values([1, 2, 3, 4, 5])])
    assert (result.value, result.questions, result.seeds) == (3, 5, 1)
    assert (result.low, result.high) == pytest.approx((3 - T4 * math.sqrt(0.5), 3 + T4 * math.sqrt(0.5)), abs=1e-5)


def test_seeds_widen_the_interval():
    # Every question alike, the seeds 1 and 3: t of one degree of freedom, 12.706, times sqrt(2 / 2).
    result = mean([values([1] * 5), values([3] * 5)])
    assert (result.value, result.seeds) == (2, 2)
    assert result.high - result.value == pytest.approx(12.7062, abs=1e-3)


def test_one_question_has_no_interval_and_no_question_no_mean():
    assert mean([values([2])]).low is None
    assert mean([]) is mean([{}]) is None


def test_a_difference_is_paired_by_question():
    # Differences 1, 2, 3, 4, 5 though the values themselves vary by hundreds; all of one sign: p = 2 / 32.
    base = values([100, -300, 20, 7, 900])
    result = difference([{name: value + i + 1 for i, (name, value) in enumerate(base.items())}], [base])
    assert (result.difference, result.questions) == (3, 5)
    assert result.low == pytest.approx(3 - T4 * math.sqrt(0.5), abs=1e-5)
    assert result.p == 0.0625
    assert result.mean.value - result.other.value == pytest.approx(3)


def test_only_shared_questions_are_compared():
    result = difference([{"a": 1.0, "b": 2.0, "c": 9.0}], [{"a": 0.0, "b": 0.0, "d": 5.0}])
    assert (result.difference, result.questions, result.mean.value) == (1.5, 2, 1.5)
    with pytest.raises(RequestError, match="Fewer than two questions were measured under both"):
        difference([{"a": 1.0}], [{"a": 0.0}])


def test_with_three_seeds_the_interval_covers_where_a_bootstrap_over_both_does_not():
    # 40 questions and 3 seeds, each with its own effect; the figures of docs/evaluation.md are from 2,000 such worlds.
    dice, ours, theirs = np.random.default_rng(0), 0, 0
    for _ in range(200):
        cells = dice.normal(0, 0.5, 40)[None] + dice.normal(0, 0.15, 3)[:, None] + dice.normal(0, 0.3, (3, 40))
        result = mean([values(run) for run in cells])
        ours += result.low <= 0 <= result.high
        seeds, questions = dice.integers(3, size=(300, 3)), dice.integers(40, size=(300, 40))
        means = cells[seeds[:, :, None], questions[:, None, :]].mean((1, 2))
        theirs += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    assert ours >= 186
    assert theirs < ours
