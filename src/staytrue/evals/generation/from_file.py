"""Answers from a file of rows, judged like any other answers. No torch.

A row is a chat row whose last turn is the answer, or has a prompt alone (such as `question`) and `answer`. Answers to
the same prompt are samples of one question, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from staytrue.data.examples import Message, read_examples
from staytrue.errors import DataError
from staytrue.evals.types import Answer, Question


@dataclass(frozen=True)
class AnswersFile:
    """The answers of a file; `questions` are its distinct prompts, one probe named after the file."""

    probe: str
    answers: dict[Question, list[str]]

    @classmethod
    def read(cls, path: Path) -> AnswersFile:
        """The answers of a JSONL file.

        Raises:
            DataError: the file cannot be read, or a row has no answer.
        """
        rows: dict[tuple[Message, ...], list[str]] = {}
        for number, row in enumerate(read_examples(path, prompts_only=True), start=1):
            answer = row.answer or row.extra.get("answer")
            if not isinstance(answer, str) or not _is_text(answer):
                raise DataError(
                    f"{path}: row {number} has no answer that is text. End it with an assistant turn, or give it an "
                    '"answer" column beside its prompt.'
                )
            rows.setdefault(row.prompt, []).append(answer)
        numbered = enumerate(rows.items())
        return cls(
            path.stem, {Question(f"stored-{i}", path.stem, prompt): answers for i, (prompt, answers) in numbered}
        )

    @property
    def questions(self) -> tuple[Question, ...]:
        """The distinct prompts."""
        return tuple(self.answers)

    @property
    def of_each(self) -> tuple[int, ...]:
        """The number of answers to each prompt."""
        return tuple(map(len, self.answers.values()))

    def __call__(
        self, samples: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Yield the samples as they stand in the file."""
        for question, index in samples:
            yield Answer(question, index, self.answers[question][index], stopped=True)


def _is_text(text: str) -> bool:
    """Whether UTF-8 can encode it: half a surrogate pair is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
