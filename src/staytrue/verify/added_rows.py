"""Did the rows of a defense reach the model? Rows beside the batch at their share; edited rows at all."""

from __future__ import annotations

from collections.abc import Iterator

from staytrue.defense import Defense
from staytrue.verify.evidence import Evidence


def beside_faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that rows were not fed beside the batch at the defense's share."""
    own, of_others = run.seen(run.label)
    task, either = run.seen("task")
    least = defense.share * task - 1 - of_others
    most = defense.share * (task + either) + 1
    if not least <= own <= most:
        share = own / (task + either) if task + either else 0.0
        beside = f"{own} of its rows were read beside {task + either} task rows"
        yield f"{beside}, a share of {share:.4g}, not {defense.share:g}"


def curate_faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that no row was edited or added by the data defenses."""
    curated = run.facts.get("curated", {})
    if not curated.get("new") and not curated.get("added"):
        yield "no row was changed or added"


def unknown_fault(run: Evidence) -> str | None:
    """The evidence that the model read rows that are not the run's; None without it."""
    unknown = sum(row["rows"].get("unknown", 0) for row in run.rows)
    return f"the model read {unknown} rows that are none of the run's data" if unknown else None
