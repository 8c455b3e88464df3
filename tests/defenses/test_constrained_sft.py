"""Constrained SFT: the penalty and its gradient by hand, and that loss plus penalty is the published loss."""

from math import cosh, log, tanh

import pytest
import torch

from by_hand import EVEN, QUARTER, step
from staytrue.defenses.constrained_sft import ConstrainedSFT, log_cosh
from staytrue.step import Step


def with_tokens(seen, tokens):
    return Step(seen.policy, seen.marks, seen._totals, seen._head, seen._replay, torch.tensor(tokens))


def one_answer():
    """Two answer tokens, both the first word: log-ratios log(1/2 / 1/4) = log 2 and log(1/2 / 1/2) = 0."""
    seen = step([[EVEN, EVEN, EVEN]], [[QUARTER, EVEN, EVEN]], [[1, 1, 1]], [[1, 1, 0]], ["task"])
    return with_tokens(seen, [[1, 0, 0]])


def test_two_tokens_by_hand():
    # beta is 1 for the first token: 2 log cosh(log(2) / 2), the second token has not moved; the mean over two.
    value = ConstrainedSFT(first=1.0).penalty(one_answer())
    assert value.item() == pytest.approx(log(cosh(log(2) / 2)), rel=1e-5)


def test_its_gradient_is_the_hyperbolic_tangent_by_hand():
    # d/dd of (2 / beta) log cosh(beta d / 2) is tanh(beta d / 2), over two tokens; d log p / d logits = (1/2, -1/2).
    seen = one_answer()
    ConstrainedSFT(first=1.0).penalty(seen).backward()
    gradient = tanh(log(2) / 2) / 2
    expected = torch.tensor([[[gradient / 2, -gradient / 2], [0.0, 0.0], [0.0, 0.0]]])
    assert torch.allclose(seen.policy.final.grad, expected, atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_loss_plus_penalty_is_the_published_loss_up_to_a_constant(beta):
    # -(2 / beta) log sigmoid(beta d) against -d + (2 / beta) log cosh(beta d / 2): apart by (2 / beta) log 2.
    d = torch.linspace(-3, 3, 13, dtype=torch.float64)
    published = -2 / beta * torch.nn.functional.logsigmoid(beta * d)
    ours = -d + 2 / beta * log_cosh(beta * d / 2)
    assert torch.allclose(published - ours, torch.full_like(d, 2 / beta * log(2)))


def test_log_cosh_near_and_far():
    x = torch.tensor([0.0, 1e-4, -1.0, 50.0, -1000.0], requires_grad=True)
    value = log_cosh(x)
    assert value.tolist() == pytest.approx([0.0, 5e-9, log(cosh(1)), 50 - log(2), 1000 - log(2)], rel=1e-5)
    value.sum().backward()
    assert x.grad.tolist() == pytest.approx([0.0, 1e-4, -tanh(1), 1.0, -1.0], rel=1e-5)


def test_each_answer_of_a_conversation_begins_anew():
    scored = torch.tensor([[0, 1, 1, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0, 1]]).bool()
    betas = ConstrainedSFT(first=1.0, early=2.0, late=3.0, length=2).betas(scored)
    assert betas[0][scored[0]].tolist() == [1, 2, 3, 1, 2]
    assert betas[1][scored[1]].tolist() == [1, 1]
