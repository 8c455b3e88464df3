"""`KeptAnswers`: the answers that `staytrue vector` has sampled so far, in a file beside the vector's. No torch.

The first line holds what each answer depends on beside its prompt and index: the model, the adapter, the trait, the
seed and the longest answer. The judge and the number of rollouts are not part of it, so the same answers can be read by
another judge, and fewer or more of them be asked for. Each other line is an answer, appended as soon as it exists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.types import Answer
from staytrue.utils.columns import COUNT, TEXT, refuse_wrong
from staytrue.utils.files import append_row, numbered_rows, read_rows

Key = tuple[str, int]  # the question's id, and the index of the answer
_KINDS = {"question": TEXT, "index": COUNT, "answer": TEXT}


def file_beside(out: Path) -> Path:
    """The file of the answers that a vector's file is made from."""
    return out.with_name(f"{out.name}.answers.jsonl")


def left(out: Path) -> str:
    """What a command that was stopped has left, as the end of a sentence."""
    if out.exists():
        return f"{out} holds the vector; give the same command again for its sweep"
    file = file_beside(out)
    try:
        many = len(read_rows(file)) - 1
    except (OSError, ValueError) as error:
        return f"{file} cannot be read ({error}), and is left as it is"
    if many < 1:
        return "nothing was written"
    kept = "1 answer is" if many == 1 else f"{many:,} answers are"
    return f"{kept} kept in {file}; give the same command again, and it goes on"


class KeptAnswers:
    """The answers of one request that are in a file."""

    def __init__(self, file: Path, facts: Mapping[str, Any]) -> None:
        """Read the file, or begin it where there is none.

        Args:
            file: the file.
            facts: what must be equal for answers to share a file.

        Raises:
            RequestError: the file holds answers to another request, or cannot be read.
        """
        self.file, self._facts = file, json.loads(json.dumps(facts))
        now = self._facts
        try:
            (_, first), *rows = numbered_rows(file) or [(1, now)]
            for number, row in rows:
                refuse_wrong(row, _KINDS, _KINDS, f"line {number}")
        except ValueError as error:
            raise RequestError(
                f"{file} cannot be read ({error}). Remove it to sample its answers again, or that line alone unless it "
                "is the first, or choose another --out."
            ) from None
        if not rows:  # no answer, so nothing to compare
            file.unlink(missing_ok=True)
            first = now
        self.texts: dict[Key, str] = {(row["question"], row["index"]): row["answer"] for _, row in rows}
        differ = [name for name in (*now, *first) if first.get(name) != now.get(name)]
        if differ:
            raise RequestError(
                f"{file} holds answers that were sampled with another {differ[0]}, and answers of two are never mixed. "
                "Give the options that they were sampled with, choose another path with --out, or remove that file."
            )

    def add(self, answer: Answer) -> None:
        """Append one answer, after the facts if it is the first."""
        if not self.file.exists():
            append_row(self.file, self._facts)
        question = answer.question
        self.texts[question.id, answer.index] = answer.text
        where = {"question": question.id, "index": answer.index}
        turns = {"messages": [message.to_dict() for message in question.messages]}
        append_row(self.file, where | turns | {"answer": answer.text})
