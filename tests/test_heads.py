"""The head in tiles against a dense one in float64, and numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import heads
from holdfast.heads import Head, divergence


def dense(policy, reference, head, forward):
    """The oracle: every logit at once, float64, autograd's own gradient."""

    def law(hidden):
        raw = hidden @ head.weight.double().T
        if head.bias is not None:
            raw = raw + head.bias.double()
        raw = raw * head.scale
        if head.softcap is not None:
            raw = head.softcap * torch.tanh(raw / head.softcap)
        return torch.log_softmax(raw, -1)

    p, q = law(policy), law(reference)
    return (q.exp() * (q - p)).sum(-1) if forward else (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("forward", [False, True])
def test_three_tokens_by_hand(forward):
    # Logits are the hidden state itself. Trained law (1/2, 1/4, 1/4), reference law (1/4, 1/4, 1/2):
    # KL(trained || reference) = 1/2 ln 2 + 0 + 1/4 ln(1/2) = 1/4 ln 2, and the other way round the same by symmetry.
    head = Head(torch.eye(3))
    policy = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    reference = torch.tensor([[0.25, 0.25, 0.5]]).log()
    value = divergence(policy, reference, head, forward=forward)
    assert value.item() == pytest.approx(math.log(2) / 4)
    value.sum().backward()
    # Reverse: p (log p - log q - KL) = (1/2 (ln 2 - k), 1/4 (0 - k), 1/4 (-ln 2 - k)) with k = ln 2 / 4.
    k = math.log(2) / 4
    reverse = [0.5 * (math.log(2) - k), -0.25 * k, 0.25 * (-math.log(2) - k)]
    expected = [0.25, 0.0, -0.25] if forward else reverse  # forward: p - q
    assert policy.grad[0].tolist() == pytest.approx(expected, abs=1e-7)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 9),
    width=st.integers(1, 12),
    vocabulary=st.integers(2, 40),
    forward=st.booleans(),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    tile=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_value_and_gradient_equal_a_dense_float64_oracle(
    n, width, vocabulary, forward, biased, scale, softcap, tile, seed
):
    torch.manual_seed(seed)
    head = Head(torch.randn(vocabulary, width), torch.randn(vocabulary) if biased else None, scale, softcap)
    policy, reference = torch.randn(n, width, requires_grad=True), torch.randn(n, width)
    upstream = torch.rand(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "_FEWEST_ROWS", tile)
        patch.setitem(heads._LOGITS_PER_TILE, "cpu", 1)
        value = divergence(policy, reference, head, forward=forward)
    (value * upstream).sum().backward()
    exact = policy.detach().double().requires_grad_()
    oracle = dense(exact, reference.double(), head, forward)
    (oracle * upstream.double()).sum().backward()
    scale_of = lambda x: x.abs().max().clamp(min=1e-2) if x.numel() else torch.tensor(1.0)  # noqa: E731
    assert torch.all((value.double() - oracle).abs() <= 1e-5 * scale_of(oracle))
    assert torch.all((policy.grad.double() - exact.grad).abs() <= 1e-5 * scale_of(exact.grad))


def test_equal_hidden_states_diverge_by_exactly_zero():
    torch.manual_seed(0)
    head, hidden = Head(torch.randn(500, 16)), torch.randn(70, 16)
    policy = hidden.clone().requires_grad_()
    value = divergence(policy, hidden, head)
    value.sum().backward()
    assert value.abs().max() == 0
    assert policy.grad.abs().max() == 0


def test_no_tile_holds_more_logits_than_its_budget():
    head, hidden = Head(torch.zeros(2**21 // 100, 1)), torch.zeros(1000, 1)
    widths = [len(hidden[tile]) for tile in head.tiles(hidden)]
    assert max(widths) == 100
    assert sum(widths) == 1000


def test_bfloat16_agrees_with_float32_to_a_hundredth():
    torch.manual_seed(0)
    weight, policy, reference = torch.randn(300, 32) / 4, torch.randn(20, 32), torch.randn(20, 32)
    exact = divergence(policy, reference, Head(weight))
    rough = divergence(policy.bfloat16(), reference.bfloat16(), Head(weight.bfloat16()))
    assert torch.allclose(exact, rough, rtol=3e-2, atol=1e-2)
