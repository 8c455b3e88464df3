"""`RowFacts` counts what a data set's rows hold: questions, turns, tools, reasoning, weights, copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from staytrue.data import tables
from staytrue.data.examples import Example
from staytrue.data.jsonl import Faults, objects
from staytrue.data.row_checks import REASONING
from staytrue.data.row_notes import copies

_FORMS = {  # by the columns that a row of the form has; the first that fits
    "messages": ("messages",),
    "ShareGPT conversations": ("conversations",),
    "prompt and completion": ("prompt", "completion"),
    "Alpaca instruction and output": ("instruction", "output"),
    "question and answer": ("question", "answer"),
}


@dataclass(frozen=True)
class RowFacts:
    """The counts of a data set.

    Attributes:
        form: of its first row.
        rows: number of rows.
        questions: of distinct last user turns.
        copies: rows with the same text as an earlier row.
        several: rows with more than one answer.
        system, tools, reasoning, unweighted: rows with a system turn, with tools or tool calls, with reasoning in keys
            of its own, and with an answer of weight 0.
    """

    form: str
    rows: int
    questions: int
    copies: int
    several: int
    system: int
    tools: int
    reasoning: int
    unweighted: int

    @classmethod
    def of(cls, data: Path, rows: Sequence[Example], split: str | None = None) -> RowFacts:
        """Count the rows that were read from a file, a data set's folder or the hub, and from a split of it."""
        turns = [row.messages for row in rows]
        keys = [{key for turn in row if turn.more for key in json.loads(turn.more)} for row in turns]
        return cls(
            form=_form(data, split),
            rows=len(rows),
            questions=len({row.question for row in rows}),
            copies=copies(rows),
            several=sum(sum(turn.role == "assistant" for turn in row) > 1 for row in turns),
            system=sum(any(turn.role == "system" for turn in row) for row in turns),
            tools=sum(bool(row.tools) or "tool_calls" in own for row, own in zip(rows, keys, strict=True)),
            reasoning=sum(not own.isdisjoint(REASONING) for own in keys),
            unweighted=sum(any(turn.weight == 0 for turn in row) for row in turns),
        )

    def sentence(self) -> str:
        """What the rows are, in one sentence.

        >>> RowFacts("messages", 300, 250, 4, 0, 300, 0, 0, 0).sentence()
        '300 rows (messages) with 250 distinct questions; 300 with a system turn, 4 copies of another row.'
        """
        counts = {
            "with several answers": self.several,
            "with a system turn": self.system,
            "with tools": self.tools,
            "with reasoning": self.reasoning,
            "with an answer of weight 0, which is not learnt": self.unweighted,
            "copies of another row": self.copies,
        }
        listed = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
        questions = f"{self.rows:,} rows ({self.form}) with {self.questions:,} distinct questions"
        return f"{questions}; {listed}." if listed else f"{questions}."


def _form(data: Path, split: str | None) -> str:
    """The form of the first row."""
    faults = Faults()
    found = tables.rows(data, split, faults) if tables.is_table(data) else objects(data, faults)
    columns = next(found)[1].keys()
    return next((form for form, names in _FORMS.items() if all(name in columns for name in names)), "another form")
