"""`Task`: questions with one expected answer each, a reward and a test of correctness. No torch.

SFT, RL and evaluation use the same file: `rows` are the training data (RL uses their questions), `score` is the reward,
and `correct` marks answers to the held-out split.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from staytrue.data.examples import Example, Message
from staytrue.evals.types import Question, Verdict

Pairs = list[tuple[str, str]]  # questions with their expected answers
Splits = tuple[Pairs, Pairs]


class Task:
    """A harmless task. Each task is a frozen dataclass, a direct subclass, whose fields are the keys in a recipe.

    A task overrides `correct`, and `splits` or both `rows` and `held_out`. Both splits are drawn from a fixed seed
    and share no question, so all runs have the same held-out questions.
    """

    longest: ClassVar[int | None] = None  # limit on the tokens of an evaluated answer; None uses the model's default

    @classmethod
    def name(cls) -> str:
        """Return the name in recipes and logs, which is the name of the file."""
        return cls.__module__.rpartition(".")[2]

    def splits(self) -> Splits:
        """Return the training split and the held-out split."""
        raise NotImplementedError

    def rows(self) -> list[Example]:
        """Return the training split: conversations that end with the expected answer."""
        return [row(*pair) for pair in self.splits()[0]]

    def held_out(self) -> list[Example]:
        """Return the held-out split: conversations like `rows`, with no question in common."""
        return [row(*pair) for pair in self.splits()[1]]

    def correct(self, answer: str, expected: str) -> bool:
        """Return True if an answer is right, given the expected answer."""
        raise NotImplementedError

    def score(self, answer: str, expected: str) -> dict[str, float]:
        """Return the terms of the reward by name; the names are constant, and the reward is the sum of the terms."""
        return {"answer": float(self.correct(answer, expected))}

    def group(self, row: Example) -> str:
        """Return the cluster of a held-out question for confidence intervals; by default each question is its own."""
        return row.question

    def adopt(self, row: Example, expected: str) -> Example:
        """Convert a user's question and expected answer to a row of this task."""
        return replace(row, messages=(*row.prompt, Message("assistant", expected)))


class ExactAnswer:
    """A judge that marks answers to held-out questions by the task's `correct`."""

    concurrency = 1

    def __init__(self, task: Task) -> None:
        self._task = task
        self.name = f"task:{task.name()}-1"

    def __call__(self, question: Question, answer: str) -> Verdict:
        """Mark one answer."""
        if question.expected is None:
            return Verdict(missing="no expected answer")
        return Verdict(correct=self._task.correct(answer, question.expected))


def row(question: str, answer: str) -> Example:
    """Make a conversation of one question and one answer."""
    return Example((Message("user", question), Message("assistant", answer)))
