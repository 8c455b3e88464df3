"""Interleave safe rows among the task rows.

What: train on some safe conversations too; which ones decides how well it works.
Lever: data. Cost: `share` more rows to train on, no reference.
Paper: arXiv 2508.06249, Interleaving: 5 % of the task rows, added (not replacing), drawn at random from a safe pool.
The rows are spread evenly: any number of steps holds the exact share to within one row.
Not done here: replacing task rows, or repeating a pool that is too small (it is refused instead).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from holdfast.defense import Base, Defense, Share
from holdfast.errors import RecipeError
from holdfast.examples import Example, read_examples


@dataclass(frozen=True)
class Interleave(Defense):
    """Safe rows as training data, in an even rhythm.

    Attributes:
        pool: a JSONL file of safe {"messages": [...]} rows.
        share: rows added per task row.
        by: how rows are chosen from the pool; "random" draws without replacement.
    """

    pool: Path
    share: Share = 0.05
    by: Literal["random"] = "random"

    def curate(self, examples: list[Example], base: Base, seed: int) -> list[Example]:
        """The task rows, then the chosen safe rows; the trainer spreads them."""
        wanted = round(self.share * sum(row.source == "task" for row in examples))
        pool = read_examples(self.pool, source="interleaved")
        if wanted == 0:
            raise RecipeError(f"interleave: a share of {self.share} adds no row to so few task rows; raise it.")
        if wanted > len(pool):
            raise RecipeError(
                f"interleave: a share of {self.share} asks for {wanted} safe rows, but {self.pool} has "
                f"{len(pool)}. Lower the share or bring a larger pool; rows are never repeated."
            )
        chosen = random.Random(f"interleave {seed}").sample(pool, wanted)
        return examples + [replace(row, source="interleaved") for row in chosen]
