"""`findings(path)`: one line for a run's files, and one for each of its defenses. It changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from staytrue.config.recipe import read
from staytrue.defense import Defense, pulled
from staytrue.errors import RequestError
from staytrue.evals.results.columns import TURNS
from staytrue.evals.triggers.trigger import PROBE as TRIGGERED
from staytrue.registry import labelled
from staytrue.utils.columns import checked_rows
from staytrue.utils.files import read_rows
from staytrue.utils.run_dir import RunDir
from staytrue.verify import added_rows, files, gradients, penalty, steering, weights
from staytrue.verify.evidence import Evidence
from staytrue.verify.shown import shown

# What checks each method that a defense may override.
CHECKS: dict[str, Callable[[Defense, Evidence], Iterator[str]]] = {
    "penalty": penalty.faults,
    "beside": added_rows.beside_faults,
    "curate": added_rows.curate_faults,
    "steer": steering.faults,
    "combine": gradients.faults,
    "freeze": weights.freeze_faults,
    "project": weights.project_faults,
}


@dataclass(frozen=True)
class Finding:
    """Whether a defense acted, or the files are whole.

    Attributes:
        what: "files", "loss" or a defense's label.
        faults: what shows the contrary, a sentence each; none if all is well.
        shows: what was measured, where all is well.
    """

    what: str
    faults: tuple[str, ...]
    shows: str


def findings(path: Path, defenses: Sequence[Defense] | None = None) -> list[Finding]:
    """Check the files of a run and each of its defenses.

    Args:
        path: the run folder.
        defenses: those that the run was trained with, where its recipe cannot name them (your own); None reads the
            recipe.

    Raises:
        RequestError: it is no run folder, or its recipe cannot be read.
    """
    manifest = RunDir.open(path).manifest
    known = labelled(read(path / "recipe.yaml").defenses if defenses is None else defenses)
    results = [Finding("files", tuple(files.faults(path, manifest)), _files_shown(manifest))]
    log, rows, facts = _read(path)
    missing = None
    if facts is None or not rows:
        missing = "the run recorded no evidence"
    elif [row.get("step") for row in log] != [row.get("step") for row in rows]:
        missing = "metrics.jsonl and evidence.jsonl have other steps"
    if facts is None or missing is not None:
        return results + [Finding(label, (missing or "",), "") for label in known]
    left_out = manifest.get("rows", {}).get("nothing_to_score", 0)
    evidence = Evidence("", known, log, rows, facts, evaluation_texts=_evaluation_texts(path), left_out=left_out)
    if known:
        results.append(_whole(evidence))
    for label, defense in known.items():
        numbers = {k: v for k, v in (manifest.get("projected") or {}).items() if k.startswith(f"{label}/")}
        own = {name.removeprefix(f"{label}/"): number for name, number in numbers.items()}
        results.append(_of(defense, replace(evidence, label=label, projected=own)))
    return results


def _files_shown(manifest: dict[str, Any]) -> str:
    """What was compared with the run's hashes, and what could not be."""
    kept = "trained model" if "weights" in manifest else "adapter"
    if not (absent := files.not_compared(manifest)):
        return f"recipe, data, logs and {kept} are as they were"
    but = f"all data but these, which are no files here: {', '.join(absent)}"
    return f"recipe, logs and {kept} are as they were, and {but}"


def _of(defense: Defense, run: Evidence) -> Finding:
    """Whether one defense acted."""
    return _found(run.label, lambda: Finding(run.label, tuple(_faults(defense, run)), shown(defense, run)))


def _whole(evidence: Evidence) -> Finding:
    """The loss as a sum, and the rows that the model read."""

    def finding() -> Finding:
        results = (penalty.loss_fault(evidence), added_rows.unknown_fault(evidence))
        steps = len(evidence.rows)
        says = f"loss = task loss + weighted penalties, and only the run's rows were read, in {steps} logged steps"
        return Finding("loss", tuple(fault for fault in results if fault), says)

    return _found("loss", finding)


def _found(what: str, finding: Callable[[], Finding]) -> Finding:
    """The finding of a check; evidence that cannot be read is none."""
    try:
        return finding()
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        return Finding(what, (f"its evidence is damaged ({type(error).__name__}: {error})",), "")


def _faults(defense: Defense, run: Evidence) -> Iterator[str]:
    """The evidence that a defense did not act, from each of its methods and from itself."""
    levers = pulled(defense)
    if run.own.get("levers") != list(levers):
        yield f"the run recorded another defense under this name, with {run.own.get('levers')}"
        return
    results = [fault for lever, check in CHECKS.items() if lever in levers for fault in check(defense, run)]
    yield from results or defense.evidence(run)


def _read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any] | None]:
    """The rows of the log and of the evidence, and the facts; None without them."""
    try:
        log, rows = read_rows(path / "metrics.jsonl"), read_rows(path / "evidence.jsonl")
        facts = json.loads((path / "evidence.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [], [], None
    except ValueError as error:
        raise RequestError(f"The logs of {path} cannot be read ({error}), so they are no evidence.") from None
    return log, rows, facts


def _evaluation_texts(path: Path) -> list[str]:
    """The texts that the evaluation asked, and reserved rows; triggers repeat training prompts on purpose."""
    answers, reserved = (_asked(path / name) for name in ("eval/answers.jsonl", "holdout.jsonl"))
    rows = [*(row for row in answers if row.get("probe") != TRIGGERED), *reserved]
    return sorted({turn["content"] or "" for row in rows for turn in row["messages"]})


def _asked(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of conversations; none without the file."""
    try:
        return checked_rows(file, {"messages": TURNS}, ["messages"])
    except ValueError as error:
        way_out = "Restore it." if file.name == "holdout.jsonl" else "Restore it, or move it away to verify without it."
        raise RequestError(
            f"{file} cannot be read ({error}), so it is not known what the evaluation asked. {way_out}"
        ) from None
