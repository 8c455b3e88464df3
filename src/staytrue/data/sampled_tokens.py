"""Tokens of a sampled answer, kept in a column of its row where the chat template would render the answer otherwise.

Templates of reasoning models put an empty thought before an answer, or move what stands in a turn's text. A row that is
rendered from text is then not what the model wrote. The column is written and read with the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staytrue.data.examples import Example
from staytrue.errors import DataError

COLUMN = "staytrue_tokens"


def column(prompt: Sequence[int], answer: Sequence[int]) -> dict[str, Any]:
    """The column of a row whose answer has these ids after these of the prompt."""
    return {COLUMN: {"prompt": [*prompt], "answer": [*answer]}}


def sampled_tokens(tokenizer: Any, row: Example, where: str) -> tuple[list[int], list[int]] | None:
    """The ids of a row's prompt and of its answer as they were sampled; None for a row without the column.

    Raises:
        DataError: by this tokenizer they are not the row's answer.
    """
    stored = row.extra.get(COLUMN)
    if stored is None:
        return None
    try:
        prompt, answer = ([int(token) for token in stored[part]] for part in ("prompt", "answer"))
        same = tokenizer.decode(answer, skip_special_tokens=True) == row.answer
    except (TypeError, KeyError, ValueError, OverflowError, IndexError):
        same = False
    if not same:
        raise DataError(
            f"The column {COLUMN} of {where} holds other tokens than its answer by this model's tokenizer: they were "
            "sampled from another model, or the answer was edited. Delete the column, and the chat template renders "
            "the answer."
        )
    return prompt, answer
