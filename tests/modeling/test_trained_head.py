"""The losses under a head that is trained: against autograd on dense logits in float64, and numbers by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from staytrue.modeling import lm_head
from staytrue.modeling.fused_loss import divergence, nll
from staytrue.modeling.lm_head import Head


def dense(hidden, weight, bias, scale, softcap):
    """Log-probabilities (n, V), every logit at once."""
    raw = hidden @ weight.T + (0 if bias is None else bias)
    raw = raw * scale
    return (raw if softcap is None else softcap * torch.tanh(raw / softcap)).log_softmax(-1)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 9),
    kind=st.sampled_from(["reverse", "forward", "nll"]),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    softcap=st.sampled_from([None, 3.0]),
    tile=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_value_and_all_gradients_equal_a_dense_float64_oracle(n, kind, biased, scale, softcap, tile, seed):
    torch.manual_seed(seed)
    width, vocabulary = 5, 17
    weight, bias = torch.randn(vocabulary, width), torch.randn(vocabulary) if biased else None
    theirs = Head(weight + torch.randn_like(weight) / 2, bias, scale, softcap)
    trained = [t.clone().requires_grad_() for t in (torch.randn(n, width), weight, *([bias] if biased else []))]
    head = Head(trained[1], trained[2] if biased else None, scale, softcap)
    reference, tokens, upstream = torch.randn(n, width), torch.randint(vocabulary, (n,)), torch.rand(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "_FEWEST_ROWS", tile)
        patch.setitem(lm_head._LOGITS_PER_TILE, "cpu", 1)
        if kind == "nll":
            value = nll(trained[0], tokens, head)
        else:
            value = divergence(trained[0], reference, head, forward=kind == "forward", reference_head=theirs)
        (value * upstream).sum().backward()
    exact = [t.detach().double().requires_grad_() for t in trained]
    ours = dense(exact[0], exact[1], exact[2] if biased else None, scale, softcap)
    other = dense(reference.double(), theirs.weight.double(), None if bias is None else bias.double(), scale, softcap)
    if kind == "nll":
        oracle = -ours.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    else:
        p, q = (other, ours) if kind == "forward" else (ours, other)
        oracle = (p.exp() * (p - q)).sum(-1)
    (oracle * upstream.double()).sum().backward()
    assert torch.allclose(value.double(), oracle, rtol=1e-4, atol=1e-5)
    for one, two in zip(trained, exact, strict=True):
        assert torch.allclose(one.grad.double(), two.grad, rtol=1e-4, atol=1e-5)


def test_a_known_change_of_one_weight_of_the_head_has_the_divergence_of_the_formula():
    # Hidden state (1, 0), heads I and diag(ln 2, 1): logits (ln 2, 0) and (1, 0) before it was changed.
    before = Head(torch.eye(2))
    weight = torch.tensor([[math.log(2), 0.0], [0.0, 1.0]], requires_grad=True)
    hidden = torch.tensor([[1.0, 0.0]])
    value = divergence(hidden, hidden, Head(weight), reference_head=before)
    p, q = 2 / 3, math.e / (1 + math.e)
    assert float(value.detach()) == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-5)
    value.sum().backward()
    # d KL / d logit_1 = p (1 - p) (log(p / q) - log((1 - p) / (1 - q))), and the hidden state's first entry is 1.
    derivative = p * (1 - p) * (math.log(p / q) - math.log((1 - p) / (1 - q)))
    assert weight.grad.flatten().tolist() == pytest.approx([derivative, 0, -derivative, 0], rel=1e-5)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_move_value_and_gradients_are_exactly_0(forward, dtype):
    torch.manual_seed(0)
    weight = torch.randn(300, 16, dtype=dtype)
    hidden, trained = torch.randn(40, 16, dtype=dtype, requires_grad=True), weight.clone().requires_grad_()
    value = divergence(hidden, hidden.detach(), Head(trained), forward=forward, reference_head=Head(weight))
    value.sum().backward()
    assert not value.any()
    assert not trained.grad.any()
    assert not hidden.grad.any()
