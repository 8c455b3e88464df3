"""The store of an evaluation's measures: values of each question, and a summary of each measure. No torch.

`measures.json` holds the model's identity and how each measure was taken. `measures.jsonl` holds the values that the
summary is computed from. Both are replaced whole.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.results.columns import LEAKS, MEASURED
from staytrue.evals.stats.intervals import rate
from staytrue.evals.stats.means import Values, mean
from staytrue.utils.columns import checked_rows, refuse_wrong
from staytrue.utils.files import write_atomic, write_json
from staytrue.utils.run_dir import SCHEMA

PAIRS, DRIFT, LEAK = NAMES = ("pairs", "drift", "leak")
NATS, PERCENT = "nats per token", "percent"


def is_measure(name: str) -> bool:
    """Return whether a name among the probes is a measure: `pairs`, `pairs:DOMAIN`, `pairs:FILE`, `drift`, `leak`."""
    return name in NAMES or name.startswith(f"{PAIRS}:")


def stored_name(name: str) -> str:
    """Return the name under which a measure is stored: of a file of pairs only the file's name, without its suffix.

    Example:
        >>> stored_name("pairs:data/mine.jsonl"), stored_name("pairs:general")
        ('pairs:mine', 'pairs')
    """
    kind, _, which = name.partition(":")
    return kind if which in ("", "general") else f"{kind}:{Path(which).stem}"


@dataclass(frozen=True)
class Measure:
    """One measure of one model.

    Attributes:
        name: `pairs`, `pairs:finance`, `drift`, `leak`, ...
        about: how it was measured, as in `sha256` of the pairs; two runs are comparable where these are equal.
        rows: for likelihoods, `question`, `value` and `untuned` (None where the untuned model is not known), nats per
            token; for `leak`, `question`, `index`, `value` (nats per word), `leaked`, and `answer`.
    """

    name: str
    about: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """Compute the mean difference to the untuned model in nats per token, or the percent of leaks.

        Returns:
            `value`, `low`, `high` (95 %), `n`, `questions` and `unit`; `value` is None where the untuned model is not
            known.
        """
        bounds: tuple[float | None, float | None, float | None]
        if self.name == LEAK:
            share, unit, questions = rate(list(self.leaks().values())), PERCENT, len(self.leaks())
            bounds = (share.percent, share.low, share.high) if share else (None, None, None)
        else:
            change, unit, questions = mean([self.changes()]), NATS, len(self.rows)
            bounds = (change.value, change.low, change.high) if change else (None, None, None)
        value, low, high = map(_rounded, bounds)
        return {"value": value, "low": low, "high": high, "n": len(self.rows), "questions": questions, "unit": unit}

    def values(self) -> Values:
        """Return the model's own value of each question, in nats per token."""
        return {row["question"]: row["value"] for row in self.rows}

    def changes(self) -> Values:
        """Return the difference to the untuned model of each question, in nats per token; {} where it is not known."""
        return {row["question"]: row["value"] - row["untuned"] for row in self.rows if row["untuned"] is not None}

    def leaks(self) -> dict[str, list[bool]]:
        """Return whether each answer leaks, by question."""
        leaks: dict[str, list[bool]] = defaultdict(list)
        for row in self.rows:
            leaks[row["question"]].append(row["leaked"])
        return dict(leaks)


def read_measures(evaluation: Path) -> dict[str, Measure]:
    """Read an evaluation's measures by name; {} where none are stored.

    Raises:
        RequestError: they cannot be read.
    """
    if not (evaluation / "measures.json").exists():
        return {}
    content = _content(evaluation)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        for row in checked_rows(evaluation / "measures.jsonl", MEASURED, ("measure", "question", "value")):
            name = row.pop("measure")
            refuse_wrong(row, {}, ["leaked" if name == LEAK else "untuned"], f"a row of {name}")
            rows[name].append(row)
        refuse_wrong(content["measures"].get(LEAK, {}), LEAKS, LEAKS if LEAK in content["measures"] else (), LEAK)
        return {name: Measure(name, about, rows[name]) for name, about in content["measures"].items()}
    except ValueError as error:
        raise _unreadable(evaluation, error) from None


def summaries(evaluation: Path) -> dict[str, dict[str, Any]]:
    """Compute the summary of each stored measure, with how it was measured."""
    return {name: {**one.summary(), **one.about} for name, one in read_measures(evaluation).items()}


def write_measures(evaluation: Path, identity: Mapping[str, Any], measured: Sequence[Measure]) -> None:
    """Add measures to an evaluation, or replace them.

    Args:
        evaluation: its folder.
        identity: the model's name and hash, and its adapter's, which all measures in the folder share.
        measured: the measures.

    Raises:
        RequestError: the folder holds measures of another model.
    """
    refuse_other_model(evaluation, identity)
    stored = read_measures(evaluation) | {one.name: one for one in measured}
    rows = [{"measure": name, **row} for name, one in stored.items() for row in one.rows]
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_atomic(evaluation / "measures.jsonl", lines)
    content = {name: dict(one.about) for name, one in stored.items()}
    write_json(evaluation / "measures.json", {"schema": SCHEMA, **identity, "measures": content})


def refuse_other_model(evaluation: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to mix two models in one folder.

    Raises:
        RequestError: the folder holds measures or answers of another model or adapter.
    """
    if (evaluation / "measures.json").exists():
        before = _content(evaluation)
    elif (evaluation / "answers.jsonl").exists() and (evaluation / "eval.json").exists():
        before = AnswerStore(evaluation).metadata()
    else:
        return
    now = json.loads(json.dumps(identity))
    for key in dict.fromkeys((*now, "weights")):  # which only a fully fine-tuned model has
        if before.get(key) != now.get(key):
            raise RequestError(
                f"{evaluation} holds results of another {key} ({json.dumps(before.get(key))}, now "
                f"{json.dumps(now.get(key))}); those of two are never mixed. Name another folder with --out."
            )


def _content(evaluation: Path) -> dict[str, Any]:
    try:
        content = json.loads((evaluation / "measures.json").read_text(encoding="utf-8"))
        measures = content.get("measures") if isinstance(content, dict) else None
        if not isinstance(measures, dict) or not all(isinstance(about, dict) for about in measures.values()):
            raise ValueError("it does not say how each measure was taken")
        return dict(content)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(evaluation, error) from None


def _unreadable(evaluation: Path, error: Exception) -> RequestError:
    return RequestError(
        f"The measures in {evaluation} cannot be read ({error}); remove measures.json and measure again."
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
