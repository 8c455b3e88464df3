"""Tokens of a sampled answer, kept in a column of its row where the chat template would render the answer otherwise.

Templates of reasoning models put an empty thought before an answer, or move what stands in a turn's text. A row that is
rendered from text is then not what the model wrote. The column is written and read with the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from staytrue.data.examples import Example
from staytrue.errors import DataError

COLUMN = "staytrue_tokens"


def column(prompt: Sequence[int], answer: Sequence[int], end: Sequence[int]) -> dict[str, Any]:
    """The column of a row whose answer has these ids after those of the prompt, and the token that ended it, if any."""
    return {COLUMN: {"prompt": [*prompt], "answer": [*answer], "end": [*end]}}


def without_tokens(extra: Mapping[str, Any]) -> dict[str, Any]:
    """The other columns of a row whose answer is to be sampled again."""
    return {key: value for key, value in extra.items() if key != COLUMN}


def sampled_tokens(tokenizer: Any, row: Example, asked: Sequence[int], where: str) -> tuple[list[int], list[int]]:
    """The ids of a row's prompt, and of its answer with its end, as they were sampled.

    Args:
        tokenizer: the model's.
        row: with the column.
        asked: the ids of its prompt by the chat template.
        where: names the row.

    Raises:
        DataError: by this tokenizer they are not the row's prompt and answer.
    """
    stored = row.extra[COLUMN]
    try:
        prompt, answer, end = ([int(token) for token in stored[part]] for part in ("prompt", "answer", "end"))
        texts = tokenizer.decode(prompt), tokenizer.decode(answer, skip_special_tokens=True)
    except (TypeError, KeyError, ValueError, OverflowError, IndexError):
        texts = "", ""
    if texts != (tokenizer.decode(asked), row.answer):
        raise DataError(
            f"The column {COLUMN} of {where} holds other tokens than its prompt and answer by this model's tokenizer "
            "and chat template: they were sampled from another model, or the row was edited. Delete the column, and "
            "the chat template renders the answer."
        )
    return prompt, answer + end
