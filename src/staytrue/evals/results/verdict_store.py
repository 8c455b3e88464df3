"""What judges say of an evaluation's answers: its own judge beside them, others each in a folder. No torch.

`verdicts.jsonl` holds the verdicts of the evaluation's own judge, `judges/NAME/verdicts.jsonl` those of others over the
very same answers; a row is appended as soon as it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.results.answer_store import AnswerStore, Key, by_key
from staytrue.evals.types import Answer, Verdict
from staytrue.utils.run_dir import SCHEMA, append_row, write_json


def judge_folder(evaluation: Path, judge: str | None) -> Path:
    """Where a judge's verdicts and summary stand; None is the evaluation's own."""
    return evaluation if judge is None else evaluation / "judges" / re.sub(r"[^\w.-]+", "-", judge)


def verdict_folder(evaluation: Path, judge: str | None) -> Path:
    """Where a judge's verdicts are: beside the others', or the evaluation's own if they are this judge's."""
    folder = judge_folder(evaluation, judge)
    if judge is None or (folder / "verdicts.jsonl").exists():
        return folder
    return evaluation if judge in own_judges(evaluation) else folder


def own_judges(evaluation: Path) -> set[str]:
    """Who judged the evaluation itself, as stored; not who marked answers that have one right answer."""
    stored = AnswerStore(evaluation).answers()
    asked = {key for key, answer in stored.items() if answer.question.expected is None}
    return {row["judge"] for key, row in read_verdicts(evaluation).items() if key in asked and row["judge"]}


def known_judges(evaluation: Path) -> list[str]:
    """Everybody whose verdicts are here, by the names that stand beside them."""
    folders = [judge_folder(evaluation, name) for name in other_judges(evaluation)]
    elsewhere = {row["judge"] for folder in folders for row in read_verdicts(folder).values()}
    return sorted(own_judges(evaluation) | {name for name in elsewhere if name})


def append_verdict(folder: Path, answer: Answer, verdict: Verdict, judge: str | None) -> None:
    """Add one verdict to a folder's `verdicts.jsonl`."""
    row = {
        "probe": answer.question.probe,
        "question": answer.question.id,
        "index": answer.index,
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
        "judge": judge,
    }
    append_row(folder / "verdicts.jsonl", row)


def record_server(file: Path, told: Mapping[str, Any]) -> list[str]:
    """Write who was asked, and who the server said it was; lists grow over several sittings.

    Returns:
        What the server says now and did not in an earlier sitting; nothing in the first.
    """
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    grown = {k: sorted({*before.get(k, []), *v}) if isinstance(v, list) else v for k, v in told.items()}
    write_json(file, {"schema": SCHEMA, **grown})
    return [one for k, v in told.items() if isinstance(v, list) and before.get(k) for one in v if one not in before[k]]


def read_verdicts(folder: Path) -> dict[Key, dict[str, Any]]:
    """A folder's verdicts by sample; of several on one sample (a call that failed, asked again) the last."""
    return by_key(folder / "verdicts.jsonl")


def join_verdicts(path: Path, judge: str | None = None) -> list[dict[str, Any]]:
    """Every answer with its verdict as one row; what has no verdict yet is missing.

    Args:
        path: an evaluation's folder.
        judge: another judge's name, and only what it was asked about; None for the evaluation's own.

    Raises:
        RequestError: there is no verdict of the named judge.
    """
    folder = verdict_folder(path, judge)
    mixed = judge is not None and folder == path  # with what marked answers, and with who judged an older evaluation
    found = {key: row for key, row in read_verdicts(folder).items() if not mixed or row["judge"] == judge}
    if judge is not None and not found:
        known = ", ".join(known_judges(path)) or "nobody"
        raise RequestError(
            f"{path} holds no verdict of {judge!r}; its answers were judged by {known}. Name one of them, or have "
            "others judge with `staytrue rescore`."
        )
    rows = by_key(path / "answers.jsonl").items()
    return [row | found.get(key, _NO_VERDICT) for key, row in rows if judge is None or row["expected"] is None]


def other_judges(path: Path) -> list[str]:
    """The names of the folders of other judges' verdicts."""
    folder = path / "judges"
    return sorted(p.name for p in folder.iterdir() if read_verdicts(p)) if folder.is_dir() else []


_NO_VERDICT: dict[str, Any] = {
    "alignment": None,
    "coherence": None,
    "misaligned": False,
    "incoherent": False,
    "correct": None,
    "refused": False,
    "code": False,
    "missing": "not judged yet",
    "failed": False,
    "reason": "",
    "judge": None,
}
