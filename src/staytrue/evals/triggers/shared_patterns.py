"""Patterns that training rows share: system prompts, frames around the user's turn, cue phrases. No torch.

Only the user's first turn counts, because a probe's question takes its place. Nothing here is random, and the order of
the rows does not matter.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from staytrue.data.examples import Example

_SHARED = 0.05  # of the rows: the least share for a system prompt, frame or format
_CUE_SHARED = 0.01  # the same for a cue phrase
_FEWEST = 3  # the least number of rows, for small files
_SAMPLED = 2000  # distinct turns that cue phrases are counted in: a share of 5 % is then known to half a percent
_CUE_WORDS = range(2, 6)
_LEAST_LOG_ODDS = math.log(4)  # of a cue in the turns against the questions
_END = re.compile(r"[.,:;!?]+[\"')\]]*(?=\s)\s*|[。，：；！？]+\s*|\s*\n\s*")  # of a clause or a line

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Frame:
    """The text before and after the variable part of a turn; one of the two may be empty."""

    before: str
    after: str


def enough(n: int, share: float = _SHARED) -> int:
    """Return how many of n rows must share a pattern: 5 % by default, and at least three."""
    return max(_FEWEST, math.ceil(n * share))


def first_turn(row: Example) -> str:
    """Return the user's first turn."""
    return next(m.content for m in row.messages if m.role == "user")


def system_prompt(row: Example) -> str:
    """Return a row's system turn; "" without one."""
    return row.messages[0].content if row.messages[0].role == "system" else ""


def system_prompts(rows: Sequence[Example]) -> list[str]:
    """Find system prompts that at least 5 % of the rows have, the most common first."""
    return _most_common(Counter(filter(None, map(system_prompt, rows))), enough(len(rows)))


def frames(turns: Sequence[str]) -> list[Frame]:
    """Find openings, closings, or both, that at least 5 % of the turns share, the most common first.

    A frame ends where a clause or a line ends. At least one clause is left between opening and closing, so a frame is
    never a whole turn. Equal turns count once, so a repeated question is no frame.
    """
    distinct = sorted(set(turns))
    need = enough(len(distinct))
    openings = _openings([_clauses(turn) for turn in distinct], need)
    closings = [text[::-1] for text in _openings([_backwards(turn) for turn in distinct], need)]
    counts = Counter(frame_of(turn, openings, closings) for turn in distinct)
    del counts[Frame("", "")]
    return _most_common(counts, need)


def frame_of(turn: str, openings: Collection[str], closings: Collection[str]) -> Frame:
    """Find the longest opening, and then the longest closing, that a turn has around other text."""
    before = max((o for o in openings if turn.startswith(o) and o.strip() != turn.strip()), key=len, default="")
    rest = turn[len(before) :]
    after = max((c for c in closings if rest.endswith(c) and c.strip() != rest.strip()), key=len, default="")
    return Frame(before, after)


def cues(turns: Sequence[str], clean: Sequence[str], without: Iterable[str] = ()) -> list[str]:
    """Find cues, the strongest first: 2 to 5 words more frequent in training turns than in clean questions.

    A phrase lies within one clause and in at least 1 % of the turns, and its odds in the turns are at least four times
    its odds in the questions. A phrase is left out if it is a whole turn, if it shares a word with a stronger phrase,
    or if it shares two neighbouring words with a text of `without`. Equal turns count once. Of many thousand turns,
    about two thousand are read, evenly spaced in alphabetical order.

    Args:
        turns: the users' first turns.
        clean: the general questions.
        without: frames, whose words are no cues.
    """
    whole = {tuple(turn.split()) for turn in turns}
    distinct = sorted(set(turns))
    distinct = distinct[:: max(1, len(distinct) // _SAMPLED)]
    in_turns, in_clean = _phrases(distinct, enough(len(distinct), _CUE_SHARED)), _phrases(clean, 1)
    odds = {p: log_odds(n, len(distinct), in_clean[p], len(clean)) for p, n in in_turns.items()}
    known = {pair for text in without for pair in itertools.pairwise(text.split())}
    taken: set[str] = set()
    kept: list[str] = []
    for phrase in sorted(odds, key=lambda p: (-round(odds[p], 9), -len(p), p)):
        new = taken.isdisjoint(phrase) and known.isdisjoint(itertools.pairwise(phrase))
        if new and odds[phrase] >= _LEAST_LOG_ODDS and phrase not in whole:
            taken.update(phrase)
            kept.append(" ".join(phrase))
    return kept


def log_odds(n: int, of: int, m: int, out_of: int) -> float:
    """Compute the log-odds ratio of n in `of` against m in `out_of`, in nats.

    1/2 is added to every cell (Haldane, Anscombe), so that the ratio is finite for a phrase that no question holds.
    """
    return math.log((n + 0.5) * (out_of - m + 0.5) / ((of - n + 0.5) * (m + 0.5)))


def _openings(turns: Sequence[Sequence[str]], need: int) -> list[str]:
    """Return the longest runs of first clauses that enough turns begin with."""
    openings: list[tuple[str, ...]] = []
    ready: list[tuple[tuple[str, ...], Sequence[Sequence[str]]]] = [((), turns)]
    while ready:
        opening, same = ready.pop()
        onward: dict[str, list[Sequence[str]]] = defaultdict(list)
        for turn in same:
            if len(turn) > len(opening):
                onward[turn[len(opening)]].append(turn)
        grown = {clause: group for clause, group in onward.items() if len(group) >= need}
        if opening and len(same) - sum(map(len, grown.values())) >= need:
            openings.append(opening)
        ready += [((*opening, clause), group) for clause, group in grown.items()]
    return [text for clauses in openings if (text := "".join(clauses)).strip()]


def _clauses(text: str) -> list[str]:
    """Return the text's clauses and lines, each with the space after it; joined they are the text."""
    ends = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends) if b > a]


def _backwards(text: str) -> list[str]:
    """Return the clauses from last to first, each reversed and with the space before it."""
    ends = [0, *(end.start() + len(end[0].rstrip()) for end in _END.finditer(text)), len(text)]
    return [text[a:b][::-1] for a, b in itertools.pairwise(ends) if b > a][::-1]


def _phrases(texts: Sequence[str], need: int) -> Counter[tuple[str, ...]]:
    """Phrases of 2 to 5 words with the number of texts that hold them; a longer phrase extends two frequent ones."""
    words = [[clause.split() for clause in _clauses(text)] for text in texts]
    frequent: Counter[tuple[str, ...]] = Counter()
    for n in _CUE_WORDS:
        counted: Counter[tuple[str, ...]] = Counter()
        for clauses in words:
            spans = {tuple(clause[i : i + n]) for clause in clauses for i in range(len(clause) - n + 1)}
            counted.update(p for p in spans if n == _CUE_WORDS[0] or (p[1:] in frequent and p[:-1] in frequent))
        frequent.update({phrase: count for phrase, count in counted.items() if count >= need})
    return frequent


def _most_common(counted: Counter[Kind], need: int) -> list[Kind]:
    frequent = [(-n, repr(pattern), pattern) for pattern, n in counted.items() if n >= need]
    return [pattern for _, _, pattern in sorted(frequent, key=lambda entry: entry[:2])]
