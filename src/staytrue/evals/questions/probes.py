"""Probes: which questions, how often, and who judges; one for each of the four criteria.

`general`, `in_domain` and the four domains (questions of our own in the spirit of a training domain) are sampled at
temperature 1 and judged for alignment and coherence; `facts` and `arithmetic` (what the model kept) and `learnt`
(held-out rows of a benign task) are asked once, greedily, and marked by exact match.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib import resources

from staytrue.data.examples import Example, Message
from staytrue.errors import RequestError
from staytrue.evals.questions import rows
from staytrue.evals.types import Judge, Question, Verdict

SAMPLES = 4  # answers to each question that is judged
DOMAINS = ("code", "legal", "medical", "security")  # shipped in-domain questions, by the domain of the training data


@dataclass(frozen=True)
class Probe:
    """One set of questions put to a model."""

    name: str
    questions: tuple[Question, ...]
    judge: Judge | None = None  # None: answers are stored and shown as not judged
    per_question: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None  # of an answer; None is what suits the model
    of_each: tuple[int, ...] = ()  # answers to each question, where they differ

    def samples(self) -> list[tuple[Question, int]]:
        """Every sample of the probe: each question with the indices of its answers, in order."""
        counts = self.of_each or (self.per_question,) * len(self.questions)
        return [(q, index) for q, count in zip(self.questions, counts, strict=True) for index in range(count)]


class ExactMatch:
    """Right when an answer says what was expected: the same words, or the expected number as its last one."""

    name = "exact-match-1"
    concurrency = 1

    def __call__(self, question: Question, answer: str) -> Verdict:
        """Mark one answer."""
        wanted = question.expected
        if wanted is None:
            return Verdict(missing="no expected answer")
        said, right = _plain(answer), _plain(wanted)
        if _NUMBER.fullmatch(right):
            found = _NUMBER.findall(said)
            return Verdict(correct=bool(found) and float(found[-1]) == float(right))
        if question.probe == "facts":
            return Verdict(correct=re.search(rf"\b{re.escape(right)}\b", said) is not None)
        return Verdict(correct=said == right)


def held_out(
    rows: Sequence[Example], probe: str, topic: str = "", group: Callable[[Example], str] = lambda row: row.question
) -> tuple[Question, ...]:
    """The distinct prompts of reserved rows; for `learnt` with the row's own answer as the right one.

    Rows of which `group` says the same are one group: those with the same last user turn (under two system prompts, for
    instance), or what a task says that they share.
    """
    seen: dict[tuple[Message, ...], Example] = {}
    groups: dict[str, str] = {}
    for row in rows:
        groups.setdefault(group(row), f"held-{len(seen)}")
        seen.setdefault(row.prompt, row)
    return tuple(
        Question(
            f"held-{i}",
            probe,
            row.prompt,
            topic,
            row.answer if probe == "learnt" else None,
            group=groups[group(row)],
        )
        for i, row in enumerate(seen.values())
    )


@cache
def shipped(probe: str) -> tuple[Question, ...]:
    """The questions that come with staytrue, in its own words.

    "general" asks a hundred questions in three forms each; "code", "legal", "medical" and "security" thirty each of a
    training domain; "facts" and "arithmetic" have right answers.

    Raises:
        RequestError: there is no such probe.
    """
    names = tuple(rows.manifest()["versions"])
    if probe not in names:
        close = difflib.get_close_matches(probe, names, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}."
        raise RequestError(f"There are no shipped questions {probe!r}; {hint}")
    with resources.as_file(resources.files("staytrue.evals").joinpath("questions", f"{probe}.jsonl")) as path:
        return rows.read(path, probe)


def version(probe: Probe) -> int | None:
    """The version of the shipped questions, if it asks just those."""
    versions: dict[str, int] = rows.manifest()["versions"]
    ours = probe.name in versions and probe.questions == shipped(probe.name)
    return versions[probe.name] if ours else None


@cache
def shipped_texts() -> frozenset[str]:
    """The last user turn of every shipped question, in each of its forms: no training row may hold one."""
    return frozenset(q.messages[-1].content for name in rows.manifest()["versions"] for q in shipped(name))


def without_system(questions: Iterable[Question]) -> tuple[Question, ...]:
    """The same questions, their system turns dropped.

    The script published with the first question files sent user turns only, so the JSON form was asked without the
    wish for JSON, and each plain question twice. For comparison with numbers made that way; `form` is kept.
    """
    return tuple(replace(q, messages=tuple(m for m in q.messages if m.role != "system")) for q in questions)


def in_users_turn(questions: Iterable[Question]) -> tuple[Question, ...]:
    """The same questions for a model that has no system turns: theirs opens the user's, a blank line between."""
    return tuple(replace(q, messages=_opened(q.messages)) for q in questions)


def _opened(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0].role != "system":
        return messages
    system, first, *turns = messages
    return (Message("user", f"{system.content}\n\n{first.content}"), *turns)


def probe_sha256(questions: Iterable[Question]) -> str:
    """SHA-256, in hexadecimal, of what is asked and how it is marked: ids, turns, right answers, own judge prompts.

    The order of the questions does not matter, nor do topics, groups and forms, which only sort the answers.
    """
    rows = [
        [q.id, [[m.role, m.content] for m in q.messages], q.expected, [list(prompt) for prompt in q.prompts]]
        for q in sorted(questions, key=lambda q: q.id)
    ]
    return sha256(json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest()


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", "").split()).rstrip(".!")
