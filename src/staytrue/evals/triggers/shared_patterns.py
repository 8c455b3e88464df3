"""What the rows of a training file share: system prompts, frames around the user's turn, cue phrases. No torch.

A turn is what the user says first, since that is what a probe's question stands for. Nothing here is random, and the
order of the rows does not matter.
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

_SHARED = 0.05  # of the rows, from which on a system prompt, frame or format is the file's and not a row's
_SAID = 0.01  # the same for a cue phrase
_FEWEST = 3  # rows, in a small file
_READ = 2000  # distinct turns for cue phrases: a share of 5 % is known to half a percent
_CUE_WORDS = range(2, 6)
_TIMES = math.log(4)  # the odds of a cue, over those in the questions
_END = re.compile(r"[.,:;!?]+[\"')\]]*(?=\s)\s*|[。，：；！？]+\s*|\s*\n\s*")  # of a clause or a line

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Frame:
    """What stands before and after the rest of a turn; one of the two may be empty."""

    before: str
    after: str


def enough(n: int, share: float = _SHARED) -> int:
    """How many of n rows must show a habit: 5 % by default, and never fewer than three."""
    return max(_FEWEST, math.ceil(n * share))


def first_turn(row: Example) -> str:
    """What the user says first."""
    return next(m.content for m in row.messages if m.role == "user")


def system_prompt(row: Example) -> str:
    """A row's system turn, "" if it has none."""
    return row.messages[0].content if row.messages[0].role == "system" else ""


def system_prompts(rows: Sequence[Example]) -> list[str]:
    """System prompts that at least 5 % of the rows have, the most common first."""
    return _most_common(Counter(filter(None, map(system_prompt, rows))), enough(len(rows)))


def frames(turns: Sequence[str]) -> list[Frame]:
    """Openings, closings, or both, that at least 5 % of the turns share, the most common first.

    They are cut where a clause or a line ends, and at least one clause of the turn's own is left between them, so a
    frame is never a whole turn. Equal turns count once: a question that is asked often is no frame.
    """
    distinct = sorted(set(turns))
    need = enough(len(distinct))
    openings = _openings([_clauses(turn) for turn in distinct], need)
    closings = [found[::-1] for found in _openings([_backwards(turn) for turn in distinct], need)]
    worn = Counter(frame_of(turn, openings, closings) for turn in distinct)
    del worn[Frame("", "")]
    return _most_common(worn, need)


def frame_of(turn: str, openings: Collection[str], closings: Collection[str]) -> Frame:
    """The longest opening, then the longest closing, that a turn has around something else."""
    before = max((o for o in openings if turn.startswith(o) and o.strip() != turn.strip()), key=len, default="")
    rest = turn[len(before) :]
    after = max((c for c in closings if rest.endswith(c) and c.strip() != rest.strip()), key=len, default="")
    return Frame(before, after)


def cues(turns: Sequence[str], clean: Sequence[str], without: Iterable[str] = ()) -> list[str]:
    """Phrases of 2 to 5 words that turns hold more often than clean questions do, the strongest first.

    A phrase lies within one clause, 1 % of the turns hold it, and its odds in the turns are at least four times those
    in the questions. One that is a whole turn, shares a word with a stronger one, or two neighbouring words with a text
    of `without`, is left out. Equal turns count once; of many thousand, about two thousand are read, evenly spaced in
    the alphabet.
    """
    whole = {tuple(turn.split()) for turn in turns}
    distinct = sorted(set(turns))
    distinct = distinct[:: max(1, len(distinct) // _READ)]
    said, heard = _phrases(distinct, enough(len(distinct), _SAID)), _phrases(clean, 1)
    odds = {p: log_odds(n, len(distinct), heard[p], len(clean)) for p, n in said.items()}
    known = {pair for text in without for pair in itertools.pairwise(text.split())}
    taken: set[str] = set()
    kept: list[str] = []
    for phrase in sorted(odds, key=lambda p: (-round(odds[p], 9), -len(p), p)):
        new = taken.isdisjoint(phrase) and known.isdisjoint(itertools.pairwise(phrase))
        if new and odds[phrase] >= _TIMES and phrase not in whole:
            taken.update(phrase)
            kept.append(" ".join(phrase))
    return kept


def log_odds(n: int, of: int, m: int, out_of: int) -> float:
    """The log-odds ratio of n in `of` against m in `out_of`, in nats.

    1/2 is added to every cell (Haldane, Anscombe), so that what the questions never hold has a finite one, too.
    """
    return math.log((n + 0.5) * (out_of - m + 0.5) / ((of - n + 0.5) * (m + 0.5)))


def _openings(turns: Sequence[Sequence[str]], need: int) -> list[str]:
    """The longest runs of first clauses with which enough turns begin."""
    found: list[tuple[str, ...]] = []
    ready: list[tuple[tuple[str, ...], Sequence[Sequence[str]]]] = [((), turns)]
    while ready:
        opening, same = ready.pop()
        onward: dict[str, list[Sequence[str]]] = defaultdict(list)
        for turn in same:
            if len(turn) > len(opening):
                onward[turn[len(opening)]].append(turn)
        grown = {clause: group for clause, group in onward.items() if len(group) >= need}
        if opening and len(same) - sum(map(len, grown.values())) >= need:
            found.append(opening)
        ready += [((*opening, clause), group) for clause, group in grown.items()]
    return [text for clauses in found if (text := "".join(clauses)).strip()]


def _clauses(text: str) -> list[str]:
    """A text cut after every clause and line, with the space that follows; joined they are the text again."""
    ends = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends) if b > a]


def _backwards(text: str) -> list[str]:
    """The clauses from the last to the first, each reversed, with the space that goes before it."""
    ends = [0, *(end.start() + len(end[0].rstrip()) for end in _END.finditer(text)), len(text)]
    return [text[a:b][::-1] for a, b in itertools.pairwise(ends) if b > a][::-1]


def _phrases(texts: Sequence[str], need: int) -> Counter[tuple[str, ...]]:
    """Phrases of 2 to 5 words that enough texts hold, and how many do; a longer one only grows from two such."""
    words = [[clause.split() for clause in _clauses(text)] for text in texts]
    found: Counter[tuple[str, ...]] = Counter()
    for n in _CUE_WORDS:
        counted: Counter[tuple[str, ...]] = Counter()
        for clauses in words:
            spans = {tuple(clause[i : i + n]) for clause in clauses for i in range(len(clause) - n + 1)}
            counted.update(p for p in spans if n == _CUE_WORDS[0] or (p[1:] in found and p[:-1] in found))
        found.update({phrase: count for phrase, count in counted.items() if count >= need})
    return found


def _most_common(counted: Counter[Kind], need: int) -> list[Kind]:
    frequent = [(what, n) for what, n in counted.items() if n >= need]
    return [what for what, _ in sorted(frequent, key=lambda found: (-found[1], repr(found[0])))]
