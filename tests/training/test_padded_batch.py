"""Rows as a batch: which position predicts which token, by hand."""

import torch

from staytrue.data.tokenize import Encoded
from staytrue.training.padded_batch import counts_of, marks_of, pad

ROWS = [
    Encoded([7, 8, 9, 10], [-100, -100, 9, 10], "anchor"),
    Encoded([7, 8], [-100, 8], "anchor"),
]


def test_position_t_is_scored_when_token_t_plus_1_is_learnt_and_padding_never_is():
    inputs, marks = pad(ROWS, 0, torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[7, 8, 9, 10], [7, 8, 0, 0]]
    assert marks.real.int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert marks.scored.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    # The last token of a row predicts nothing, and so is no prompt token either.
    assert marks.mask("all", "prompt").int().tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]


def test_a_first_token_that_is_learnt_has_no_position_that_predicts_it():
    labels = torch.tensor([[7, 8]])
    assert marks_of(labels, labels > 0, torch.zeros(1, dtype=torch.long)).scored.tolist() == [[True, False]]


def test_counting_rows_and_counting_marks_agree():
    assert counts_of(ROWS).tolist() == [[3, 4], [0, 0]]
    _, marks = pad(ROWS, 0, torch.device("cpu"))
    assert marks.counts().equal(counts_of(ROWS))
