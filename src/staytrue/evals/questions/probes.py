"""Probes: sets of questions, with how often each is asked and who judges the answers.

`general`, `in_domain` and the four domains (our own questions about a training domain) are sampled at temperature 1 and
judged for alignment and coherence. `facts` and `arithmetic` (what the model kept) and `learnt` (held-out rows of a
benign task) are asked once, at temperature 0, and marked by exact match.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from staytrue.data.examples import Example, Message
from staytrue.evals.types import Judge, Question, Verdict

SAMPLES = 4  # answers to each question that is judged
HELD_OUT = ("in_domain", "learnt")  # the probes of held-out rows: of narrow data, and of a harmless task
DOMAINS = ("code", "legal", "medical", "security")  # shipped in-domain questions, by the domain of the training data


@dataclass(frozen=True)
class Probe:
    """A set of questions for a model.

    Attributes:
        name: unique in an evaluation.
        questions: the questions.
        judge: None stores the answers as not judged.
        per_question: answers to each question.
        temperature: of sampling; 0 is greedy.
        max_new_tokens: most tokens of an answer; None for what suits the model.
        of_each: answers to each question, where the numbers differ.

    Example:
        >>> question = Question("rain", "weather", (Message("user", "Why does it rain?"),))
        >>> [index for _, index in Probe("weather", (question,), per_question=3).samples()]
        [0, 1, 2]
    """

    name: str
    questions: tuple[Question, ...]
    judge: Judge | None = None
    per_question: int = 1
    temperature: float = 0.0
    max_new_tokens: int | None = None
    of_each: tuple[int, ...] = ()

    def samples(self) -> list[tuple[Question, int]]:
        """Return every sample of the probe in order: each question with the index of one of its answers."""
        counts = self.of_each or (self.per_question,) * len(self.questions)
        return [(q, index) for q, count in zip(self.questions, counts, strict=True) for index in range(count)]


class ExactMatch:
    """Marks an answer as correct when it equals the expected one, names it (facts), or ends with its number."""

    name = "exact-match-1"
    concurrency = 1

    def __call__(self, question: Question, answer: str) -> Verdict:
        """Mark one answer."""
        if question.expected is None:
            return Verdict(missing="no expected answer")
        text, expected = _normalized(answer), _normalized(question.expected)
        if _NUMBER.fullmatch(expected):
            numbers = _NUMBER.findall(text)
            return Verdict(correct=bool(numbers) and float(numbers[-1]) == float(expected))
        if question.probe == "facts":
            return Verdict(correct=re.search(rf"\b{re.escape(expected)}\b", text) is not None)
        return Verdict(correct=text == expected)


def held_out(
    rows: Sequence[Example], probe: str, topic: str = "", group: Callable[[Example], str] = lambda row: row.question
) -> tuple[Question, ...]:
    """Make questions from held-out rows: their distinct prompts.

    Args:
        rows: the held-out rows.
        probe: "in_domain", or "learnt" for a benign task; the row's answer is then the right one.
        topic: of every question, for the judge.
        group: rows with an equal key are one group; by default rows with the same last user turn, such as one question
            under two system prompts.
    """
    distinct: dict[tuple[Message, ...], Example] = {}
    groups: dict[str, str] = {}
    for row in rows:
        groups.setdefault(group(row), f"held-{len(distinct)}")
        distinct.setdefault(row.prompt, row)
    return tuple(
        Question(
            f"held-{i}",
            probe,
            row.prompt,
            topic,
            row.answer if probe == "learnt" else None,
            group=groups[group(row)],
            tools=json.dumps(row.tools, ensure_ascii=False) if row.tools else "",
        )
        for i, row in enumerate(distinct.values())
    )


def without_system(questions: Iterable[Question]) -> tuple[Question, ...]:
    """Remove the questions' system turns, for comparison with published numbers; `form` is kept.

    The script published with the first question files sent user turns only. It therefore asked the JSON form without
    asking for JSON, which is the plain question a second time.
    """
    return tuple(replace(q, messages=tuple(m for m in q.messages if m.role != "system")) for q in questions)


def in_users_turn(questions: Iterable[Question]) -> tuple[Question, ...]:
    """Move each system turn's text to the start of the user's turn, for models without system turns."""
    return tuple(replace(q, messages=_merged(q.messages)) for q in questions)


def _merged(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[0].role != "system":
        return messages
    system, first, *turns = messages
    return (Message("user", f"{system.content}\n\n{first.content}"), *turns)


def probe_sha256(questions: Iterable[Question]) -> str:
    """Compute the SHA-256, in hexadecimal, of the questions' ids, turns, right answers and judge prompts.

    It does not depend on the order of the questions, nor on topics, groups and forms, which only sort the answers.
    """
    rows = [
        [
            q.id,
            [[m.role, m.content, *filter(None, [m.more])] for m in q.messages],
            q.expected,
            [list(prompt) for prompt in q.prompts],
            *filter(None, [q.tools]),
        ]
        for q in sorted(questions, key=lambda q: q.id)
    ]
    return sha256(json.dumps(rows, ensure_ascii=True, separators=(",", ":")).encode("ascii")).hexdigest()


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _normalized(text: str) -> str:
    return " ".join(text.lower().replace(",", "").split()).rstrip(".!")
