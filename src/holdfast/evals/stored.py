"""Answers that somebody has already, as a maker: a file of rows, judged like any other answers. No torch.

A row is a chat row whose last turn is the answer, or has `question` and `answer`. Answers to the same prompt are
samples of one question, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import DataError
from holdfast.evals.judge import Answer, Question
from holdfast.examples import Message, read_examples


@dataclass(frozen=True)
class Stored:
    """The answers of a file; `questions` are its distinct prompts, one probe named after the file."""

    probe: str
    said: dict[Question, list[str]]

    @classmethod
    def read(cls, path: Path) -> Stored:
        """The answers of a JSONL file.

        Raises:
            DataError: the file cannot be read, or a row has no answer.
        """
        rows: dict[tuple[Message, ...], list[str]] = {}
        for number, row in enumerate(read_examples(path, prompts_only=True), start=1):
            answer = row.answer or row.extra.get("answer")
            if not isinstance(answer, str):
                raise DataError(
                    f'{path}: row {number} has no answer. End it with an assistant turn, or give it an "answer" beside '
                    '"question".'
                )
            rows.setdefault(row.prompt, []).append(answer)
        numbered = enumerate(rows.items())
        return cls(path.stem, {Question(f"stored-{i}", path.stem, prompt): said for i, (prompt, said) in numbered})

    @property
    def questions(self) -> tuple[Question, ...]:
        """The distinct prompts."""
        return tuple(self.said)

    @property
    def per_question(self) -> int:
        """The most answers that a prompt has."""
        return max(map(len, self.said.values()))

    def __call__(
        self, wanted: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """The wanted samples as they stand in the file; a prompt with fewer answers than others has no more."""
        for question, index in wanted:
            said = self.said[question]
            if index < len(said):
                yield Answer(question, index, said[index], stopped=True)
