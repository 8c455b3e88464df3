"""`Evidence` holds what a run's files say about one defense, as `Defense.evidence` and the checks read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from staytrue.defense import Defense


@dataclass(frozen=True)
class Evidence:
    """The evidence about one defense of a run.

    Attributes:
        label: its label, such as `kl` or `kl.2`.
        defenses: every defense of the run, by label.
        log: the rows of `metrics.jsonl`.
        rows: the rows of `evidence.jsonl`, one for each of the log.
        facts: the content of `evidence.json`.
        projected: the numbers that it reported after training, by name without the label.
        evaluation_texts: the texts that the run's evaluation asked, triggers apart, and of its reserved rows.
        left_out: how many training rows were left out because no answer token was left.
    """

    label: str
    defenses: Mapping[str, Defense]
    log: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]
    projected: Mapping[str, float] = field(default_factory=dict)
    evaluation_texts: Sequence[str] = ()
    left_out: int = 0

    @property
    def own(self) -> Mapping[str, Any]:
        """The facts about this defense that hold for the whole run."""
        return self.of(self.label)

    def of(self, label: str) -> Mapping[str, Any]:
        """The facts about a defense of the run that hold for the whole run."""
        numbers: Mapping[str, Any] = self.facts.get("defenses", {}).get(label, {})
        return numbers

    def numbers(self) -> list[Mapping[str, Any]]:
        """The measurements of this defense, for each row of the log."""
        return [row.get("defenses", {}).get(self.label, {}) for row in self.rows]

    def total(self, key: str) -> float:
        """The sum of one of these numbers over the run; 0 where it is missing."""
        return sum(numbers.get(key) or 0 for numbers in self.numbers())

    def seen(self, source: str, unit: str = "rows") -> tuple[int, int]:
        """How many rows (or "tokens") of a source the model read.

        Returns:
            Those of this source alone, and those whose content another source has too.
        """
        alone = either = 0
        for row in self.rows:
            for names, count in row.get(unit, {}).items():
                if names == source:
                    alone += count
                elif source in names.split("/"):
                    either += count
        return alone, either

    def moved(self) -> list[bool]:
        """For each row of the log, whether the weights had moved before its last step."""
        return [bool(row.get("moved")) for row in self.rows]
