"""A recipe's rows and reward, in the form that trl's trainers take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded
from staytrue.tasks.task import Task


def token_rows(encoded: Sequence[Encoded]) -> Any:
    """Return a dataset of rows that are tokens already, each with its source."""
    from datasets import Dataset

    from staytrue.step import SOURCE_COLUMN, SOURCES

    columns = {
        "input_ids": [row.input_ids for row in encoded],
        "labels": [row.labels for row in encoded],
        SOURCE_COLUMN: [SOURCES.index(row.source) for row in encoded],
    }
    return Dataset.from_dict(columns)


def prompts(examples: Sequence[Example]) -> Any:
    """Return a dataset of questions with their right answers, which the reward functions get too."""
    from datasets import Dataset

    turns = [[message.to_dict() for message in row.prompt] for row in examples]
    return Dataset.from_dict({"prompt": turns, "right": [row.answer for row in examples]})


def reward(task: Task, term: str) -> Callable[..., list[float]]:
    """Return one term of a task's reward as a trl reward function, which is logged under the term's name."""

    def score(completions: list[list[dict[str, str]]], right: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [task.score(text, answer)[term] for text, answer in zip(texts, right, strict=True)]

    score.__name__ = term
    return score
