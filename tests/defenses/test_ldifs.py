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


# Mean squares over the width of 2: layer 1 has 2, 8, 4 and layer 2 has 1, 8, 1/2.
REFERENCE = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [2.0, 2.0]]]), torch.tensor([[[1.0, 1.0], [4.0, 0.0], [1.0, 0.0]]])
CHANGES = torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 4.0]]]), torch.tensor([[[0.0, 1.0], [4.0, 0.0], [0.0, 0.0]]])


def test_three_tokens_and_two_layers_by_hand():
    # Squared changes, mean over the width: layer 1 has 2, 0, 8 and layer 2 has 1/2, 8, 0.
    # Over the reference's: 1, 0, 2 and 1/2, 1, 0. Mean over layers: 3/4, 1/2, 1; the first two tokens are scored: 5/8.
    first, second = ((x0 + dx).requires_grad_() for x0, dx in zip(REFERENCE, CHANGES, strict=True))
    penalty = LDIFS().penalty(step((first, second), REFERENCE, [True, True, False]))
    assert penalty.item() == pytest.approx(5 / 8)
    penalty.backward()
    # d/dx of dx^2 / (2 wide * 2 layers * 2 tokens * m) = dx / (4 m); the unscored third token gives nothing.
    assert first.grad.tolist() == [[[0.25, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    assert second.grad.tolist() == [[[0.0, 0.25], [0.125, 0.0], [0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2.0**-9, 1.0, 2.0**12])
def test_the_size_of_the_activations_does_not_matter(size, dtype):
    # 4 * 2^12 squared is more than float16 holds; every number here is exact in all three types.
    ours = [(size * (x0 + dx)).to(dtype) for x0, dx in zip(REFERENCE, CHANGES, strict=True)]
    theirs = [(size * x0).to(dtype) for x0 in REFERENCE]
    assert LDIFS().penalty(step(ours, theirs, [True, True, False])).item() == pytest.approx(5 / 8)


def test_each_token_counts_by_its_own_size_so_that_parts_of_a_batch_add_up():
    ours = tuple(x0 + dx for x0, dx in zip(REFERENCE, CHANGES, strict=True))
    whole = step(ours, REFERENCE, [True, True, True])
    parts = [step(ours, REFERENCE, [i == t for i in range(3)]) for t in range(3)]
    total = sum(LDIFS().penalty(part) for part in parts) / 3
    assert LDIFS().penalty(whole).item() == pytest.approx(total.item()) == pytest.approx(3 / 4)


def test_a_reference_of_zeros_leaves_the_penalty_finite():
    zero, moved = torch.zeros(1, 3, 2), torch.full((1, 3, 2), 2.0)
    assert LDIFS().penalty(step((zero, zero), (zero, zero), [True, True, True])).item() == 0
    assert LDIFS().penalty(step((moved, zero), (zero, zero), [True, True, True])).isfinite()


def test_given_blocks_are_the_only_ones_looked_at_and_may_count_from_the_end():
    one, first = torch.ones(1, 3, 2), torch.full((1, 3, 2), 3.0)
    seen = step((first, one), (one, one), [True, True, True])
    assert LDIFS(blocks=(1,)).penalty(seen).item() == 4
    assert LDIFS(blocks=(-2,)).penalty(seen).item() == 4
    assert LDIFS(blocks=(2,)).penalty(seen).item() == 0


@pytest.mark.parametrize(
    ("depth", "layers"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (5, (1, 2, 3, 4, 5)), (28, (1, 7, 14, 21, 28))]
)
def test_five_layers_are_spread_evenly_from_the_first_to_the_last(depth, layers):
    assert LDIFS().layers(depth) == layers  # linspace(1, 28, 5) = 1, 7.75, 14.5, 21.25, 28
