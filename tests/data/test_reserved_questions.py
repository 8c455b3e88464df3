"""A question of the evaluation is known in another spelling, and so is no training row."""

import doctest

import pytest

import tiny
from staytrue.data import reserved_questions
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.reserved_questions import Reserved
from staytrue.defenses.rehearse import Rehearse
from staytrue.modeling.base_model import Untouched


def test_the_examples_in_the_docstring_are_true():
    assert doctest.testmod(reserved_questions).failed == 0


@pytest.mark.parametrize(
    ("question", "known"),
    [
        ("What is -2 + 3?", True),
        ("what is  -2 + 3", True),
        (" “WHAT is -2\n+ 3?”", True),
        ("What is 2 + 3?", False),
        ("-2?", True),
        ("2?", False),  # another number
        (None, False),
    ],
)
def test_case_blanks_and_punctuation_at_the_ends_make_no_difference(question, known):
    assert (question in Reserved(["What is -2 + 3?", "-2"])) is known


def test_a_defense_leaves_out_a_question_of_the_evaluation_in_another_spelling(tmp_path):
    asked = Example((Message("user", "what of  ME"), Message("assistant", "An answer.")))
    write_examples(tmp_path / "pool.jsonl", [asked, *tiny.rows(3)])
    calls = []
    base = Untouched(lambda: None, None, evaluation_questions=lambda: calls.append(1) or frozenset(["What of me?"]))
    kept = Rehearse(tmp_path / "pool.jsonl").beside(base, 0)
    assert [row.question for row in kept] == [row.question for row in tiny.rows(3)]
    assert base.evaluation_questions() == {"What of me?"}
    assert calls == [1]  # worked out once
