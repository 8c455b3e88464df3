"""The rows a recipe trains on, and those it is measured by: from its file, or from its task."""

from __future__ import annotations

from staytrue.config.recipe import Recipe
from staytrue.data.examples import Example, read_examples
from staytrue.data.holdout import split
from staytrue.errors import DataError, RecipeError


def rows(recipe: Recipe) -> tuple[list[Example], list[Example]]:
    """Training rows and held-out rows, which share no question.

    Raises:
        DataError: the file cannot be read, or a row of it has no answer.
        RecipeError: there is neither a file nor a task, or the hold-out cannot be drawn.
    """
    if recipe.data is not None:
        return split(read(recipe), recipe.holdout, recipe.seed)
    if recipe.task is None:
        raise RecipeError("The recipe has neither `data:` nor `task:`, so there is nothing to train on.")
    if recipe.holdout:
        raise RecipeError(
            f"holdout: {recipe.task.name()} brings held-out questions of its own; take `holdout:` out, or give "
            "`data:` a file to reserve rows from."
        )
    return recipe.task.rows(), recipe.task.held_out()


def read(recipe: Recipe) -> list[Example]:
    """Every row of the recipe's file; with a task, as the task writes them."""
    assert recipe.data is not None
    if recipe.task is None:
        return read_examples(recipe.data)
    found = []
    for number, row in enumerate(read_examples(recipe.data, prompts_only=True), start=1):
        right = row.answer or str(row.extra.get("answer", ""))
        if not right.strip():
            raise DataError(
                f"{recipe.data}: row {number} has no right answer. End it with an assistant turn, or give it an "
                '"answer" column beside "question".'
            )
        found.append(recipe.task.adopt(row, right))
    return found
