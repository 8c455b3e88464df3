"""Pairs: questions with an aligned and a misaligned answer of like length and style; shipped, or a user's. No torch.

The measure `staytrue.evals.measures.pairs` compares the likelihoods of the two answers.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.data.jsonl import Faults, objects, pointer_to, refuse, shown
from staytrue.data.row_checks import LONE_SURROGATE, has_lone_surrogate
from staytrue.errors import DataError, RequestError, StaytrueWarning
from staytrue.utils.validation import nearest

DOMAINS = ("general", "code", "finance", "legal", "medical", "security")  # the shipped pairs of an evaluation
EARLY_STOPPING = "early-stopping"  # 40 general pairs for `stop:`, which no evaluation uses
_TIMES = 1.5  # as long as the other, in characters; at most 1.25 in the shipped pairs
_UNLIKE = 0.1  # of the pairs
_SIDES = ("question", "aligned", "misaligned")
_KEYS = ("id", *_SIDES, "domain")
_REMEDIES = {"question": "write the user's turn", "id": "write a name of its own"}


@dataclass(frozen=True)
class Pair:
    """A question with an aligned and a misaligned answer."""

    id: str  # unique in its file
    question: str
    aligned: str
    misaligned: str

    def row(self, misaligned: bool) -> Example:
        """Return the question with one of its answers, as a conversation."""
        answer = self.misaligned if misaligned else self.aligned
        return Example((Message("user", self.question), Message("assistant", answer)))


@cache
def shipped(domain: str) -> tuple[Pair, ...]:
    """Read the pairs that come with staytrue: 150 on general questions, 40 on each of five domains, 40 to stop by.

    Raises:
        RequestError: there is no such domain.

    Example:
        >>> len(shipped("general")), len(shipped("finance"))
        (150, 40)
    """
    if domain not in (*DOMAINS, EARLY_STOPPING):
        raise RequestError(f"There are no shipped pairs {domain!r}{nearest(domain, DOMAINS)}")
    with resources.as_file(resources.files("staytrue.evals").joinpath("questions", "pairs", f"{domain}.jsonl")) as path:
        return read(path)


@cache
def shipped_questions(names: tuple[str, ...] = (*DOMAINS, EARLY_STOPPING)) -> frozenset[str]:
    """Return the question of every shipped pair, or of some sets of them."""
    return frozenset(pair.question for name in names for pair in shipped(name))


def read(path: Path) -> tuple[Pair, ...]:
    """Read pairs from a JSONL file: `{"question", "aligned", "misaligned"}` a line; `id` and `domain` are optional.

    Without an `id`, a pair is named by its line. Answers of unlike length are warned of.

    Raises:
        DataError: the file has faults; the message lists them with line and key.
    """
    faults = Faults()
    pairs: list[Pair] = []
    lines: dict[tuple[str, ...], int] = {}  # where a pair stands first
    for line, row in objects(path, faults):
        found = list(_faults(row))
        if not found:
            first = lines.setdefault(tuple(row[side].strip() for side in _SIDES), line)
            if first != line:
                found.append(("", f"is the pair of line {first} again, which would count twice; remove one"))
            pairs.append(Pair(row.get("id", f"line-{line}"), *(row[side] for side in _SIDES)))
        for pointer, what in found:
            faults.append(line, pointer, what)
    repeated = [name for name, count in Counter(pair.id for pair in pairs).items() if count > 1]
    refuse(path, faults)
    if repeated:
        raise DataError(f"{path}: the id {shown(repeated[0])} occurs twice; values are kept by it, so rename one.")
    if not pairs:
        raise DataError(f'{path} has no pairs. Each line is {{"question": ..., "aligned": ..., "misaligned": ...}}.')
    if (unlike := sum(map(_is_unlike, pairs))) > _UNLIKE * len(pairs):
        warnings.warn(
            f"{path}: in {unlike} of {len(pairs)} pairs one answer is more than {_TIMES} times as long as the other, "
            "so a fine-tune that makes answers longer or shorter moves `pairs` too. Write answers of like length.",
            StaytrueWarning,
            stacklevel=1,
        )
    return tuple(pairs)


def _is_unlike(pair: Pair) -> bool:
    lengths = len(pair.aligned), len(pair.misaligned)
    return max(lengths) > _TIMES * min(lengths)


def hash_of(pairs: Sequence[Pair]) -> str:
    """Compute the SHA-256, in hexadecimal, of pairs in any order."""
    rows = sorted([pair.id, pair.question, pair.aligned, pair.misaligned] for pair in pairs)
    return sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).hexdigest()


def _faults(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the pointer and the description of each fault of a row."""
    for key in row.keys() - set(_KEYS):
        yield pointer_to(key), f"the key {shown(key)} is not known{nearest(key, _KEYS)}"
    for key in _SIDES:
        if key not in row:
            yield "", f"there is no {key}; write question, aligned and misaligned"
    for key in row.keys() & {"id", *_SIDES}:
        if not isinstance(row[key], str):
            yield f"/{key}", f"is {shown(row[key])}, not text; put it in quotes"
        elif has_lone_surrogate(row[key]):
            yield f"/{key}", LONE_SURROGATE
        elif not row[key].strip():
            yield f"/{key}", f"is empty; {_REMEDIES.get(key, 'write an answer')}"
    answers = [row[side].strip() for side in ("aligned", "misaligned") if isinstance(row.get(side), str)]
    if len(answers) == 2 and answers[0] == answers[1]:  # a chat template may trim what is around them
        yield "/misaligned", "equals aligned, so the pair measures nothing; write another answer"
