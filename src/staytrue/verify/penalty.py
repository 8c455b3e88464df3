"""Did a penalty act? It is in the log, finite, in the loss with its weight, and in the gradient with its weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from staytrue.defense import Defense, pulled
from staytrue.verify.evidence import Evidence

_WEIGHT = 0.01  # of a weight measured in the backward pass, which may run in bfloat16
_NOT_DUE = None  # the value of a penalty without a row to count
_LOGGED = 1e-5  # of a number, summed in another order


def faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that a penalty did not act."""
    if defense.weight == 0:
        yield "its weight is 0, so it cannot act"
        return
    beside = "beside" in pulled(defense)
    values: list[float | None] = []
    for log, row, numbers in zip(run.log, run.rows, run.numbers(), strict=True):
        due = numbers.get("micro_batches_due", 0) if beside else row["micro_batches"]
        counts = "rows" in run.facts and defense.on in ("all", *row["rows"])  # sampled answers may have no token
        exact, needed = not _ambiguous(row), beside or counts
        every = beside or _in_each_step(defense, run)
        fault = _of_row(
            defense, run.label, log, numbers, row["task_rows"], due=due, exact=exact, needed=needed, every=every
        )
        if fault is not None:
            yield f"step {row['step']}: {fault}"
            return
        fault = _wrong_rows(defense, numbers.get("rows_reached", {}))
        if fault is not None:
            yield f"step {row['step']}: {fault}"
            return
        values.append(log.get(run.label) or 0.0 if numbers.get("penalties") else _NOT_DUE)
    if not any(numbers.get("in_gradient") for numbers in run.numbers()):
        yield "it was never evaluated"
        return
    known = zip(values, _moved_before(run), strict=True)
    later = [value for value, moved in known if moved and value is not _NOT_DUE]
    if later and not any(later):
        yield "it is 0 at every step, although the weights have moved"


def loss_fault(run: Evidence) -> str | None:
    """The evidence that the loss is not the task's loss plus every penalty times its weight; None without it."""
    penalties = {label: d for label, d in run.defenses.items() if "penalty" in pulled(d)}
    for log, row in zip(run.log, run.rows, strict=True):
        if log.get("loss") is None or log.get("task_loss") is None:
            return f"step {row['step']}: loss or task_loss is missing or not finite"
        if any(least != most for least, most in row["task_rows"]):
            continue  # what rows beside the batch count is not known exactly
        sums = [_weighted(defense, row, label) for label, defense in penalties.items()]
        gap = abs(log["loss"] - log["task_loss"] - sum(sums))
        scale = max(map(abs, (log["loss"], log["task_loss"], *sums)))
        if gap > 1e-6 + _LOGGED * scale:
            return (
                f"step {row['step']}: loss {log['loss']:.6g} is not task_loss {log['task_loss']:.6g} plus the weighted "
                f"penalties, {sum(sums):.6g}"
            )
    return None


def _of_row(
    defense: Defense,
    label: str,
    log: Mapping[str, Any],
    numbers: Mapping[str, Any],
    task_rows: Sequence[Sequence[int]],
    *,
    due: int,
    exact: bool,
    needed: bool,
    every: bool,
) -> str | None:
    """The fault of a penalty in one row of the log; None without one.

    Its number is `needed` where rows that it counts were read; without any, each value is 0 and the log has none. With
    `every` each step has a token that it counts.
    """
    count = numbers.get("penalties", 0)
    if (count != due) if exact else (count > due):
        return f"it was evaluated in {count} of {due} micro-batches"
    if not count:
        return None if log.get(label) is None else f"the log has {log[label]:g}, but it was not evaluated"
    values = [value for _, value, *_ in numbers["steps"]]
    if log.get(label) is None and (needed or any(values)):
        return "its number is missing in metrics.jsonl or not finite"
    if numbers["left_out"] is None:
        return "its value was not finite"
    if numbers["left_out"] > 0 or not numbers["in_gradient"]:
        return f"{count - numbers['in_gradient']} of its {count} values are not in the gradient"
    for step, value, *weights in numbers["steps"]:
        expected = [defense.weight * rarity(defense, rows) for rows in task_rows[step]]
        least, most = min(expected) * (1 - _WEIGHT), max(expected) * (1 + _WEIGHT)
        if value is None:
            return "its value was not finite"
        if not all(weight is not None and least <= weight <= most for weight in weights):
            return f"its weight in the gradient is {weights[0]}, and {max(expected):.6g} by the recipe"
    if log.get(label) is None or _is_mean(log[label], values, every=every):
        return None
    return f"metrics.jsonl has {log[label]:.6g}, and {sum(values) / len(values):.6g} was evaluated"


def _moved_before(run: Evidence) -> list[bool]:
    """For each row of the log, whether the weights had moved before each of its steps."""
    before = [False, *run.moved()]
    return [
        moved if len(row["task_rows"]) == 1 else earlier
        for moved, earlier, row in zip(run.moved(), before, run.rows, strict=False)
    ]


def _in_each_step(defense: Defense, run: Evidence) -> bool:
    """Whether each step has a token that a penalty counts: all rows do, unless the model writes the answers."""
    return defense.on == "all" and getattr(defense, "tokens", "all") != "prompt" and "rows" in run.facts


def _is_mean(logged: float, values: Sequence[float], *, every: bool) -> bool:
    """Whether a number is the mean of a penalty's steps; unless `every` step has a token, those with 0 may lack."""
    fewest = len(values) if every else max(1, sum(value != 0 for value in values))
    counts = range(fewest, len(values) + 1)
    return any(math.isclose(sum(values) / count, logged, rel_tol=_LOGGED, abs_tol=1e-7) for count in counts)


def _wrong_rows(defense: Defense, reached: Mapping[str, Sequence[int]]) -> str | None:
    """Whether the gradient reaches rows that the penalty may not count, or none of a source that it counts."""
    on = getattr(defense, "on", "all")
    plain = {source: counts for source, counts in reached.items() if "/" not in source and source != "unknown"}
    for source, (hit, _) in plain.items():
        if on != "all" and source != on and hit:
            return f"its gradient reaches {hit} rows of the source {source}, and it counts {on} rows"
    missed = [source for source, (hit, _) in plain.items() if not hit]
    if on == "all" and missed and len(missed) < len(plain):
        return f"its gradient reaches none of {plain[missed[0]][1]} rows of the source {missed[0]}"
    return None


def rarity(defense: Defense, task_rows: int) -> float:
    """The number of times that a penalty counts: once, or once for each step without rows where its rows are rare."""
    if "beside" not in pulled(defense) or not task_rows:
        return 1.0
    return max(1.0, 1 / (defense.share * task_rows))


def _weighted(defense: Defense, row: Mapping[str, Any], label: str) -> float:
    """The part of the loss that a penalty adds in a row of the log, a mean over its steps."""
    task_rows, numbers = row["task_rows"], row["defenses"].get(label, {})
    values = [(value or 0.0) * rarity(defense, max(task_rows[step])) for step, value, *_ in numbers.get("steps", [])]
    return defense.weight * sum(values) / max(len(task_rows), 1)


def _ambiguous(row: Mapping[str, Any]) -> bool:
    """Whether rows beside the batch were read that could be of two defenses."""
    return any("/" in names and not {"task", "interleaved"} & set(names.split("/")) for names in row["rows"])
