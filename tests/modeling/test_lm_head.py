"""The head in tiles against a dense one in float64, and numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_trainers import stored_once
from staytrue.modeling import lm_head
from staytrue.modeling.fused_loss import divergence, nll, token_losses
from staytrue.modeling.lm_head import Head


def log_distribution(hidden, head):
    """Log-probabilities (n, V), every logit at once, float64."""
    raw = hidden @ head.weight.double().T
    if head.bias is not None:
        raw = raw + head.bias.double()
    raw = raw * head.scale
    if head.softcap is not None:
        raw = head.softcap * torch.tanh(raw / head.softcap)
    return torch.log_softmax(raw, -1)


def dense(policy, reference, head, forward):
    """The oracle: dense, with autograd's own gradient."""
    p, q = log_distribution(policy, head), log_distribution(reference, head)
    return (q.exp() * (q - p)).sum(-1) if forward else (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("forward", [False, True])
def test_three_tokens_by_hand(forward):
    # Logits are the hidden state itself. Trained: (1/2, 1/4, 1/4), reference: (1/4, 1/4, 1/2):
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


def terms(policy, reference, head, forward):
    """The sizes of what is added up before it cancels; (n,) for the value, (n, D) for the gradient.

    Relative to these, 1e-5 is what float32 can promise; relative to what cancelling leaves nothing can be.
    """
    ours, theirs = log_distribution(policy, head), log_distribution(reference, head)
    sizes = 1 + ours.abs() + theirs.abs()
    value = ((theirs if forward else ours).exp() * sizes).sum(-1)
    gradient = (ours.exp() + theirs.exp()) * (sizes + value.unsqueeze(-1))
    return value, abs(head.scale) * gradient @ head.weight.double().abs()


@settings(max_examples=100, deadline=None)
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
        patch.setattr(lm_head, "_FEWEST_ROWS", tile)
        patch.setitem(lm_head._LOGITS_PER_TILE, "cpu", 1)
        value = divergence(policy, reference, head, forward=forward)
    (value * upstream).sum().backward()
    exact = policy.detach().double().requires_grad_()
    oracle = dense(exact, reference.double(), head, forward)
    (oracle * upstream.double()).sum().backward()
    value_terms, gradient_terms = terms(exact.detach(), reference.double(), head, forward)
    assert torch.all((value.double() - oracle).abs() <= 1e-5 * value_terms)
    assert torch.all((policy.grad.double() - exact.grad).abs() <= 1e-5 * upstream.unsqueeze(-1) * gradient_terms)


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.5, None), (1.0, 30.0)])
def test_at_a_models_own_sizes_it_is_the_oracle_to_a_relative_1e_5(forward, scale, softcap):
    # Five thousand words, divergences of tenths of a nat to a few nats; relative to the largest of them.
    torch.manual_seed(0)
    head = Head(torch.randn(5_000, 64) / 4, None, scale, softcap)
    reference = torch.randn(200, 64)
    policy = (reference + 0.5 * torch.randn(200, 64)).requires_grad_()
    value = divergence(policy, reference, head, forward=forward)
    value.sum().backward()
    exact = policy.detach().double().requires_grad_()
    oracle = dense(exact, reference.double(), head, forward)
    oracle.sum().backward()
    assert (value.double() - oracle).abs().max() <= 1e-5 * oracle.abs().max()
    assert (policy.grad.double() - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()


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


def test_the_likelihood_of_two_tokens_by_hand():
    # Law (1/2, 1/4, 1/4): the second word costs 2 ln 2, and its slope on the logits is p - said.
    head = Head(torch.eye(3))
    policy = torch.tensor([[0.5, 0.25, 0.25]] * 2).log().requires_grad_()
    value = nll(policy, torch.tensor([1, 0]), head)
    assert value.tolist() == pytest.approx([2 * math.log(2), math.log(2)])
    (value * torch.tensor([1.0, 2.0])).sum().backward()
    assert policy.grad[0].tolist() == pytest.approx([0.5, -0.75, 0.25])
    assert policy.grad[1].tolist() == pytest.approx([-1.0, 0.5, 0.5])


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(0, 9),
    width=st.integers(1, 12),
    vocabulary=st.integers(2, 40),
    biased=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    tile=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_likelihood_and_its_gradient_equal_a_dense_float64_oracle(
    n, width, vocabulary, biased, scale, softcap, tile, seed
):
    torch.manual_seed(seed)
    head = Head(torch.randn(vocabulary, width), torch.randn(vocabulary) if biased else None, scale, softcap)
    policy, tokens = torch.randn(n, width, requires_grad=True), torch.randint(vocabulary, (n,))
    upstream = torch.rand(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "_FEWEST_ROWS", tile)
        patch.setitem(lm_head._LOGITS_PER_TILE, "cpu", 1)
        value = nll(policy, tokens, head)
    (value * upstream).sum().backward()
    exact = policy.detach().double().requires_grad_()
    logs = log_distribution(exact, head)
    oracle = -logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    (oracle * upstream.double()).sum().backward()
    # What float32 can promise is relative to what is added up: here the logits' own sizes and both distributions.
    sizes = 1 + logs.detach().abs().max(-1).values if n else torch.zeros(0)
    assert torch.all((value.double() - oracle).abs() <= 1e-5 * sizes)
    sensitivities = 2 * abs(head.scale) * head.weight.double().abs().sum(0)
    assert torch.all((policy.grad.double() - exact.grad).abs() <= 1e-5 * upstream.unsqueeze(-1) * sensitivities)


def test_likelihood_at_a_models_own_sizes_is_the_oracle_to_a_relative_1e_5():
    torch.manual_seed(0)
    head, tokens = Head(torch.randn(5_000, 64) / 4), torch.randint(5_000, (200,))
    policy = torch.randn(200, 64, requires_grad=True)
    value = nll(policy, tokens, head)
    value.sum().backward()
    exact = policy.detach().double().requires_grad_()
    oracle = torch.nn.functional.cross_entropy(exact @ head.weight.double().T, tokens, reduction="none")
    oracle.sum().backward()
    assert (value.double() - oracle).abs().max() <= 1e-5 * oracle.abs().max()
    assert (policy.grad.double() - exact.grad).abs().max() <= 1e-5 * exact.grad.abs().max()


def both(seed=0, n=7, **changes):
    torch.manual_seed(seed)
    head, tokens = Head(torch.randn(40, 12), torch.randn(40)), torch.randint(40, (n,))
    policy, reference = torch.randn(n, 12, requires_grad=True), torch.randn(n, 12)
    return policy, token_losses(policy, tokens, head, reference=reference, **changes), head, tokens, reference


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_one_pass_says_what_passes_of_their_own_say(forward, temperature):
    policy, losses, head, tokens, reference = both(forward=forward, temperature=temperature)
    logs = torch.log_softmax((policy @ head.weight.T + head.bias) / temperature, -1)
    assert torch.allclose(losses.log_probs, logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), atol=1e-5)
    assert torch.allclose(losses.entropy, -(logs.exp() * logs).sum(-1), atol=1e-5)
    assert torch.equal(losses.is_top1, logs.argmax(-1) == tokens)
    assert torch.equal(losses.divergence, divergence(policy, reference, head, forward=forward))
    up, down = torch.rand(7), torch.rand(7)
    (losses.log_probs * up + losses.divergence * down).sum().backward()
    apart = policy.detach().clone().requires_grad_()
    logs = torch.log_softmax((apart @ head.weight.T + head.bias) / temperature, -1)
    alone = divergence(apart, reference, head, forward=forward)
    (logs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * up + alone * down).sum().backward()
    assert torch.allclose(policy.grad, apart.grad, atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 9),
    vocabulary=st.integers(2, 40),
    forward=st.booleans(),
    temperature=st.sampled_from([1.0, 0.7]),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    tile=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_one_pass_in_tiles_with_a_capped_head_equals_a_dense_float64_oracle(
    n, vocabulary, forward, temperature, scale, softcap, tile, seed
):
    torch.manual_seed(seed)
    head, tokens = (
        Head(torch.randn(vocabulary, 6), torch.randn(vocabulary), scale, softcap),
        torch.randint(vocabulary, (n,)),
    )
    policy, reference = torch.randn(n, 6, requires_grad=True), torch.randn(n, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_head, "_FEWEST_ROWS", tile)
        patch.setitem(lm_head._LOGITS_PER_TILE, "cpu", 1)
        losses = token_losses(policy, tokens, head, reference=reference, forward=forward, temperature=temperature)
        (losses.log_probs * -0.25 + losses.divergence * 0.5).sum().backward()
    exact = policy.detach().double().requires_grad_()
    raw = torch.log_softmax(log_distribution(exact, head) / temperature, -1)  # log-probabilities will do for logits
    log_probs = raw.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    (log_probs * -0.25 + dense(exact, reference.double(), head, forward) * 0.5).sum().backward()
    sizes = 1 + raw.detach().abs().max(-1).values
    assert torch.all((losses.log_probs.double() - log_probs).abs() <= 1e-5 * sizes)
    assert torch.all((losses.entropy.double() + (raw.exp() * raw).sum(-1)).abs() <= 1e-5 * sizes)
    sensitivities = 2 * abs(scale) / temperature * head.weight.double().abs().sum(0)
    bound = 0.25 * sensitivities + 0.5 * terms(exact.detach(), reference.double(), head, forward)[1]
    assert torch.all((policy.grad.double() - exact.grad).abs() <= 1e-5 * bound)


