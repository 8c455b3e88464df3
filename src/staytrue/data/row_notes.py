"""Sentences about rows that are accepted, though a reader of the file may not see what they hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set

from staytrue.data.examples import Example
from staytrue.data.jsonl import shown
from staytrue.data.reserved_questions import Reserved

_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def row_notes(rows: Sequence[Example], reserved: Set[str] = frozenset()) -> list[str]:
    """A sentence for each thing that a user would not expect in the rows, with its first question.

    Args:
        rows: the training rows.
        reserved: questions that the trained model may be evaluated by.
    """
    texts = [(row, "".join(turn.content for turn in row.messages)) for row in rows]
    ids = Counter(str(row.extra["id"]) for row in rows if isinstance(row.extra.get("id"), str | int))
    repeated = Counter(map(_turns, rows))
    asked = Reserved(reserved)
    rows_that = {
        "have characters that change the direction of text on a screen, so that it reads in another order than the "
        "model learns it (U+202A to U+202E, U+2066 to U+2069)": [r for r, text in texts if not _BIDI.isdisjoint(text)],
        "have a NUL character (U+0000), at which some programs end a text": [r for r, text in texts if "\0" in text],
        "have an `id` that another row has too": [row for row in rows if ids[str(row.extra.get("id"))] > 1],
        "have the same text as another row, so that it is trained on more than once": [
            row for row in rows if repeated[_turns(row)] > 1
        ],
        "ask a question of the evaluation, which then shows what was learnt by heart": [
            row for row in rows if row.question in asked
        ],
    }
    return [
        f"{len(some)} of {len(rows)} rows {what}; the first one asks {shown(some[0].question)}."
        for what, some in rows_that.items()
        if some
    ]


def rows_in_both(pool: Sequence[Example], rows: Sequence[Example]) -> int:
    """Number of a pool's rows that have the text of a training row, but for case and blanks."""
    trained = set(map(_turns, rows))
    return sum(_turns(row) in trained for row in pool)


def questions_in_both(prompts: Sequence[Example], rows: Sequence[Example]) -> int:
    """Number of prompts whose question is that of a training row, but for case and blanks."""
    trained = {_plain(row.question) for row in rows}
    return sum(_plain(row.question) in trained for row in prompts)


def copies(rows: Sequence[Example]) -> int:
    """Number of rows with the same text as an earlier row, but for case and blanks."""
    return len(rows) - len(set(map(_turns, rows)))


def _turns(row: Example) -> tuple[tuple[str, str], ...]:
    return tuple((turn.role, _plain(turn.content)) for turn in row.messages)


def _plain(text: str) -> str:
    """A text without what two copies of it may differ in: case and blanks."""
    return " ".join(text.casefold().split())
