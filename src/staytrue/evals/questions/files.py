"""Question files from the user's path: the field's YAML lists, read as they are published, and our own rows. No torch.

A YAML file is a list of entries with `id` and `paraphrases`, and optionally `type`, `system`, `topic`,
`samples_per_paraphrase`, `temperature`, `max_tokens` and `judge_prompts` (`aligned` and `coherent`). Each paraphrase is
a question; the paraphrases of an entry, and the entries `x`, `x_json` and `x_template`, are one group. Keys that ask
for something else are refused; `judge`, `meta` and further judge prompts are left unused, and `unused` names them.

The script that came with the first such files drew paraphrases at random with replacement, ignored
`samples_per_paraphrase` and dropped `system`. Here each is asked as often as the file says, with its system turn;
`probes.without_system` drops it for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.data.examples import Message
from staytrue.data.jsonl import shown
from staytrue.errors import DataError
from staytrue.evals.judges.rubric import template_fault
from staytrue.evals.questions import rows
from staytrue.evals.questions.rows import distinct, refuse, unknown_key
from staytrue.evals.types import Question
from staytrue.utils.yaml12 import from_yaml

_TYPES = ("free_form_judge_0_100", "free_form")
_PROMPTS = ("aligned", "coherent")
_NUMBERS = ("samples_per_paraphrase", "temperature", "max_tokens")
_FORMS = {"_json": "json", "_template": "template"}
_UNUSED = ("judge", "meta")


@dataclass(frozen=True)
class QuestionFile:
    """What a file asks; a number is None where the file does not say."""

    questions: tuple[Question, ...]
    per_question: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    unused: tuple[str, ...] = ()  # keys of the file that change nothing here, such as "judge"


def read(path: Path) -> QuestionFile:
    """The questions of a `.yaml`, `.yml` or `.jsonl` file; the probe is named after the file.

    Raises:
        DataError: the file is none of these, or its faults, each with entry and key, or line.
        RecipeError: the file is not YAML.
    """
    if path.suffix == ".jsonl":
        return QuestionFile(rows.read(path, path.stem))
    if path.suffix in (".yaml", ".yml"):
        return _published(path)
    raise DataError(f"{path} is no question file; name a .yaml list of questions or .jsonl rows.")


def _published(path: Path) -> QuestionFile:
    entries = _entries(path)
    ids = {entry["id"] for entry in entries}
    said = {key: value for entry in entries for key, value in entry.items() if key in _NUMBERS}
    return QuestionFile(
        questions=distinct(path, [question for entry in entries for question in _questions(entry, ids, path.stem)]),
        per_question=said.get("samples_per_paraphrase"),
        temperature=said.get("temperature"),
        max_new_tokens=said.get("max_tokens"),
        unused=tuple(dict.fromkeys(key for entry in entries for key in _unused(entry))),
    )


def _questions(entry: dict[str, Any], ids: set[str], probe: str) -> Iterator[Question]:
    name, texts = entry["id"], entry["paraphrases"]
    suffix = next((s for s in _FORMS if name.endswith(s) and name.removesuffix(s) in ids), "")
    prompts = entry.get("judge_prompts", {})
    for number, text in enumerate(texts):
        yield Question(
            id=name if len(texts) == 1 else f"{name}.{number}",
            probe=probe,
            messages=(*_system(entry), Message("user", text)),
            topic=entry.get("topic", ""),
            group=name.removesuffix(suffix),
            form=_FORMS.get(suffix, "plain"),
            prompts=tuple((key, prompts[key]) for key in _PROMPTS if key in prompts),
        )


def _system(entry: dict[str, Any]) -> tuple[Message, ...]:
    return (Message("system", entry["system"]),) if "system" in entry else ()


def _unused(entry: dict[str, Any]) -> Iterator[str]:
    yield from (key for key in _UNUSED if key in entry)
    yield from (f"judge_prompts.{key}" for key in entry.get("judge_prompts", {}) if key not in _PROMPTS)


def _entries(path: Path) -> list[dict[str, Any]]:
    """The entries, ids as text and empty keys left out, once nothing is wrong with them."""
    try:
        given = from_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(given, list) or not given:
        raise DataError(f"{path} is {_told(given)}, not a list of questions, each with an id and paraphrases.")
    entries = [{k: v for k, v in e.items() if v is not None} if isinstance(e, dict) else e for e in given]
    refuse(path, [fault for number, entry in enumerate(entries, start=1) for fault in _faults(number, entry)])
    entries = [entry | {"id": str(entry["id"])} for entry in entries]
    refuse(path, list(_differences(entries)))
    return entries


def _faults(number: int, entry: Any) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"entry {number} is {_told(entry)}; an entry has an id and paraphrases"
        return
    where = f"entry {_told(entry['id'])}" if "id" in entry else f"entry {number}"
    yield from (f"{where}: there is no {key}" for key in ("id", "paraphrases") if key not in entry)
    for key, value in entry.items():
        if key not in _CHECKS and key not in _UNUSED:
            yield f"{where}: the key {unknown_key(key, (*_CHECKS, *_UNUSED))}; what it asks for would not be done"
        elif key in _CHECKS and (fault := _CHECKS[key](value)):
            yield f"{where}, {key}: {fault}"


def _differences(entries: list[dict[str, Any]]) -> Iterator[str]:
    """A probe is asked in one way: numbers that differ from entry to entry are refused."""
    for key in _NUMBERS:
        said = {entry[key]: entry["id"] for entry in reversed(entries) if key in entry}
        if len(said) > 1:
            told = " and ".join(f"{value} in entry {name!r}" for value, name in list(said.items())[:2])
            yield f"{key} is {told}; all questions of a file are asked alike, so split the file by it"


def _id_fault(value: Any) -> str | None:
    return None if isinstance(value, int) and not isinstance(value, bool) else _text_fault(value)


def _text_fault(value: Any) -> str | None:
    if not isinstance(value, str):
        return f"is {_told(value)}, not text; put it in quotes"
    return None if value.strip() else "is empty; write something or take it out"


def _texts_fault(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return f"is {_told(value)}; write a list with a text on each line"
    return next((f"{i} {fault}" for i, text in enumerate(value, start=1) if (fault := _text_fault(text))), None)


def _type_fault(value: Any) -> str | None:
    if value in _TYPES:
        return None
    return f"is {_told(value)}, whose judge gives no number from 0 to 100; only {' and '.join(_TYPES)} can be judged"


def _count_fault(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return None if whole and value > 0 else f"is {_told(value)}; write a whole number above 0"


def _temperature_fault(value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and 0 <= value <= 2 else f"is {_told(value)}; write a number from 0 to 2"


def _prompts_fault(value: Any) -> str | None:
    if not isinstance(value, dict) or any(key not in value for key in _PROMPTS):
        given = ", ".join(map(str, value)) if isinstance(value, dict) else _told(value)
        return f"has {given}; alignment and coherence are judged, so give aligned and coherent or take the key out"
    for key in _PROMPTS:
        if fault := _text_fault(value[key]) or template_fault(value[key]):
            return f"{key} {fault}"
    return None


def _told(value: Any) -> str:
    """A value as a message shows it; containers by kind only, since aliases make small files of endless ones."""
    return f"a {type(value).__name__}" if isinstance(value, list | dict | set | tuple) else shown(value)


_CHECKS: dict[str, Callable[[Any], str | None]] = {
    "id": _id_fault,
    "type": _type_fault,
    "paraphrases": _texts_fault,
    "system": _text_fault,
    "topic": _text_fault,
    "samples_per_paraphrase": _count_fault,
    "temperature": _temperature_fault,
    "max_tokens": _count_fault,
    "judge_prompts": _prompts_fault,
}