def test_in_bfloat16_one_pass_gives_gradients_to_a_hundredth_of_the_largest():
    torch.manual_seed(0)
    tensors = [torch.randn(300, 32) / 4, torch.randn(20, 32), torch.randn(20, 32)]
    tensors, tokens = [one.bfloat16() for one in tensors], torch.randint(300, (20,))

    def gradient(dtype):
        weight, policy, reference = (one.to(dtype, copy=True) for one in tensors)
        policy.requires_grad_()
        losses = token_losses(policy, tokens, Head(weight), reference=reference)
        (losses.log_probs * -0.003 + losses.divergence * 0.006).sum().backward()
        return policy.grad.float()

    exact = gradient(torch.float32)
    assert (gradient(torch.bfloat16) - exact).abs().max() <= 1e-2 * exact.abs().max()


def test_of_two_likeliest_tokens_in_half_precision_the_first_is_meant():
    head = Head(torch.eye(3).bfloat16())
    policy = torch.tensor([[1.0, 1.0, 0.0]] * 2).bfloat16()
    assert token_losses(policy, torch.tensor([0, 1]), head).is_top1.tolist() == [True, False]


def test_under_autocast_a_small_divergence_keeps_its_digits():
    torch.manual_seed(0)
    head, hidden, tokens = Head(torch.randn(1000, 64) / 8), torch.randn(50, 64), torch.randint(1000, (50,))
    moved = (hidden + 0.01 * torch.randn(50, 64)).requires_grad_()
    exact = token_losses(moved, tokens, head, reference=hidden).divergence
    with torch.autocast("cpu", torch.bfloat16):
        rough = token_losses(moved, tokens, head, reference=hidden).divergence
    assert torch.equal(rough, exact)


def test_the_log_probabilities_may_go_unused():
    policy, losses, head, _, reference = both()
    losses.divergence.sum().backward()
    alone = policy.detach().clone().requires_grad_()
    divergence(alone, reference, head).sum().backward()
    assert torch.allclose(policy.grad, alone.grad, atol=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_the_backward_pass_reads_each_saved_tensor_once(trained):
    head, tokens = Head(torch.randn(40, 12, requires_grad=trained), None), torch.randint(40, (7,))
    plain, once = (torch.ones(7, 12, requires_grad=True) for _ in range(2))
    nll(plain, tokens, head).sum().backward()
    with stored_once():
        loss = nll(once, tokens, head).sum()
    loss.backward()
    assert torch.equal(plain.grad, once.grad)
