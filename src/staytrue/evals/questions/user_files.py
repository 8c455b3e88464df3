"""Question files of users: the field's YAML lists as they are published, and our own JSONL rows. No torch.

A YAML file is a list of entries with `id` and `paraphrases`, and optionally `type`, `system`, `topic`,
`samples_per_paraphrase`, `temperature`, `max_tokens` and `judge_prompts` (`aligned` and `coherent`). Each paraphrase is
a question. The paraphrases of an entry, and the entries `x`, `x_json` and `x_template`, are one group. The keys `judge`
and `meta` and further judge prompts change nothing here; `QuestionFile.unused` names them. Other keys are refused.

The script that was published with the first such files drew paraphrases at random with replacement, ignored
`samples_per_paraphrase` and dropped `system`. Here each paraphrase is asked as often as the file says, with its system
turn; `probes.without_system` drops that turn for comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from staytrue.data.examples import Message
from staytrue.errors import DataError, RequestError
from staytrue.evals.judges.rubric import template_fault
from staytrue.evals.questions import rows
from staytrue.evals.questions.probes import DOMAINS, SAMPLES, ExactMatch, Probe
from staytrue.evals.questions.rows import Text, brief, distinct, model_faults, refuse
from staytrue.evals.triggers.trigger import PROBE as TRIGGERED
from staytrue.evals.types import Question
from staytrue.utils.files import refuse_pipe
from staytrue.utils.yaml12 import from_yaml

SUFFIXES = (".yaml", ".yml", ".jsonl")
_SHIPPED_NAMES = ("general", "in_domain", "learnt", "facts", "arithmetic", TRIGGERED, *DOMAINS)
_PROMPTS = ("aligned", "coherent")
_NUMBERS = ("samples_per_paraphrase", "temperature", "max_tokens")
_FORMS = {"_json": "json", "_template": "template"}
_UNUSED = ("judge", "meta")


@dataclass(frozen=True)
class QuestionFile:
    """The questions of a file and how to ask them; a number is None where the file gives none."""

    questions: tuple[Question, ...]
    per_question: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    unused: tuple[str, ...] = ()  # keys of the file that change nothing here, such as "judge"


def _checked_prompts(prompts: Any) -> Any:
    """Judge prompts, if there is a template for alignment and one for coherence."""
    if not isinstance(prompts, dict) or any(key not in prompts for key in _PROMPTS):
        keys = ", ".join(map(str, prompts)) if isinstance(prompts, dict) else brief(prompts)
        raise ValueError(
            f"has {keys}; alignment and coherence are judged, so give aligned and coherent or take the key out"
        )
    for key in _PROMPTS:
        if not isinstance(prompts[key], str):
            raise ValueError(f"{key} is {brief(prompts[key])}, not text; put it in quotes")
        if fault := template_fault(prompts[key]):
            raise ValueError(f"{key} {fault}")
    return prompts


_Count = Annotated[int, Field(strict=True, gt=0)]
_WHOLE = "write a whole number above 0"


class _Entry(BaseModel):
    """An entry of a YAML list; a description says what to write."""

    model_config = ConfigDict(extra="forbid")
    id: Annotated[Text, BeforeValidator(lambda name: str(name) if type(name) is int else name)]
    type: Literal["free_form_judge_0_100", "free_form"] = Field(
        "free_form",
        description="its judge gives no number from 0 to 100; only free_form_judge_0_100 and free_form can be judged",
    )
    paraphrases: list[Text] = Field(strict=True, min_length=1, description="write a list with a text on each line")
    system: Text | None = None
    topic: Text = ""
    samples_per_paraphrase: _Count | None = Field(None, description=_WHOLE)
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = Field(
        None, description="write a number from 0 to 2"
    )
    max_tokens: _Count | None = Field(None, description=_WHOLE)
    judge_prompts: Annotated[dict[Any, Any], BeforeValidator(_checked_prompts)] = {}
    judge: Any = None
    meta: Any = None


def read(path: Path) -> QuestionFile:
    """Read the questions of a `.yaml`, `.yml` or `.jsonl` file; their probe is named after the file.

    Raises:
        DataError: the file has another suffix, or faults; the message lists them with entry and key, or line.
        RecipeError: the file is not YAML.
    """
    if path.suffix == ".jsonl":
        return QuestionFile(rows.read(path, path.stem))
    if path.suffix in SUFFIXES:
        return _published(path)
    raise DataError(f"{path} is no question file; name a .yaml list of questions or .jsonl rows.")


def read_probe(path: Path, samples: int = SAMPLES) -> Probe:
    """Read a question file as a probe: judged, or marked by exact match where every question has a right answer.

    Args:
        path: the file.
        samples: answers to each question, where the file names no number.

    Raises:
        RequestError: the file has the name of a shipped probe, or only some of its questions have a right answer.
        DataError: the file has faults.
    """
    refuse_shipped_name("--probes", path)
    file = read(path)
    marked = [question.expected is not None for question in file.questions]
    if all(marked):
        return Probe(path.stem, file.questions, ExactMatch(), max_new_tokens=file.max_new_tokens)
    if any(marked):
        raise RequestError(
            f"--probes {path}: some of its questions have a right answer and are marked, others are judged; put them "
            "into two files."
        )
    temperature = 1.0 if file.temperature is None else file.temperature
    return Probe(path.stem, file.questions, None, file.per_question or samples, temperature, file.max_new_tokens)


def refuse_shipped_name(option: str, path: Path) -> None:
    """Refuse a file whose probe would have the name of a shipped one.

    Raises:
        RequestError: it has.
    """
    if path.stem in _SHIPPED_NAMES:
        raise RequestError(f"{option} {path}: {path.stem!r} is one of our own probes; give the file another name.")


def unused_keys(names: Sequence[str]) -> list[str]:
    """Describe, in a sentence each, the named question files that have keys without effect here.

    Raises:
        DataError: a question file has faults.
    """
    files = _read_all(names)
    return [f"{path}: {', '.join(file.unused)} changes nothing here." for path, file in files.items() if file.unused]


def overruled_limits(names: Sequence[str], limit: int | None) -> list[str]:
    """Name, in a sentence each, the question files whose own token limit an option takes the place of.

    Raises:
        DataError: a question file has faults.
    """
    if limit is None:
        return []
    own = {path: file.max_new_tokens for path, file in _read_all(names).items()}
    return [
        f"{path}: --max-new-tokens {limit} counts, not its own max_tokens of {tokens}."
        for path, tokens in own.items()
        if tokens not in (None, limit)
    ]


def _read_all(names: Sequence[str]) -> dict[Path, QuestionFile]:
    """The question files among some probes' names."""
    return {Path(name): read(Path(name)) for name in names if Path(name).suffix in SUFFIXES}


