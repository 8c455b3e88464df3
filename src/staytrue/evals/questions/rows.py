"""Rows of questions, the project's own JSONL: the shipped probes and a user's own. No torch.

A row has an `id` and either `question` (one user turn) or `messages` (turns that end with the user's). `topic`,
`group`, `form` and `expected` are optional. `fields`, beside a `question`, asks it in three forms, one group: plain;
JSON, with the system prompt that wants it; and a template, whose lines are the fields. Both sentences stand once, in
`questions/manifest.json`.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from staytrue.data.examples import Example, Message, read_examples
from staytrue.data.jsonl import shown
from staytrue.errors import DataError
from staytrue.evals.types import Question

_TEXTS = ("id", "topic", "group", "form", "expected")
_KEYS = (*_TEXTS, "fields", "question", "messages")
_FAULTS_SHOWN = 20


@cache
def manifest() -> dict[str, Any]:
    """What holds for all shipped questions: their versions, and the sentences that make the forms."""
    text = resources.files("staytrue.evals").joinpath("questions", "manifest.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def read(path: Path, probe: str) -> tuple[Question, ...]:
    """The questions of a JSONL file.

    Raises:
        DataError: the file is no rows of questions; every fault with its line or row.
    """
    rows = read_examples(path, prompts_only=True)
    refuse(path, [f"row {number}: {fault}" for number, row in enumerate(rows, start=1) for fault in _faults(row)])
    return distinct(path, [question for row in rows for question in _questions(row, probe)])


def distinct(path: Path, questions: Sequence[Question]) -> tuple[Question, ...]:
    """The same questions.

    Raises:
        DataError: two have one id.
    """
    counts = Counter(question.id for question in questions)
    twice = [name for name, count in counts.items() if count > 1]
    refuse(path, [f"the id {shown(name)} stands twice; answers are kept by it, so rename one" for name in twice])
    return tuple(questions)


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raise one DataError that tells the first faults and counts the rest."""
    if not faults:
        return
    told = list(faults[:_FAULTS_SHOWN])
    if len(faults) > len(told):
        told.append(f"... and {len(faults) - len(told):,} more")
    raise DataError(f"{path} cannot be asked:\n" + "\n".join(f"  {fault}" for fault in told))


def unknown_key(key: Any, known: Sequence[str]) -> str:
    """What to say of a key that is not known, with the nearest one that is."""
    close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
    return f"{shown(key)} is not known; " + (f"did you mean {close[0]!r}?" if close else f"use {', '.join(known)}")


def _faults(row: Example) -> Iterator[str]:
    extra = row.extra
    yield from (unknown_key(key, _KEYS) for key in extra if key not in (*_TEXTS, "fields"))
    for key in _TEXTS:
        if key in extra and not _is_text(extra[key]):
            yield f"{key} is {shown(extra[key])}, not text; write a string"
    if "id" not in extra:
        yield "there is no id; answers are kept by it, so give each row its own"
    if row.answer:
        yield "it ends with an answer; a question ends with the user's turn"
    if "fields" in extra:
        yield from _field_faults(row)


def _field_faults(row: Example) -> Iterator[str]:
    fields = row.extra["fields"]
    if not isinstance(fields, list) or not fields or not all(_is_text(field) for field in fields):
        yield f'fields is {shown(fields)}; write names, such as ["idea_1", "reason"]'
    if len(row.messages) > 1 or any(key in row.extra for key in ("group", "form", "expected")):
        yield "fields asks one user turn in three forms; take out the other turns, group, form and expected"


def _questions(row: Example, probe: str) -> Iterator[Question]:
    given = {key: row.extra[key] for key in _TEXTS if key in row.extra}
    if "fields" not in row.extra:
        yield Question(probe=probe, messages=row.messages, **given)
        return
    sentences, name = manifest(), given.pop("id")
    lines = [sentences["template"], *(f"{field}: <text>" for field in row.extra["fields"])]
    forms = {
        "plain": row.messages,
        "json": (Message("system", sentences["json_system"]), *row.messages),
        "template": (Message("user", "\n".join([row.question, *lines])),),
    }
    for form, messages in forms.items():
        yield Question(f"{name}-{form}", probe, messages, group=name, form=form, **given)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
