"""Two conditions on the same questions and seeds: by hand, and in worlds without a difference."""

import math

import numpy as np
import pytest

from staytrue.errors import RequestError
from staytrue.evals.stats import compare as module
from staytrue.evals.stats.compare import benjamini_hochberg, compare
from staytrue.evals.stats.intervals import Margins


def counted(hits, samples):
    return {f"q{i}": (int(h), samples) for i, h in enumerate(hits)}


def test_two_rates_of_nothing_are_not_a_difference_known_to_be_nothing():
    # Each 0 to 33.851 (10 questions, tests of statistics); their errors unrelated, so 33.851 either way, and 80 % power
    # takes (1.95996 + 0.84162) / 1.95996 = 1.42941 of that.
    result = compare([counted([0] * 10, 4)], [counted([0] * 10, 4)])
    assert (result.difference, result.p, result.questions, result.seeds) == (0, 1, 10, 1)
    assert (result.low, result.high) == pytest.approx((-33.851, 33.851), abs=1e-3)
    assert result.detectable == pytest.approx(1.42941 * 33.851, abs=1e-3)


def test_few_questions_are_flipped_in_all_ways():
    # Five questions all one way: of 32 ways to flip them two part the conditions as far, 2 / 32.
    result = compare([counted([1] * 5, 1)], [counted([0] * 5, 1)])
    assert (result.difference, result.p) == (100, 0.0625)
    # 1, 1, 1, -1 is 2 or further in 4 + 4 (three against one) and 2 (all alike) of 16 ways.
    assert module.sign_flip_p([1, 1, 1, -1]) == 10 / 16
    assert module.sign_flip_p([0.0, 0.0]) == 1


def test_many_questions_are_flipped_at_random_and_never_give_nought():
    assert module.sign_flip_p([1.0] * 40) == 1 / 10_000
    # 20 alike and 20 the other way, but for one: a sum of 2, or further, in 1 - C(40, 20) / 2^40 = 0.8746 of all ways.
    assert module.sign_flip_p([1.0] * 21 + [-1.0] * 19) == pytest.approx(0.8746, abs=0.01)


def test_the_chance_is_the_level_at_which_the_interval_reaches_nought():
    seen = Margins(0.0004, 0.0009, 0.0001, 120, 5)
    level = module.interval_p(0.08, seen)
    assert math.sqrt(seen.square(level)) == pytest.approx(0.08, rel=1e-6)
    # With one seed it is Student's own: 2.0211 of 40 questions' standard errors leave 5 %.
    assert module.interval_p(0.020227, Margins(0.0001, 0, 0, 40, 1)) == pytest.approx(0.05, abs=1e-4)


def test_errors_that_go_together_make_the_difference_surer():
    hits = [0, 4, 1, 3, 0, 4, 2, 2] * 5
    moved = [min(4, h + (i % 4 == 0)) for i, h in enumerate(hits)]
    paired = compare([counted(moved, 4)], [counted(hits, 4)])
    other = compare([counted(moved, 4)], [counted([*hits[1:], hits[0]], 4)])
    assert paired.difference == pytest.approx(other.difference) == pytest.approx(6.25)
    assert paired.high - paired.low < (other.high - other.low) / 2
    assert paired.p < 0.01 < 0.1 < other.p


def test_a_difference_of_one_seed_of_three_is_no_finding():
    # The second seed alone differs, on every question: sure over questions, unsure over seeds.
    against = [counted([1] * 30, 4)] * 3
    result = compare([counted([1] * 30, 4), counted([4] * 30, 4), counted([1] * 30, 4)], against)
    assert result.difference == 25
    assert result.low < 0 < result.high
    assert result.p > 0.2
    assert result.seeds == 3


def test_only_what_both_answered_counts():
    ours = {"a": (2, 4), "b": (1, 4), "c": (4, 4), "d": (0, 0)}
    theirs = {"a": (1, 4), "b": (0, 4), "c": (0, 0), "d": (4, 4)}
    result = compare([ours], [theirs])
    assert (result.difference, result.questions) == (25, 2)


