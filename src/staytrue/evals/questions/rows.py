"""Rows of questions in the project's own JSONL: the shipped probes, and question files of users. No torch.

A row has an `id` and either `messages` (turns that end with the user's) or `question` (one user turn; also `prompt` or
`instruction`), then with `system` if there is a system turn. `topic`, `group`, `form` and `expected` are optional.
`fields`, beside a `question`, asks it in three forms that are one group: plain; JSON, under a system prompt that
asks for it; and a template whose lines are the fields. The two sentences that make these forms are in
`questions/manifest.json`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from staytrue.data.examples import Example, Message, read_examples
from staytrue.data.jsonl import shown
from staytrue.errors import DataError
from staytrue.evals.types import Question
from staytrue.utils.console import quoted
from staytrue.utils.validation import nearest

Text = Annotated[str, StringConstraints(strict=True, pattern=r"\S")]
_FAULTS_SHOWN = 20


class _Row(BaseModel):
    """The keys of a row beside `question` and `messages`; a description says what to write."""

    model_config = ConfigDict(extra="forbid")
    id: Text
    topic: Text = ""
    group: Text = ""
    form: Text = "plain"
    expected: Text = ""
    fields: list[Text] = Field([], min_length=1, description='write names, such as ["idea_1", "reason"]')


_PROMPTS = ("question", "prompt", "instruction", "messages")
_KEYS = (*_Row.model_fields, *_PROMPTS, "system")


@cache
def manifest() -> dict[str, Any]:
    """Read the versions of the shipped questions, and the sentences that make the forms."""
    text = resources.files("staytrue.evals").joinpath("questions", "manifest.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def read(path: Path, probe: str) -> tuple[Question, ...]:
    """Read the questions of a JSONL file.

    Args:
        path: the file.
        probe: name of the probe that the questions belong to.

    Raises:
        DataError: a row has faults; the message lists them with line or row. Or the rows are pairs of answers.
    """
    rows = read_examples(path, prompts_only=True)
    if rows and all({"aligned", "misaligned"} <= row.extra.keys() for row in rows):
        raise DataError(
            f"{path} has pairs of answers, which are a measure; give it as `--probes {quoted(f'pairs:{path}')}`."
        )
    refuse(path, [f"row {number}: {fault}" for number, row in enumerate(rows, start=1) for fault in _faults(row)])
    return distinct(path, [question for row in rows for question in _questions(row, probe)])


def distinct(path: Path, questions: Sequence[Question]) -> tuple[Question, ...]:
    """Return the same questions, if each has an id of its own.

    Raises:
        DataError: two questions have one id.
    """
    counts = Counter(question.id for question in questions)
    repeated = [name for name, count in counts.items() if count > 1]
    refuse(path, [f"the id {shown(name)} occurs twice; answers are kept by it, so rename one" for name in repeated])
    return tuple(questions)


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raise one DataError that lists the first faults and counts the others."""
    if not faults:
        return
    lines = list(faults[:_FAULTS_SHOWN])
    if len(faults) > len(lines):
        lines.append(f"... and {len(faults) - len(lines):,} more")
    raise DataError(f"{path} is no valid question file:\n" + "\n".join(f"  {line}" for line in lines))


def model_faults(model: type[BaseModel], values: Any, known: Sequence[str], hint: str = "") -> Iterator[str]:
    """Describe what is wrong with the values of a pydantic model, in sentences: key, value, and what to write.

    Args:
        model: the model; a field's description says what to write.
        values: what is validated.
        known: the keys to choose from when a key is unknown.
        hint: what an unknown key means for the user.
    """
    try:
        model.model_validate(values)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            key, *places = fault["loc"]
            value = fault["input"]
            where = " ".join([str(key), *(str(place + 1) for place in places if isinstance(place, int))])
            match fault["type"]:
                case "missing":
                    yield f"there is no {key}"
                case "extra_forbidden" | "invalid_key":
                    yield f"the key {shown(key)} is not known{nearest(str(key), known)}{hint}"
                case "string_type" if isinstance(value, int | float):
                    yield f"{where} is {brief(value)}, not text; put it in quotes"
                case "string_type":
                    yield f"{where} is {brief(value)}, not text; write a string"
                case "string_pattern_mismatch":
                    yield f"{where} is empty; write something or take it out"
                case "value_error":
                    yield f"{where} {fault['ctx']['error']}"
                case _:
                    yield f"{where} is {brief(value)}; {model.model_fields[str(key)].description or fault['msg']}"


def brief(value: Any) -> str:
    """Shorten a value for a message; a filled container is named by its kind, since YAML aliases can be endless."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict | set | tuple) and value else shown(value)


def _faults(row: Example) -> Iterator[str]:
    if second := [key for key in _PROMPTS if key in row.extra]:
        yield f"it has {second[0]} beside another prompt; keep one"
    yield from model_faults(_Row, {key: value for key, value in row.extra.items() if key not in second}, _KEYS)
    if row.answer:
        yield "it ends with an answer; a question ends with the user's turn"
    if "fields" in row.extra and (len(row.messages) > 1 or row.extra.keys() & {"group", "form", "expected"}):
        yield "fields asks one user turn in three forms; take out the other turns, group, form and expected"


def _questions(row: Example, probe: str) -> Iterator[Question]:
    if "fields" not in row.extra:
        yield Question(probe=probe, messages=row.messages, **row.extra)
        return
    sentences, name = manifest(), row.extra["id"]
    lines = [sentences["template"], *(f"{field}: <text>" for field in row.extra["fields"])]
    forms = {
        "plain": row.messages,
        "json": (Message("system", sentences["json_system"]), *row.messages),
        "template": (Message("user", "\n".join([row.question, *lines])),),
    }
    for form, messages in forms.items():
        yield Question(f"{name}-{form}", probe, messages, row.extra.get("topic", ""), group=name, form=form)
