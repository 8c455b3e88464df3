"""Answers from a file of rows, judged like any other answers. No torch.

A row is a chat row whose last turn is the answer, or has a prompt alone (such as `question`) and `answer`. Answers to
the same prompt are samples of one question, in the order of the file. Thoughts before an answer, or in a field of their
own such as `reasoning_content`, are kept apart. An answer that is empty or null is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.data import tables
from staytrue.data.examples import Example, Message, read_examples
from staytrue.data.jsonl import Faults, objects
from staytrue.data.row_checks import REASONING
from staytrue.data.row_forms import chat_row
from staytrue.errors import DataError
from staytrue.evals.generation.thoughts import split_thoughts
from staytrue.evals.types import Answer, Question


@dataclass(frozen=True)
class AnswersFile:
    """The answers of a file; `questions` are its distinct prompts, one probe named after the file."""

    probe: str
    answers: Mapping[Question, Sequence[Answer]]

    @classmethod
    def read(cls, path: Path) -> AnswersFile:
        """The answers of a JSONL file.

        Raises:
            DataError: the file cannot be read, or a row has no answer.
        """
        samples: dict[tuple[Message, ...], list[dict[str, Any]]] = {}
        for row, (line, original) in zip(read_examples(path, prompts_only=True), _originals(path), strict=True):
            answer = _answer(row, original)
            if answer is None:
                raise DataError(
                    f"{path}: {'row' if tables.is_table(path) else 'line'} {line} has no answer that is text. End it "
                    'with an assistant turn, or give it an "answer" column beside its prompt.'
                )
            samples.setdefault(row.prompt, []).append(answer)
        asked = [(Question(f"stored-{i}", path.stem, prompt), samples[prompt]) for i, prompt in enumerate(samples)]
        return cls(path.stem, {q: [Answer(q, i, **one) for i, one in enumerate(given)] for q, given in asked})

    @property
    def questions(self) -> tuple[Question, ...]:
        """The distinct prompts."""
        return tuple(self.answers)

    @property
    def of_each(self) -> tuple[int, ...]:
        """The number of answers to each prompt."""
        return tuple(map(len, self.answers.values()))

    @property
    def notes(self) -> list[str]:
        """A sentence on the answers whose thoughts are kept apart, and one on those that are empty."""
        every = [answer for given in self.answers.values() for answer in given]
        counts = [sum(bool(answer.thoughts) for answer in every), sum(answer.empty for answer in every)]
        what = ["with thoughts, which are stored apart and not judged", "empty, so missing"]
        return [f"{n} of {len(every)} answers: {words}." for n, words in zip(counts, what, strict=True) if n]

    def __call__(
        self, samples: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Yield the samples as they stand in the file."""
        for question, index in samples:
            yield self.answers[question][index]


def _originals(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file that was read without faults, as they stand there, with their lines."""
    return list(tables.rows(path, None, Faults()) if tables.is_table(path) else objects(path, Faults()))


def _answer(row: Example, original: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a row says of its answer, as the fields of an `Answer`; None if it has no answer, or one that is no text."""
    last = row.messages[-1]
    about = json.loads(last.more) if last.role == "assistant" and last.more else {}
    given = row.answer or row.extra.get("answer")
    text = "" if given is None else given
    if not isinstance(text, str) or not _is_text(text):
        return None
    before, text = split_thoughts(text)
    given_apart = [*map(about.get, REASONING), row.extra.get("reasoning_content"), before]
    thoughts = "\n\n".join(one for one in given_apart if isinstance(one, str) and one.strip())
    called = bool(about.get("tool_calls"))
    empty = not (text.strip() or thoughts or called)
    turns = chat_row(original).value.get("messages") or [{}]
    if empty and "answer" not in row.extra and turns[-1].get("role") != "assistant":
        return None
    return {"text": text, "stopped": True, "thoughts": thoughts, "called_tools": called, "empty": empty}


def _is_text(text: str) -> bool:
    """Whether UTF-8 can encode it: half a surrogate pair is no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