def test_seeds_and_questions_must_be_the_same_ones():
    run = counted([1, 2], 4)
    with pytest.raises(RequestError, match="2 seeds against 1"):
        compare([run, run], [run])
    with pytest.raises(RequestError, match="No question was answered under both"):
        compare([run], [{"other": (1, 4)}])


@pytest.mark.parametrize("seeds", [1, 3])
def test_questions_of_one_group_are_refused_because_they_give_no_interval(seeds):
    ours, theirs = [{"a": (3, 8)}] * seeds, [{"a": (0, 8)}] * seeds
    with pytest.raises(RequestError, match=r"is one group of questions.*Ask both further questions"):
        compare(ours, theirs)


def test_an_interval_contains_0_exactly_where_p_is_above_5_percent():
    # 0 against 3 % with 120 questions, 0 against 30 % with 8, 0 against 5 % of one answer each, and no difference.
    # In half of the first worlds the sign-flip test alone is below 0.05 while the interval contains 0.
    rng = np.random.default_rng(0)
    widened = 0
    for questions, samples, rates in ((120, 4, (0, 0.03)), (8, 4, (0, 0.3)), (120, 1, (0, 0.05)), (40, 4, (0.1, 0.1))):
        for _ in range(25):
            chances = [rng.beta(rate, 1 - rate, questions) if rate else np.zeros(questions) for rate in rates]
            result = compare(*([counted(rng.binomial(samples, chance), samples)] for chance in chances))
            assert (result.low <= 0 <= result.high) == (result.p > 0.05)
            assert result.low <= result.difference <= result.high
            widened += result.difference != 0 and 0 in (result.low, result.high)
    assert widened


@pytest.mark.parametrize("world", [880, 5497])
def test_the_interval_of_two_seeds_agrees_with_p_where_its_half_width_rises_with_the_level(world):
    rng, sides = np.random.default_rng(world), []  # two worlds in which it does, of some thousands
    for rate in rng.choice([0.02, 0.1, 0.3, 0.5, 0.9], 2):
        chances = rng.beta(2 * rate, 2 * (1 - rate), 24)
        seeds = ([rng.binomial(4, np.clip(one + rng.normal(0, 0.1), 0, 1)) for one in chances] for _ in range(2))
        sides.append([counted(hits, 4) for hits in seeds])
    result = compare(*sides)
    assert result.low < 0 < result.high
    assert result.p > 0.05


def test_q_values_by_hand():
    # 0.01 * 4/1, 0.03 * 4/2 but no more than 0.04 * 4/3, 0.5 * 4/4.
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]) == []


def test_few_differences_are_found_where_there_is_none(monkeypatch):
    # 24 questions, 3 seeds a condition that differ by 0.5 on the log-odds; 5 % of 200 worlds, with a standard error of
    # 1.6. Over questions alone about a third would be called different.
    monkeypatch.setattr(module, "_FLIPS", 499)
    rng = np.random.default_rng(0)
    rejected, covered = 0, 0
    for _ in range(200):
        questions = rng.standard_normal((24, 1))
        odds = [questions + 0.5 * rng.standard_normal((1, 3)) for _ in range(2)]
        pair = [[counted(seed, 20) for seed in rng.binomial(20, 1 / (1 + np.exp(-o))).T] for o in odds]
        seen = compare(*pair)
        rejected += seen.p <= 0.05
        covered += seen.low <= 0 <= seen.high
    assert rejected / 200 <= 0.09
    assert covered / 200 >= 0.91


def test_what_is_called_detectable_is_detected_four_times_of_five(monkeypatch):
    # 120 questions of 20 samples, in every world the same distribution; 80 % of 150 has a standard error of 3.3.
    monkeypatch.setattr(module, "_FLIPS", 499)
    rng = np.random.default_rng(1)

    def seen(apart):
        chance = rng.beta(2, 4, 120)
        both = [rng.binomial(20, np.clip(chance + shift, 0, 1)) for shift in (apart / 100, 0)]
        return compare(*([counted(hits, 20)] for hits in both))

    detectable = np.mean([seen(0).detectable for _ in range(20)])
    assert 2 < detectable < 6
    assert 0.7 <= np.mean([seen(detectable).p <= 0.05 for _ in range(150)]) <= 0.9
