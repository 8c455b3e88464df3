"""KL: every choice of rows and tokens by hand, on three predicted tokens and two layers."""

from math import log

import pytest
import torch

import tiny
from by_hand import EIGHTH, EVEN, QUARTER, step
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.errors import ModelError
from staytrue.testing import Micro

# KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3, and against (1/8, 7/8) 1/2 ln 4 + 1/2 ln 4/7.
SMALL, LARGE = log(4 / 3) / 2, log(16 / 7) / 2
# The other direction: 1/4 ln 1/2 + 3/4 ln 3/2, and 1/8 ln 1/4 + 7/8 ln 7/4.
SMALL_FORWARD, LARGE_FORWARD = log(1 / 2) / 4 + log(3 / 2) * 3 / 4, log(1 / 4) / 8 + log(7 / 4) * 7 / 8


def seen(totals=None):
    """A task row of four tokens and a shorter interleaved one; the last token of a row predicts nothing.

    Divergences: small in the prompt, large and none in the answer; and large in the prompt, small in the answer. Where
    nothing is predicted stands a large one, which must never count.
    """
    return step(
        probabilities=[[EVEN] * 4, [EVEN] * 4],
        references=[[QUARTER, EIGHTH, EVEN, EIGHTH], [EIGHTH, QUARTER, EIGHTH, EIGHTH]],
        real=[[1, 1, 1, 1], [1, 1, 1, 0]],
        scored=[[0, 1, 1, 0], [0, 1, 0, 0]],
        source=["task", "interleaved"],
        totals=totals,
    )


@pytest.mark.parametrize(
    ("on", "tokens", "expected"),
    [
        ("all", "scored", (LARGE + 0 + SMALL) / 3),
        ("all", "prompt", (SMALL + LARGE) / 2),
        ("all", "all", (SMALL + LARGE + 0 + LARGE + SMALL) / 5),
        ("task", "scored", (LARGE + 0) / 2),
        ("task", "prompt", SMALL),
        ("task", "all", (SMALL + LARGE + 0) / 3),
        ("interleaved", "scored", SMALL),
        ("interleaved", "prompt", LARGE),
        ("interleaved", "all", (LARGE + SMALL) / 2),
    ],
)
def test_it_is_the_mean_over_the_chosen_tokens_of_the_chosen_rows(on, tokens, expected):
    assert KL(on=on, tokens=tokens).penalty(seen()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("forward", "expected"), [(False, (LARGE + 0 + SMALL) / 3), (True, (LARGE_FORWARD + 0 + SMALL_FORWARD) / 3)]
)
def test_the_trained_distribution_comes_first_unless_forward(forward, expected):
    assert SMALL > 1.05 * SMALL_FORWARD  # so that the two directions cannot be mistaken for each other
    assert KL(forward=forward).penalty(seen()).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("forward", "gradient"), [(False, log(3) / 4), (True, 1 / 4)])
def test_its_gradient_is_on_the_chosen_tokens_only(forward, gradient):
    # p (ln p/q - KL): 1/2 (ln 2 - 1/2 ln 4/3) = 1/4 ln 3 on the first word, its opposite on the second; forward: p - q.
    forward_step = seen()
    KL(on="interleaved", forward=forward).penalty(forward_step).backward()
    expected = torch.zeros(2, 4, 2)
    expected[1, 1] = torch.tensor([gradient, -gradient])
    assert torch.allclose(forward_step.policy.final.grad, expected, atol=1e-6)


def test_it_is_a_mean_over_the_whole_optimizer_step():
    # Other micro-batches hold three more scored tokens of interleaved rows: a quarter of the mean comes from here.
    totals = torch.tensor([[2, 3], [4, 8]])
    assert KL(on="interleaved").penalty(seen(totals)).item() == pytest.approx(SMALL / 4, rel=1e-6)
    assert KL(on="interleaved", tokens="prompt").penalty(seen(totals)).item() == pytest.approx(LARGE / 4, rel=1e-6)


def test_no_such_token_anywhere_is_no_penalty():
    nothing = step([[EVEN, EVEN]], [[EIGHTH, EIGHTH]], real=[[1, 1]], scored=[[0, 1]], source=["task"])
    assert KL(on="interleaved").penalty(nothing).item() == 0


def test_a_head_that_cannot_be_computed_is_refused_at_attach(monkeypatch):
    model = tiny.lora(tiny.model())
    plain = model.base_model.model.forward
    monkeypatch.setattr(
        model.base_model.model,
        "forward",
        lambda *a, **k: (lambda out: out.__setitem__("logits", out.logits * 2) or out)(plain(*a, **k)),
    )
    with pytest.raises(ModelError, match="The head of Qwen2ForCausalLM does more"):
        Micro([KL()], model, tiny.tokenizer(), tiny.rows(2))
    Micro([LDIFS()], model, tiny.tokenizer(), tiny.rows(2))  # needs no head
