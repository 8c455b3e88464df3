"""Rehearse: two tokens by hand, the model's own loss, and what it leaves out."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from staytrue.data.examples import Example, Message, write_examples
from staytrue.defenses.rehearse import Rehearse
from staytrue.errors import RecipeError
from staytrue.evals.questions.shipped_questions import shipped_texts
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.lm_head import Head
from staytrue.step import Activations, Marks, Step
from staytrue.testing import Micro


def pool(folder, rows):
    write_examples(folder / "pool.jsonl", rows)
    return folder / "pool.jsonl"


def test_two_tokens_by_hand():
    # Two words in the vocabulary; the head is the identity, so hidden states are logits. The tokens read are
    # 0 1 0: the first position should say 1 and gives it 1/4, the second should say 0 and gives it 1/2.
    log_probs = torch.tensor([[[3 / 4, 1 / 4], [1 / 2, 1 / 2], [1 / 8, 7 / 8]]]).log().requires_grad_()
    real, scored = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])
    marks = Marks(real, scored, torch.zeros(1, 3, dtype=torch.long))
    step = Step(
        Activations({}, log_probs),
        marks,
        torch.tensor([[4, 6], [0, 0]]),  # the whole step has four scored tokens, two of them elsewhere
        lambda: Head(torch.eye(2)),
        lambda: pytest.fail("the reference was computed"),
        tokens=torch.tensor([[0, 1, 0]]),
    )
    value = Rehearse(pool="").penalty(step)
    assert value.item() == pytest.approx((math.log(4) + math.log(2)) / 4)
    value.backward()
    assert log_probs.grad[0, 0].tolist() == pytest.approx([3 / 16, -3 / 16])  # (p - said) / 4 = (3/4, 1/4 - 1) / 4
    assert log_probs.grad[0, 2].abs().max() == 0


def test_it_is_the_models_own_loss_on_the_rows(tmp_path):
    model, tokenizer = tiny.lora(tiny.model()), tiny.tokenizer()
    rows = tiny.rows(4)
    micro = Micro([Rehearse(pool(tmp_path, rows), share=1.0, weight=1.0)], model, tokenizer, rows)
    value = micro.penalty()
    labels = torch.full_like(micro.inputs["input_ids"], -100)
    for i, row in enumerate(micro.encoded):  # the same four rows, in another order
        labels[i, : len(row.labels)] = torch.tensor(row.labels)
    with torch.no_grad():
        expected = model(**micro.inputs, labels=labels).loss
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert micro.forwards == {"trained": 2, "reference": 0}


def test_repeated_rows_and_evaluation_questions_are_left_out_and_noted(tmp_path):
    reserved = sorted(shipped_texts())[0]
    row = Example((Message("user", reserved), Message("assistant", "An answer.")))
    base = Untouched(lambda: None, None)
    kept = Rehearse(pool(tmp_path, [row, *tiny.rows(3), *tiny.rows(1)])).beside(base, 0)
    assert [r.question for r in kept] == [r.question for r in tiny.rows(3)]
    assert base.notes == {"rehearse/repeated_rows_left_out": 1, "rehearse/evaluation_questions_left_out": 1}
    rows = [replace(tiny.rows(1)[0], extra={"tools": [{"name": name}]}) for name in ("look", "glance")]
    assert len(Rehearse(pool(tmp_path, rows)).beside(base, 0)) == 2
    with pytest.raises(RecipeError, match=r"holds nothing but evaluation questions, .* Give `pool` a file"):
        Rehearse(pool(tmp_path, [row])).beside(base, 0)
