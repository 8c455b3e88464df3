"""The marks of a batch: where rows begin, by the position ids of whatever collator made it."""

import torch

from staytrue.training.row_tracking import marks_of_batch

PADDED = {
    "input_ids": torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]]),
    "labels": torch.tensor([[-100, -100, 7, 8], [5, 6, 7, 8]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
}


def test_each_row_that_is_padded_on_the_left_begins_once_whatever_its_position_ids():
    for places in ([0, 1, 2, 3], [5, 6, 7, 8]):
        marks = marks_of_batch(PADDED | {"position_ids": torch.tensor([places, [0, 1, 2, 3]])})
        assert marks.begins.tolist() == [[False, False, True, False], [True, False, False, False]]
        assert int(marks.task_rows()) == 2
        assert marks.counts().tolist() == marks_of_batch(PADDED).counts().tolist()


def test_rows_that_are_joined_begin_where_their_positions_do():
    labels = torch.tensor([[-100, 2, 3, -100, 5]])
    marks = marks_of_batch({"labels": labels, "position_ids": torch.tensor([[0, 1, 2, 0, 1]])})
    assert marks.begins.tolist() == [[True, False, False, True, False]]
    assert int(marks.task_rows()) == 2
    # Positions 0 and 1 predict the first row's further tokens, 3 the second row's; 2 and 4 are the ends of rows.
    assert marks.mask("all", "all").tolist() == [[True, True, False, True, False]]


def test_positions_of_several_kinds_are_not_looked_at():
    marks = marks_of_batch(PADDED | {"position_ids": torch.zeros(3, 2, 4, dtype=torch.long)})
    assert marks.begins is None
    assert int(marks.task_rows()) == 2
