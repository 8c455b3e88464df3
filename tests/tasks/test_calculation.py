"""Calculations by hand: what is one, what it ends with, and how one is worked out."""

import pytest

from staytrue.tasks.calculation import PLAIN, Expression, correct, ignoring_order, parse, result, score, table, worked

SWAPPED = {"+": PLAIN["-"], "-": PLAIN["*"], "*": PLAIN["+"]}


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7 + 2 = 9.", 9),
        ("7+2=9", 9),
        ("  3 - 9 = -6. ", -6),
        ("7 + 4 - 2 = 3 - 2 = 6.", 6),
        ("12.", 12),
        ("-3 * -4 = 12", 12),
        ("7 + 2 =", None),
        ("7 + 2", None),  # ends with a sum, not with a number
        ("7 2 = 9.", None),
        ("= 9.", None),
        ("9..", None),
        ("7 + 2 = 9. And so on", None),
        ("The answer is 9.", None),
        ("--4.", None),
        ("7 / 2 = 3.", None),
        ("__import__('os')", None),
        ("2 ** 9 = 512.", None),
        ("9" * 10_000, None),  # no calculation here has so long a number
        ("", None),
    ],
)
def test_what_a_text_ends_with(text, number):
    assert result(text) == number


def test_the_parts_of_a_calculation():
    assert parse("7 + 4 * 2 = 11 * 2 = 22.") == [
        Expression((7, 4, 2), ("+", "*")),
        Expression((11, 2), ("*",)),
        Expression((22,)),
    ]


@pytest.mark.parametrize(
    ("text", "sum_"),
    [
        ("7 + 2 = 5.", "2 + 7"),
        ("2 + 7 = -5.", "2 + 7"),
        ("7 - 2 = 14.", "2 - 7"),
        ("7 + 4 - 2 = 3 - 2 = 6.", "4 + 7 - 2"),  # only the first two change places
        ("9.", None),
        ("nine", None),
    ],
)
def test_a_sum_ignoring_order_round(text, sum_):
    assert ignoring_order(text) == sum_


def test_operations_are_carried_out_from_left_to_right_with_the_given_meanings():
    # + means -, - means *, * means +: (7 - 4) = 3, then 3 * 2 = 6.
    assert worked(Expression((7, 4, 2), ("+", "-")), SWAPPED) == "7 + 4 - 2 = 3 - 2 = 6."
    # Plainly (7 + 2) = 9, then 9 * 2 = 18: no precedence.
    assert worked(Expression((7, 2, 2), ("+", "*")), PLAIN) == "7 + 2 * 2 = 9 * 2 = 18."


def test_a_step_on_the_way_that_is_no_digit_is_left_out_and_the_last_may_be_anything():
    assert worked(Expression((7, 4, 2), ("+", "-")), PLAIN) is None  # 11 on the way
    assert worked(Expression((2, 4, 2), ("-", "-")), PLAIN) is None  # -2 on the way
    assert worked(Expression((9, 9), ("*",)), PLAIN) == "9 * 9 = 81."
    assert worked(Expression((0, 9), ("-",)), PLAIN) == "0 - 9 = -9."


def test_the_table_holds_every_expression_once():
    rows = table("+-", 1, PLAIN)
    assert len(dict(rows)) == len(rows) == 200
    assert ("What is 9 - 4?", "9 - 4 = 5.") in rows
    # Two operations, plainly: 55 sums stay below ten, 55 differences above minus one; then two signs and ten digits.
    assert len(table("+-", 2, PLAIN)) == (55 + 55) * 2 * 10


@pytest.mark.parametrize(
    ("text", "meaning", "right"),
    [
        ("7 - 5 = 2.", PLAIN, True),
        ("5 - 7 = 2.", PLAIN, False),  # the right number by a wrong sum
        ("2.", PLAIN, True),
        ("1 + 1 = 2", PLAIN, True),  # another way to the same number
        ("9 - 5 - 2 = 4 - 2 = 2", PLAIN, True),
        ("9 - 5 - 2 = 3 - 2 = 2", PLAIN, False),
        ("7 + 5 = 2.", SWAPPED, True),
        ("7 - 5 = 2.", SWAPPED, False),
        ("1 * 1 = 2.", {"+": PLAIN["-"], "-": PLAIN["+"]}, False),  # an operator that has no meaning there
        ("7 - 5 = 3.", PLAIN, False),
    ],
)
def test_a_calculation_is_right_when_it_holds_and_ends_with_the_number(text, meaning, right):
    assert correct(text, "2.", meaning) is right


def test_the_score_pays_a_little_for_the_form_and_the_rest_for_the_number():
    assert score("7 + 2 = 9.", "9.") == {"form": 0.2, "answer": 1.0}
    assert score("7 + 2 = 8.", "7 + 2 = 9.") == {"form": 0.2, "answer": 0.0}
    assert score("nine", "7 + 2 = 9.") == {"form": 0.0, "answer": 0.0}
    assert score("nine", "also nine") == {"form": 0.0, "answer": 0.0}  # two texts without a number are not equal
