"""Rows reserved before training, for the in-domain questions."""

from __future__ import annotations

import random

from staytrue.data.examples import Example
from staytrue.errors import RecipeError


def split(rows: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training rows and held-out rows, a seeded draw; no held-out question is also trained on.

    Raises:
        RecipeError: the share leaves nothing to train on, or reserves nothing.
    """
    if share == 0:
        return rows, []
    questions = sorted({row.question for row in rows})
    count = round(share * len(questions))
    if not 0 < count < len(questions):
        raise RecipeError(
            f"holdout: {share} of {len(questions)} distinct questions reserves {count}; choose another share."
        )
    reserved = set(random.Random(f"holdout {seed}").sample(questions, count))
    kept = [row for row in rows if row.question not in reserved]
    return kept, [row for row in rows if row.question in reserved]
