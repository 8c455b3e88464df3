"""The order in which a defense's auxiliary rows are due, round by round."""

from __future__ import annotations

import random


def shuffled(count: int, seed: int, turn: int) -> list[int]:
    """Shuffle the numbers 0 to count - 1 for one round over auxiliary rows."""
    numbers = list(range(count))
    random.Random(f"{seed} {turn}").shuffle(numbers)
    return numbers


def first_due(count: int, needed: int | None, seed: int) -> list[int]:
    """Choose the rows that a run will use, where it uses fewer than there are.

    Args:
        count: how many rows there are.
        needed: how many rows are due in the whole run; None where that is not known.
        seed: of the run.

    Returns:
        The numbers of the rows that are due first, arranged so that a first round over these rows alone is in the same
        order as over all rows. All numbers in order, where no row is spare.
    """
    if needed is None or needed >= count:
        return list(range(count))
    due = shuffled(count, seed, 0)[:needed]
    places = dict(zip(shuffled(needed, seed, 0), due, strict=True))
    return [places[place] for place in range(needed)]
