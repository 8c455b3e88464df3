"""Anchor: its own rows and nothing else, by hand on three tokens and two layers; whose answers, and which prompts."""

from math import log

import pytest
import torch

import tiny
from by_hand import EIGHTH, EVEN, QUARTER, step
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.tokenize import Encoded
from staytrue.defenses.anchor import Anchor
from staytrue.errors import RecipeError
from staytrue.modeling.base_model import Untouched
from staytrue.training.padded_batch import counts_of

SMALL, LARGE = log(4 / 3) / 2, log(16 / 7) / 2  # against (1/4, 3/4) and (1/8, 7/8): see test_kl.py
SMALL_FORWARD, LARGE_FORWARD = log(1 / 2) / 4 + log(3 / 2) * 3 / 4, log(1 / 4) / 8 + log(7 / 4) * 7 / 8

OWN = Encoded([7, 8, 9], [-100, 8, 9], "anchor")  # positions 0 and 1 predict its answer's two tokens


def side_rows():
    """One forward for two defenses' auxiliary rows: the first row is the anchor's own, the second another defense's.

    Divergences: small, large, none; and large three times.
    """
    return step(
        laws=[[EVEN, EVEN, EVEN], [EVEN, EVEN, EVEN]],
        references=[[QUARTER, EIGHTH, EVEN], [EIGHTH, EIGHTH, EIGHTH]],
        real=[[1, 1, 1], [1, 1, 1]],
        scored=[[1, 1, 0], [1, 1, 0]],
        source=["task", "task"],
        totals=torch.tensor([[100, 300], [50, 70]]),  # of the training rows: none of the anchor's business
    )


@pytest.mark.parametrize(
    ("forward", "expected"), [(False, (SMALL + LARGE) / 2), (True, (SMALL_FORWARD + LARGE_FORWARD) / 2)]
)
def test_it_is_the_mean_over_its_own_answer_tokens_only(forward, expected):
    own = side_rows().rows(0, 1, counts_of([OWN]))
    value = Anchor("unread", forward=forward).penalty(own)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_its_own_rows_elsewhere_in_the_optimizer_step_count_too():
    # Three such rows are due in the step, six answer tokens, and one of the rows is here.
    own = side_rows().rows(0, 1, counts_of([OWN] * 3))
    assert Anchor("unread").penalty(own).item() == pytest.approx((SMALL + LARGE) / 6, rel=1e-6)


def test_its_gradient_is_on_its_own_answer_tokens_only():
    # On the first word p (ln p/q - KL): 1/4 ln 3 and 1/4 ln 7, each over two tokens.
    whole = side_rows()
    Anchor("unread").penalty(whole.rows(0, 1, counts_of([OWN]))).backward()
    expected = torch.zeros(2, 3, 2)
    expected[0, 0] = torch.tensor([log(3) / 8, -log(3) / 8])
    expected[0, 1] = torch.tensor([log(7) / 8, -log(7) / 8])
    assert torch.allclose(whole.policy.final.grad, expected, atol=1e-6)


def prompts(folder, *rows):
    write_examples(folder / "prompts.jsonl", rows)
    return folder / "prompts.jsonl"


def asks(question, answer=None):
    turns = [Message("user", question)] + ([Message("assistant", answer)] if answer else [])
    return Example(tuple(turns))


def test_given_answers_are_the_files_and_evaluation_questions_are_left_out(tmp_path):
    base = Untouched(lambda: None, tiny.tokenizer(), evaluation_questions=lambda: frozenset(["asked"]))
    file = prompts(tmp_path, asks("one", "1"), asks("asked", "2"))
    (row,) = Anchor(file, answers="given").beside(base, 0)
    assert (row.question, row.answer, row.source) == ("one", "1", "anchor")
    assert base.notes["anchor/evaluation_questions_left_out"] == 1


def test_sampled_answers_are_the_untouched_models_whatever_the_adapter_has_learnt(tmp_path):
    file = prompts(tmp_path, asks("one", "never read"), asks("two"))
    still, moved = tiny.lora(tiny.model()), tiny.lora(tiny.model())
    tiny.nudge(moved, 1.0)
    rows = [Anchor(file).beside(Untouched(lambda m=m: m, tiny.tokenizer()), 0) for m in (still, moved)]
    assert rows[0] == rows[1]
    assert [row.question for row in rows[0]] == ["one", "two"]
    assert all(row.answer not in ("", "never read") for row in rows[0])


def test_given_answers_that_are_missing_are_refused_with_the_row(tmp_path):
    file = prompts(tmp_path, asks("one", "1"), asks("two"))
    with pytest.raises(RecipeError, match=r"row 2 of .* ends without an answer"):
        Anchor(file, answers="given").beside(Untouched(lambda: None, tiny.tokenizer()), 0)