def _published(path: Path) -> QuestionFile:
    """Return the questions of a YAML list."""
    listed = _listed(path)
    refuse(path, [fault for number, entry in enumerate(listed, start=1) for fault in _faults(number, entry)])
    entries = [_Entry.model_validate(entry) for entry in listed]
    refuse(path, list(_differences(entries)))
    ids = {entry.id for entry in entries}
    numbers = {key: value for entry in entries for key, value in entry if key in _NUMBERS and value is not None}
    return QuestionFile(
        distinct(path, [question for entry in entries for question in _questions(entry, ids, path.stem)]),
        per_question=numbers.get("samples_per_paraphrase"),
        temperature=numbers.get("temperature"),
        max_new_tokens=numbers.get("max_tokens"),
        unused=tuple(dict.fromkeys(key for entry in entries for key in _unused(entry))),
    )


def _listed(path: Path) -> list[Any]:
    """Return the entries of a YAML list, without empty keys."""
    refuse_pipe(path)
    try:
        listed = from_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path} is {brief(listed)}, not a list of questions, each with an id and paraphrases.")
    return [{k: v for k, v in e.items() if v is not None} if isinstance(e, dict) else e for e in listed]


def _faults(number: int, entry: Any) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"entry {number} is {brief(entry)}; an entry has an id and paraphrases"
        return
    where = f"entry {brief(entry['id'])}" if "id" in entry else f"entry {number}"
    faults = model_faults(_Entry, entry, tuple(_Entry.model_fields), " What this key asks for would not be done")
    yield from (f"{where}: {fault}" for fault in faults)


def _differences(entries: Sequence[_Entry]) -> Iterator[str]:
    """Refuse numbers that differ from entry to entry: a probe has one of each."""
    for key in _NUMBERS:
        first = {value: entry.id for entry in reversed(entries) if (value := getattr(entry, key)) is not None}
        if len(first) > 1:
            values = " and ".join(f"{value} in entry {name!r}" for value, name in list(first.items())[:2])
            yield f"{key} is {values}; all questions of a file are asked alike, so split the file by it"


def _questions(entry: _Entry, ids: set[str], probe: str) -> Iterator[Question]:
    suffix = next((s for s in _FORMS if entry.id.endswith(s) and entry.id.removesuffix(s) in ids), "")
    system = () if entry.system is None else (Message("system", entry.system),)
    for number, text in enumerate(entry.paraphrases):
        yield Question(
            id=entry.id if len(entry.paraphrases) == 1 else f"{entry.id}.{number}",
            probe=probe,
            messages=(*system, Message("user", text)),
            topic=entry.topic,
            group=entry.id.removesuffix(suffix),
            form=_FORMS.get(suffix, "plain"),
            prompts=tuple((key, entry.judge_prompts[key]) for key in _PROMPTS if key in entry.judge_prompts),
        )


def _unused(entry: _Entry) -> Iterator[str]:
    yield from (key for key in _UNUSED if key in entry.model_fields_set)
    yield from (f"judge_prompts.{key}" for key in entry.judge_prompts if key not in _PROMPTS)
