"""The rows that are due first: the same ones in the same order as where every row is there, and no more than needed."""

import pytest

from staytrue.data.due_order import first_due
from staytrue.training.row_schedule import AuxiliaryRows


@pytest.mark.parametrize(("count", "needed"), [(40, 8), (120, 100), (9, 1)])
@pytest.mark.parametrize("seed", [0, 3])
def test_a_run_gets_the_rows_that_it_would_get_from_all_of_them(count, needed, seed):
    everything, chosen = list(range(count)), first_due(count, needed, seed)
    assert len(set(chosen)) == needed
    whole, few = (AuxiliaryRows(rows, 0.25, seed).due(0, 4 * needed) for rows in (everything, chosen))
    assert whole == few


@pytest.mark.parametrize("needed", [None, 5, 6])
def test_where_no_row_is_spare_all_come_in_order(needed):
    assert first_due(5, needed, 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("share", "rows", "times"), [(0.0625, 4, 4.0), (0.0625, 16, 1.0), (0.0625, 64, 1.0)])
def test_a_row_in_every_fourth_step_counts_four_times(share, rows, times):
    assert AuxiliaryRows([], share, 0).rarity(rows) == times
