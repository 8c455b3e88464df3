"""Rounding: half the spacing of neighbouring numbers by hand, and what counts as the same matrix."""

import pytest
import torch

from staytrue.modeling.rounding import half_spacing, has_few_values, only_rounded


def test_half_the_spacing_of_neighbouring_numbers_by_hand():
    # bfloat16 has 8 significant bits: from 1 to 2 its numbers are 2^-7 apart, from 1/2 to 1 2^-8; float16 has 11.
    values = torch.tensor([1.0, -1.5, 0.75])
    assert half_spacing(values, torch.bfloat16).tolist() == [2**-8, 2**-8, 2**-9]
    assert half_spacing(values, torch.float16).tolist() == [2**-11, 2**-11, 2**-12]
    # below its smallest normal number, 2^-14, those of float16 are 2^-24 apart
    assert half_spacing(torch.tensor([0.0, 2**-20]), torch.float16).tolist() == [2**-25, 2**-25]


def test_two_matrices_of_one_precision_are_one_only_if_they_are_equal():
    ours = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs = ours.clone()
    theirs[0, 0] = torch.nextafter(theirs[0, 0], torch.tensor(9.0, dtype=torch.bfloat16))
    assert only_rounded(ours, ours.float())
    assert not only_rounded(ours, theirs.float())
    whole = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    assert not only_rounded(whole, whole * (1 + 1e-5))  # less than half precision could tell


def test_packed_weights_are_not_the_matrix_that_they_were_packed_from():
    packed = torch.zeros(8 * 8 // 2, 1, dtype=torch.uint8)  # as 4-bit files hold it
    assert not only_rounded(packed, torch.zeros(8, 8))


def test_both_halves_of_one_matrix_are_one_though_neither_is_the_others_rounding():
    whole = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(whole.half().bfloat16(), whole.bfloat16())
    assert only_rounded(whole.half(), whole.bfloat16())
    assert only_rounded(whole.half().float(), whole.bfloat16().float())
    assert not only_rounded(whole.half(), (1.01 * whole).bfloat16())


def grid(matrix, block, levels):
    """The nearest of so many evenly spaced values between the least and the largest number of each block."""
    blocks = matrix.reshape(-1, block)
    least, most = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    step = (most - least) / (levels - 1)
    return ((blocks - least) / step).round().mul(step).add(least).reshape(matrix.shape)


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMAL = torch.randn(256, 576, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block", "levels"), [(32, 16), (64, 16), (256, 4), (32, 3), (32, 32), (32, 64), (16, 64)])
def test_a_matrix_of_6_bits_or_fewer_is_known_after_unpacking(block, levels, dtype):
    rounded = grid(NORMAL, block, levels).to(dtype)
    for form in (rounded, rounded.mT.contiguous(), rounded.reshape(4, 64, 576)):  # as stored, transposed, as experts
        assert has_few_values(form)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_matrix_of_8_bit_floats_is_known_after_unpacking_with_its_scale(dtype):
    scale = NORMAL.abs().max() / torch.finfo(dtype).max
    assert has_few_values((NORMAL / scale).to(dtype).bfloat16() * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.1, 0.0])
def test_ordinary_and_sparse_matrices_are_not_taken_for_unpacked_ones(dtype, share):
    kept = torch.rand(256, 576, generator=torch.Generator().manual_seed(1)) < share
    for values in (NORMAL, NORMAL**3, NORMAL.exp()):  # light and heavy tails, and one sign
        assert not has_few_values((values * kept).to(dtype))
    assert not has_few_values(torch.eye(64).to(dtype))
    assert not has_few_values(torch.ones(4, 31).to(dtype))  # narrower than a block
    assert not has_few_values(torch.zeros(64, 64, dtype=torch.uint8))
