"""LDIFS: numbers by hand on three tokens and two layers, and which layers it asks for."""

import pytest
import torch

from staytrue.defenses.ldifs import LDIFS
from staytrue.step import Activations, Marks, Step


def step(ours, theirs, scored):
    """Two layers of width 2 on three tokens, all of one row."""
    shape = (1, 3)
    marks = Marks(torch.ones(shape, dtype=torch.bool), torch.tensor([scored]), torch.zeros(shape, dtype=torch.long))
    passes = [Activations({1: a, 2: b}, b, depth=2) for a, b in (ours, theirs)]
    return Step(passes[0], marks, marks.counts(), lambda: None, lambda: passes[1])


def test_three_tokens_and_two_layers_by_hand():
    # Squared changes, mean over the width of 2: layer 1 gives 2, 0, 8 and layer 2 gives 1/2, 8, 0.
    # Mean over layers: 5/4, 4, 4; the first two tokens are scored: (5/4 + 4) / 2 = 21/8.
    zero = torch.zeros(1, 3, 2)
    first = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]]], requires_grad=True)
    second = torch.tensor([[[0.0, 1.0], [4.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    penalty = LDIFS().penalty(step((first, second), (zero, zero), [True, True, False]))
    assert penalty.item() == pytest.approx(21 / 8)
    penalty.backward()
    # d/dx of x^2 / (2 wide * 2 layers * 2 tokens) = x / 4: 2 gives 1/2, and the unscored third token gives nothing.
    assert first.grad.tolist() == [[[0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    assert second.grad.tolist() == [[[0.0, 0.25], [1.0, 0.0], [0.0, 0.0]]]


def test_given_blocks_are_the_only_ones_looked_at_and_may_count_from_the_end():
    zero, first = torch.zeros(1, 3, 2), torch.full((1, 3, 2), 2.0)
    seen = step((first, zero), (zero, zero), [True, True, True])
    assert LDIFS(blocks=(1,)).penalty(seen).item() == 4
    assert LDIFS(blocks=(-2,)).penalty(seen).item() == 4
    assert LDIFS(blocks=(2,)).penalty(seen).item() == 0


@pytest.mark.parametrize(
    ("depth", "layers"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (5, (1, 2, 3, 4, 5)), (28, (1, 7, 14, 21, 28))]
)
def test_five_layers_are_spread_evenly_from_the_first_to_the_last(depth, layers):
    assert LDIFS().layers(depth) == layers  # linspace(1, 28, 5) = 1, 7.75, 14.5, 21.25, 28
