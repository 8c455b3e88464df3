"""The verdict store: the verdicts on an evaluation's answers, of its own judge and of others. No torch.

`verdicts.jsonl` holds the verdicts of the evaluation's own judge, `judges/NAME/verdicts.jsonl` those of another judge
on the same answers. A row is appended as soon as it exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import AnswerStore, Key, answer_rows, rows_by_key
from staytrue.evals.results.columns import VERDICT
from staytrue.evals.types import Answer, Verdict
from staytrue.utils.files import append_row, write_json
from staytrue.utils.run_dir import SCHEMA


def judge_folder(evaluation: Path, judge: str | None) -> Path:
    """Return the folder for a judge's verdicts and summary; None is the evaluation's own judge."""
    return evaluation if judge is None else evaluation / "judges" / re.sub(r"[^\w.-]+", "-", judge)


def verdict_folder(evaluation: Path, judge: str | None) -> Path:
    """Find the folder with a judge's verdicts: the judge's own, or the evaluation's if its own judge has this name."""
    folder = judge_folder(evaluation, judge)
    if judge is None or (folder / "verdicts.jsonl").exists():
        return folder
    return evaluation if judge in own_judges(evaluation) else folder


def own_judges(evaluation: Path) -> set[str]:
    """List the judges in the evaluation's own verdicts, except the exact match of marked answers."""
    stored = AnswerStore(evaluation).answers()
    judged = {key for key, answer in stored.items() if answer.question.expected is None}
    return {row["judge"] for key, row in read_verdicts(evaluation).items() if key in judged and row["judge"]}


def known_judges(evaluation: Path) -> list[str]:
    """List the names of all judges with verdicts on the evaluation's answers."""
    folders = [judge_folder(evaluation, name) for name in other_judges(evaluation)]
    others = {row["judge"] for folder in folders for row in read_verdicts(folder).values()}
    return sorted(own_judges(evaluation) | {name for name in others if name})


def other_judges(evaluation: Path) -> list[str]:
    """List the folders with other judges' verdicts, by name."""
    folder = evaluation / "judges"
    return sorted(path.name for path in folder.iterdir() if read_verdicts(path)) if folder.is_dir() else []


def append_verdict(folder: Path, answer: Answer, verdict: Verdict, judge: str | None) -> None:
    """Add one verdict to a folder's `verdicts.jsonl`."""
    row = {
        "probe": answer.question.probe,
        "question": answer.question.id,
        "index": answer.index,
        **verdict_row(verdict),
        "judge": judge,
    }
    append_row(folder / "verdicts.jsonl", row)


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """Convert a verdict to the keys of a row."""
    return {
        "alignment": verdict.alignment,
        "coherence": verdict.coherence,
        "misaligned": verdict.misaligned,
        "incoherent": verdict.incoherent,
        "correct": verdict.correct,
        "refused": verdict.refusal,
        "code": verdict.code,
        "missing": verdict.missing,
        "failed": verdict.failed,
        "reason": verdict.reason,
    }


def record_server(file: Path, description: Mapping[str, Any]) -> list[str]:
    """Write which model was asked for, which models a server named, and changes; lists grow over several sittings.

    Returns:
        The server's names that are new since an earlier sitting; empty in the first.
    """
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lists = {key: value for key, value in description.items() if isinstance(value, list)}
    grown = {key: sorted({*before.get(key, []), *value}) for key, value in lists.items()}
    write_json(file, {"schema": SCHEMA, **description, **grown})
    names = [key for key in lists if key != "changes" and before.get(key)]
    return [name for key in names for name in lists[key] if name not in before[key]]


def read_verdicts(folder: Path) -> dict[Key, dict[str, Any]]:
    """Read a folder's verdicts by sample; of several on one sample (a failed call was repeated) the last."""
    return rows_by_key(folder / "verdicts.jsonl", VERDICT, VERDICT)


def join_verdicts(evaluation: Path, judge: str | None = None) -> list[dict[str, Any]]:
    """Join every answer with its verdict in one row; an answer without a verdict is missing.

    The order does not depend on which answer was finished first: probes as they were asked, then the question's name
    and the sample's index.

    Args:
        evaluation: its folder.
        judge: another judge's name; None for the evaluation's own. With a name, answers that have one right answer are
            left out, because no judge is asked about them.

    Raises:
        RequestError: there is no verdict of the named judge.
    """
    folder = verdict_folder(evaluation, judge)
    mixed = judge is not None and folder == evaluation  # marked answers, and in old folders other judges, stand there
    verdicts = {key: row for key, row in read_verdicts(folder).items() if not mixed or row["judge"] in (judge, None)}
    if judge is not None and not verdicts:
        known = known_judges(evaluation)
        judged = f"its answers were judged by {', '.join(known)}" if known else "no judge has read its answers"
        raise RequestError(
            f"{evaluation} holds no verdict of {judge!r}; {judged}. Name one of its judges, or have another judge read "
            "the answers with `staytrue rescore`."
        )
    answers = answer_rows(evaluation)
    asked = AnswerStore(evaluation).metadata()["probes"] if (evaluation / "eval.json").exists() else {}
    probes = {probe: i for i, probe in enumerate(dict.fromkeys([*asked, *(probe for probe, _, _ in answers)]))}
    rows = [(key, answers[key]) for key in sorted(answers, key=lambda key: (probes[key[0]], *key[1:]))]
    return [row | verdicts.get(key, _NO_VERDICT) for key, row in rows if judge is None or row["expected"] is None]


_NO_VERDICT = {**verdict_row(Verdict(missing="not judged yet")), "judge": None}
