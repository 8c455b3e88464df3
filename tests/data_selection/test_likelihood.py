"""Likelihood and entropy in blocks: by hand, against the softmax over the whole vocabulary."""

from math import log

import pytest
import torch

from staytrue.data_selection import likelihood as module
from staytrue.data_selection.likelihood import likelihood
from staytrue.modeling.lm_head import Head


@pytest.fixture(params=[(1, 1), (2, 3), (3, 2), (100, 100)])
def blocks(request, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", {"cpu": request.param})


def test_a_distribution_by_hand(blocks):
    # Weights 1, 1, 2, 4 of 8: -log(2/8), -log(4/8); entropy (2 * log(8) + 2 * log(4) + 4 * log(2)) / 8 = 14/8 log(2).
    head = Head(torch.tensor([[0.0], [0.0], [log(2)], [log(4)]]))
    nll, entropy = likelihood(torch.ones(2, 1), torch.tensor([2, 3]), head, entropy=True)
    assert nll.tolist() == pytest.approx([log(4), log(2)])
    assert entropy.tolist() == pytest.approx([14 / 8 * log(2)] * 2)


@pytest.mark.parametrize(
    ("bias", "scale", "softcap"), [(None, 1.0, None), (torch.randn(7), 0.5, None), (torch.randn(7), 2.0, 3.0)]
)
def test_it_is_the_softmax_over_the_whole_vocabulary(blocks, bias, scale, softcap):
    noise = torch.Generator().manual_seed(0)
    head = Head(torch.randn(7, 4, generator=noise), bias, scale, softcap)
    hidden, targets = torch.randn(5, 4, generator=noise), torch.tensor([0, 6, 3, 2, 5])
    log_p = head.logits(hidden).double().log_softmax(-1)
    nll, entropy = likelihood(hidden, targets, head, entropy=True)
    assert torch.allclose(nll.double(), -log_p.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=1e-7)
    assert torch.allclose(entropy.double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(likelihood(hidden, targets, head)[0], nll)


def test_a_token_that_is_nearly_certain_keeps_its_digits(blocks):
    # Logits 30 and 20: -log p = log(1 + exp(-10)) = 4.540e-5, and 30 in float32 has steps of 2e-6. The entropy is
    # that and 10 times the other's share, exp(-10) of 1 + exp(-10).
    head = Head(torch.tensor([[30.0], [20.0], [-30.0]]))
    nll, entropy = likelihood(torch.ones(1, 1), torch.tensor([0]), head, entropy=True)
    assert nll.item() == pytest.approx(4.53989e-5, abs=1.5e-7)
    assert entropy.item() == pytest.approx(11 * 4.5399e-5, abs=2e-7)


def test_no_position_is_no_trouble(blocks):
    nll, entropy = likelihood(torch.zeros(0, 1), torch.zeros(0, dtype=torch.long), Head(torch.ones(3, 1)), entropy=True)
    assert nll.shape == entropy.shape == (0,)
