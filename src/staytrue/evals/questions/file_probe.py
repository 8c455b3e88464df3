"""A user's question file as a probe, named after the file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from staytrue.errors import RequestError
from staytrue.evals.questions import files as questionfile
from staytrue.evals.questions.probes import DOMAINS, SAMPLES, ExactMatch, Probe
from staytrue.evals.triggers import trigger

ENDINGS = (".yaml", ".yml", ".jsonl")
_OURS = ("general", "in_domain", "learnt", "facts", "arithmetic", trigger.PROBE, *DOMAINS)


def read(path: Path) -> Probe:
    """The probe of a question file: judged, or marked where every question has a right answer.

    Raises:
        RequestError: it is called as one of ours, or some of its questions have a right answer and some have none.
        DataError: the file has faults.
    """
    refuse_name("--probes", path)
    asked = questionfile.read(path)
    right = [question.expected is not None for question in asked.questions]
    if all(right):
        return Probe(path.stem, asked.questions, ExactMatch(), max_new_tokens=asked.max_new_tokens)
    if any(right):
        raise RequestError(
            f"--probes {path}: some of its questions have a right answer and are marked, others are judged; put them "
            "into two files."
        )
    temperature = 1.0 if asked.temperature is None else asked.temperature
    samples = asked.per_question or SAMPLES
    return Probe(path.stem, asked.questions, None, samples, temperature, asked.max_new_tokens)


def refuse_name(option: str, path: Path) -> None:
    """Refuse a file whose probe would pass for one of ours.

    Raises:
        RequestError: it is called as one of them.
    """
    if path.stem in _OURS:
        raise RequestError(f"{option} {path}: {path.stem!r} is one of our own probes; give the file another name.")


def unread(names: Sequence[str]) -> list[str]:
    """A sentence for every named question file that asks for something which changes nothing here.

    Raises:
        DataError: a question file has faults.
    """
    files = [Path(name) for name in names if Path(name).suffix in ENDINGS]
    keys = {file: questionfile.read(file).unused for file in files}
    return [f"{file}: {', '.join(unused)} changes nothing here." for file, unused in keys.items() if unused]
