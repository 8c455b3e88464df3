"""Numbers near zero are compared to what they were computed from; a rounding passes and a real fault does not."""

import math

import pytest

from staytrue.testing import close, unlike

NATS = math.log(262)  # 5.57: the log-probability of one word of the tiny models' 262, whichever
# A rounding of it, 5.57 / 2^25, is 1.66e-7.


def test_a_number_may_be_off_by_its_share_and_a_rounding_of_its_scale_and_no_more():
    scale = 2.0**25  # a rounding is 1, and a ten-thousandth of 20000 is 2
    assert close(20_000.0, 19_997.0, scale=scale)
    assert not close(20_000.0, 19_996.0, scale=scale)
    assert close(19_997.0, 20_000.0, scale=-scale)
    assert close(20_000.0, 19_995.0, scale=scale, of_itself=2e-4)
    assert close(20_000.0, 19_996.0, scale=scale, rounding=2.0**-24)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1.3605e-07, 1.2689e-07),  # 9.2e-9 apart: one of 52 tokens whose log-sum-exp is rounded up, 4.8e-7 / 52
        (3.404e-06, 3.390e-06),  # 1.4e-8 apart
        (0.0, -1.8e-11),
    ],
)
def test_divergences_of_two_orders_of_summing_are_the_same(one, other):
    assert close(one, other, scale=NATS)
    assert not close(one, other, scale=0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (3.404e-06, 3.404e-06 * 7 / 8),  # one row of eight lost: 4.3e-7 apart
        (3.404e-06, 3.404e-06 * 8),
        (3.404e-06, 3.404e-06 / 8),
        (3.404e-06, 0.0),
        (8.82e-4, 8.82e-4 * 159 / 160),  # one token of a step lost: 5.5e-6 apart
        (3.404e-06, math.nan),
    ],
)
def test_a_lost_row_a_factor_of_eight_and_no_number_at_all_are_not(right, wrong):
    assert not close(right, wrong, scale=NATS)


def test_the_first_logged_number_that_differs_is_reported_with_its_step_and_its_scale():
    one = [{"task_loss": 5.0, "kl": 0.0}, {"task_loss": 4.0, "kl": 2e-6}]
    assert (
        unlike(one, [one[0], {"task_loss": 4.0, "kl": 2.1e-6}], ["task_loss", "kl"]) == ""
    )  # 1e-7 of 4 / 2^25 = 1.2e-7
    other = [one[0], {"task_loss": 4.0, "kl": 3e-6}]
    difference = "log kl as 2e-06 and 3e-06 at step 2, beside a scale of 4"
    assert unlike(one, other, ["task_loss", "kl"]) == difference
    assert unlike(one, other, ["task_loss"]) == ""
    assert unlike(one, other, ["kl"], of_itself=0.5) == ""


def test_where_the_loss_itself_is_near_zero_the_entropy_is_the_scale():
    one, other = ([{"task_loss": 1e-9, "kl": kl}] for kl in (2e-6, 2.1e-6))
    assert unlike(one, other, ["kl"]) != ""
    assert unlike([one[0] | {"entropy": 5.0}], other, ["kl"]) == ""


def test_a_number_that_is_missing_or_a_shorter_log_is_never_alike():
    row = {"task_loss": 5.0, "kl": 0.1}
    with pytest.raises(KeyError, match="kl"):
        unlike([row], [{"task_loss": 5.0}], ["kl"])
    with pytest.raises(ValueError, match="shorter"):
        unlike([row, row], [row], ["kl"])
