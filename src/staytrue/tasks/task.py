"""`Task`: questions with one right answer each, and what an answer is worth. No torch.

Supervised training, reward and evaluation share one file per task: the rows are trained on (or their questions asked,
under a reward), `score` pays for an answer, and `correct` marks the held-out split.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from staytrue.data.examples import Example, Message
from staytrue.evals.types import Question, Verdict


class Task:
    """A harmless task; every task is a frozen dataclass whose fields are the recipe's keys, and none inherits.

    The two splits are drawn once, from a fixed seed, and share no question, so that every run is marked alike.
    """

    longest: ClassVar[int | None] = None  # tokens of an answer when it is marked; None is what suits the model

    @classmethod
    def name(cls) -> str:
        """What recipes and logs call it: the file's name."""
        return cls.__module__.rpartition(".")[2]

    def rows(self) -> list[Example]:
        """The training split: conversations that end with the right answer."""
        raise NotImplementedError

    def held_out(self) -> list[Example]:
        """The questions it is measured by, with their right answers; none of them is a training question."""
        raise NotImplementedError

    def correct(self, said: str, right: str) -> bool:
        """Whether an answer says what the right one says."""
        raise NotImplementedError

    def score(self, said: str, right: str) -> dict[str, float]:
        """The terms of the reward by name, always the same ones; their sum is what an answer earns."""
        return {"answer": float(self.correct(said, right))}

    def group(self, row: Example) -> str:
        """What a held-out question shares with others, which are then one cluster of an interval: its own words."""
        return row.question

    def adopt(self, row: Example, right: str) -> Example:
        """A user's question and right answer as a row of this task."""
        return replace(row, messages=(*row.prompt, Message("assistant", right)))


class ExactAnswer:
    """Marks held-out questions by the task's own reading of an answer."""

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
    """One turn each."""
    return Example((Message("user", question), Message("assistant", answer)))
