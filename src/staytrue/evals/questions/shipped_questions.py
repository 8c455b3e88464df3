"""The questions that come with staytrue: they stand beside this file, one JSONL file a probe, and are read here."""

from __future__ import annotations

from functools import cache
from importlib import resources

from staytrue.errors import RequestError
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions import rows as question_rows
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Question
from staytrue.utils.validation import nearest


@cache
def shipped(probe: str) -> tuple[Question, ...]:
    """Read the questions that come with staytrue, which are not copied from published sets.

    "general" has a hundred questions in three forms each; "code", "legal", "medical" and "security" have thirty each
    about a training domain; "facts" and "arithmetic" have right answers.

    Raises:
        RequestError: there is no such probe.

    Example:
        >>> len(shipped("medical"))
        30
    """
    names = tuple(question_rows.manifest()["versions"])
    if probe not in names:
        raise RequestError(f"There are no shipped questions {probe!r}{nearest(probe, names)}")
    with resources.as_file(resources.files("staytrue.evals").joinpath("questions", f"{probe}.jsonl")) as path:
        return question_rows.read(path, probe)


def version(probe: Probe) -> int | None:
    """Return the version of the shipped questions; None if the probe asks others."""
    versions: dict[str, int] = question_rows.manifest()["versions"]
    is_shipped = probe.name in versions and probe.questions == shipped(probe.name)
    return versions[probe.name] if is_shipped else None


@cache
def shipped_texts() -> frozenset[str]:
    """Return the last user turn of every form of every shipped question and pair; no training row may hold one."""
    texts = {q.messages[-1].content for name in question_rows.manifest()["versions"] for q in shipped(name)}
    return frozenset(texts | answer_pairs.shipped_questions())
