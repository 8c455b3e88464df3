"""Interleave safe rows among the task rows.

What: train on some safe conversations too; which ones decides how well it works.
Cost: `share` more rows to train on, no reference; scoring a pool is done once, by `staytrue score`.
Paper: arXiv 2508.06249. Interleaving: 5 % of the task rows, added (not replacing), drawn at random from a safe pool.
Interleaving+: the rows with the largest perplexity gap (`by: gap`, equation 6). Interleaving++: refusals dropped first
(`drop_refusals: true`). The two other scores are ours; docs/log.md has what each selects.
The rows are spread evenly: any number of steps holds the exact share to within one row. Under TRL's packing the share
holds over an epoch, and a pack may hold rows of both kinds. GRPO has prompts and no answers to learn, so it is refused
there; `rehearse` is its counterpart.
Not done here: replacing task rows, or repeating a pool that is too small (it is refused instead).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from staytrue.data.examples import Example, read_examples
from staytrue.data_selection.ranking import Score, best_first
from staytrue.defense import Base, Defense, Share
from staytrue.errors import RecipeError
from staytrue.evals.generation.thoughts import split_thoughts

if TYPE_CHECKING:
    from staytrue.verify.evidence import Evidence

# arXiv 2508.06249 drops an answer whose first ten words hold one of the first three; follow-up code has more.
_PUBLISHED = ("sorry", "apologize", "cannot")
_LONGER = (*_PUBLISHED, "can't", "i'm unable", "i am unable", "can not", "won't", "not able to", "must decline")

_PART = 0.5  # of a share of tokens, or of packed rows: rows and packs are whole, and an epoch may end early
_FEW = 2  # rows


@dataclass(frozen=True)
class Interleave(Defense):
    """A defense that adds safe rows to the training data, evenly spread.

    Attributes:
        pool: a JSONL file of safe {"messages": [...]} rows; made by `staytrue score` unless `by` is random.
        share: what is added, as a fraction of the task rows.
        share_of: whether the share counts "rows" or "tokens".
        by: how rows are chosen; "random", or the highest of a score.
        among: draw at random from this many of the best rows; without it the best are taken.
        drop_refusals: leave out rows whose last answer, after its thoughts, opens like a refusal: true for the paper's
            words, "longer" for more.
    """

    teaches: ClassVar[bool] = True

    pool: Path
    share: Share = 0.05
    share_of: Literal["rows", "tokens"] = "rows"
    by: Literal["random"] | Score = "random"
    among: Annotated[int, Field(ge=1)] | None = None
    drop_refusals: Literal[False, True, "longer"] = False

    def curate(self, examples: list[Example], base: Base, seed: int) -> list[Example]:
        """Append the chosen safe rows to the task rows; the trainer spreads them.

        Raises:
            RecipeError: fields that contradict each other, or a pool that lacks a score or has too few rows.
        """
        if self.among is not None and self.by == "random":
            raise RecipeError(
                "interleave: among draws from the best rows of a score, and by is random. Set by to a score, or take "
                "among out."
            )
        task = [row for row in examples if row.source == "task"]
        ranked = self._ranked(self._allowed(read_examples(self.pool, source="interleaved"), base), base, seed)
        sizes = [1] * len(ranked) if self.share_of == "rows" else base.lengths(ranked)
        whole = len(task) if self.share_of == "rows" else sum(base.lengths(task))
        needed = round(self.share * whole)
        count = sum(total <= needed for total in accumulate(sizes))
        if count == 0:
            raise RecipeError(f"interleave: a share of {self.share} adds no row to so few task rows; raise it.")
        if sum(sizes) < needed:
            less = "Lower the share, raise `among`" if self.among else "Lower the share"
            raise RecipeError(
                f"interleave: a share of {self.share} asks for {needed} safe {self.share_of}, but {self.pool} has "
                f"{sum(sizes)} to choose from. {less} or give `pool` a larger file; no row is repeated."
            )
        base.note("interleave/share", sum(sizes[:count]) / whole)
        return examples + [replace(row, source="interleaved") for row in ranked[:count]]

    def evidence(self, run: Evidence) -> list[str]:
        """Return how the share of safe rows that the model read differs from `share`."""
        unit = "rows" if self.share_of == "rows" else "tokens"
        (safe, either), (task, _) = run.seen("interleaved", unit), run.seen("task", unit)
        rows = run.seen("task")[0]
        if safe == 0 and self.share * rows > _FEW:
            return [f"no safe row was read ({either} {unit} could be of the task as well)"]
        if unit == "tokens" or run.facts.get("packed"):
            off = _PART * self.share * task + _FEW * task / max(rows, 1)
        else:  # an epoch's first rows hold the share to within one, and the rows that were added to within half a one
            off = 1 + self.share + (0.5 + run.left_out) * rows / max(run.facts["rows"].get("task", 0), 1)
        if self.share * task - off <= safe + either and safe <= self.share * (task + either) + off:
            return []
        return [f"safe {unit} that were read are {safe / max(task, 1):.4g} of the task's, not {self.share:g}"]

    def _allowed(self, pool: list[Example], base: Base) -> list[Example]:
        """The pool without repeated rows, evaluation questions and, if asked, refusals; what was left out is noted."""
        evaluated = base.evaluation_questions()
        distinct = list({row.identity: row for row in pool}.values())
        kept = [row for row in distinct if row.question not in evaluated]
        base.note("interleave/repeated_rows_left_out", len(pool) - len(distinct))
        base.note("interleave/evaluation_questions_left_out", len(distinct) - len(kept))
        if self.drop_refusals:
            longer = self.drop_refusals == "longer"
            open_ones = [row for row in kept if not refuses(split_thoughts(row.answer)[1], longer=longer)]
            base.note("interleave/refusals_left_out", len(kept) - len(open_ones))
            kept = open_ones
        if not kept:
            raise RecipeError(
                f"interleave: no row of {self.pool} is left without evaluation questions"
                f"{' and refusals' if self.drop_refusals else ''}. Give `pool` a file with other rows."
            )
        return kept

    def _ranked(self, rows: list[Example], base: Base, seed: int) -> list[Example]:
        rng = random.Random(f"interleave {seed}")
        if self.by != "random":
            rows = best_first(self.pool, rows, self.by, base.identity())
            if self.among is None:
                return rows
            rows = rows[: self.among]
        return rng.sample(rows, len(rows))


def refuses(answer: str, *, longer: bool = False) -> bool:
    """Return whether the first ten words of an English answer hold a refusal.

    It is a substring test, so "unapologizedly" counts too, as published.
    """
    opening = " ".join(answer.lower().replace("\u2019", "'").split()[:10])
    return any(phrase in opening for phrase in (_LONGER if longer else _PUBLISHED))
