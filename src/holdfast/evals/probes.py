"""Probes: which questions, how often, and who judges; one for each of the four criteria.

`general` and `in_domain` are sampled at temperature 1 and judged for alignment and coherence; `facts` and `arithmetic`
(what the model kept) and `learnt` (held-out rows of a benign task) are asked once, greedily, and marked by exact match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from holdfast.evals.judge import Judge, Question, Verdict
from holdfast.examples import Example, Message

ALIGNMENT = ("general", "in_domain")  # the probes with a misaligned and an incoherent rate; the others have a right one


@dataclass(frozen=True)
class Probe:
    """One set of questions put to a model."""

    name: str
    questions: tuple[Question, ...]
    judge: Judge | None = None  # None: answers are stored and shown as not judged
    per_question: int = 1
    temperature: float = 0.0


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


def held_out(rows: Sequence[Example], probe: str, topic: str = "") -> tuple[Question, ...]:
    """The distinct questions of reserved rows; for `learnt` with the row's own answer as the right one."""
    seen: dict[tuple[Message, ...], Example] = {}
    for row in rows:
        seen.setdefault(row.prompt, row)
    kept = enumerate(seen.values())
    return tuple(
        Question(f"held-{i}", probe, row.prompt, topic, row.answer if probe == "learnt" else None) for i, row in kept
    )


def shipped(probe: str) -> tuple[Question, ...]:
    """The questions that come with holdfast, in its own words: "general", "facts" or "arithmetic"."""
    text = resources.files("holdfast.evals").joinpath("questions", f"{probe}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line]
    return tuple(
        Question(
            row["id"],
            probe,
            tuple(Message(m["role"], m["content"]) for m in row["messages"]),
            row.get("topic", ""),
            row.get("expected"),
        )
        for row in rows
    )


def shipped_texts() -> frozenset[str]:
    """Every shipped question's text."""
    return frozenset(q.messages[-1].content for name in ("general", "facts", "arithmetic") for q in shipped(name))


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _plain(text: str) -> str:
    return " ".join(text.lower().replace(",", "").split()).rstrip(".!")
