"""The rows of a recipe: training rows and held-out rows, from its file or from its task."""

from __future__ import annotations

import random
from collections.abc import Sequence

from staytrue.config.recipe import Recipe
from staytrue.data.examples import Example, hash_of_rows, read_examples
from staytrue.errors import DataError, RecipeError
from staytrue.utils.files import sha256_of


def rows(recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Training rows and held-out rows, which share no question.

    Raises:
        DataError: the file cannot be read, or a row of it has no answer.
        RecipeError: the recipe has neither a file nor a task, or its `holdout` fits neither.
    """
    if recipe.data is not None:
        return split(read(recipe), recipe.holdout, recipe.seed)
    if recipe.task is None:
        raise RecipeError("The recipe has neither `data:` nor `task:`, so there are no rows to train on.")
    if recipe.holdout:
        raise RecipeError(
            f"holdout: {recipe.task.name()} has held-out questions of its own; take `holdout:` out, or give `data:` "
            "a file to reserve rows from."
        )
    return recipe.task.rows(), recipe.task.held_out()


def read(recipe: Recipe) -> list[Example]:
    """Every row of the recipe's file, in the task's form if the recipe has a task."""
    assert recipe.data is not None
    columns = {str(part): name for part, name in recipe.columns.items()}
    if recipe.task is None:
        return read_examples(recipe.data, split=recipe.split, columns=columns)
    adopted = []
    examples = read_examples(recipe.data, prompts_only=True, split=recipe.split, columns=columns)
    for number, row in enumerate(examples, start=1):
        answer = row.answer or str(row.extra.get("answer", ""))
        if not answer.strip():
            raise DataError(
                f"{recipe.data}: row {number} has no right answer. End it with an assistant turn, or give it an "
                '"answer" column beside its prompt.'
            )
        adopted.append(recipe.task.adopt(row, answer))
    return adopted


def digest(recipe: Recipe, rows: Sequence[Example]) -> str:
    """SHA-256 of the recipe's file, or of the rows if they do not come from one file."""
    assert recipe.data is not None
    return sha256_of(recipe.data) if recipe.data.is_file() else hash_of_rows(rows)


def split(rows: list[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training rows and held-out rows, drawn with a seed; rows with one question stay on one side.

    Args:
        rows: all rows.
        share: of the distinct last user questions that are held out, 0 to 1.
        seed: the same seed holds out the same questions.

    Raises:
        RecipeError: the share leaves no question to train on, or reserves none.
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
