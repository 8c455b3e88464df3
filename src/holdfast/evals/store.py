"""An evaluation's folder: what was asked, what was answered, and what each judge said of it. No torch.

`eval.json` says what was asked and of which model; `answers.jsonl` holds every sample once; `verdicts.jsonl` the
verdicts of the evaluation's own judge, and `judges/NAME/verdicts.jsonl` those of others over the very same answers. The
two files are appended to, a row as soon as it is there, so a stopped evaluation goes on where it was.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from holdfast.errors import RequestError
from holdfast.evals.judge import Answer, Question, Verdict
from holdfast.examples import Message
from holdfast.rundir import SCHEMA, append_row, read_rows, versions, write_json

Key = tuple[str, str, int]  # probe, question, index: which sample
_OF_THE_FILE = ("schema", "made", "versions")


@dataclass(frozen=True)
class Store:
    """One evaluation's folder."""

    path: Path

    def allow(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What `eval.json` will say once this is asked, beside what was asked before; nothing is written.

        Raises:
            RequestError: the folder holds answers to other questions, or of another model; or no evaluation at all.
        """
        asked = json.loads(json.dumps(asked))
        answered = (self.path / "answers.jsonl").exists()
        if answered and not (self.path / "eval.json").exists():
            raise RequestError(
                f"{self.path} holds answers, and no eval.json says of which model. Name another folder with --out."
            )
        if not answered:  # nor is a first try that failed in anybody's way
            made = datetime.now(UTC).isoformat(timespec="seconds")
            return {"schema": SCHEMA, "made": made, "versions": versions(), **asked}
        before = self.asked()
        self._same({k: v for k, v in before.items() if k not in _OF_THE_FILE}, asked)
        return before | {"probes": before["probes"] | asked["probes"]}

    def begin(self, asked: Mapping[str, Any]) -> None:
        """Say what is asked, or find that it is what was asked before; probes of other names are added.

        Raises:
            RequestError: as `allow`.
        """
        write_json(self.path / "eval.json", self.allow(asked))

    def _same(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse answers of another model, or to other questions."""
        pairs = {key: (before.get(key), now.get(key)) for key in (*before, *now) if key != "probes"}
        for name in before["probes"].keys() & now["probes"].keys():
            old, new = before["probes"][name], now["probes"][name]
            pairs |= {f"{key} of {name}": (old.get(key), new.get(key)) for key in (*old, *new)}
        for key, (old, new) in pairs.items():
            if old != new:
                raise RequestError(
                    f"{self.path} holds an evaluation with another {key} ({_brief(old)}, now {_brief(new)}); answers "
                    "of two are never mixed. Name another folder with --out."
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else adds to the folder meanwhile.

        Raises:
            RequestError: another process does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RequestError(
                    f"Another process evaluates into {self.path}. Wait for it, or name another folder with --out."
                ) from None
            yield

    def asked(self) -> dict[str, Any]:
        """What `eval.json` says.

        Raises:
            RequestError: there is none, or it cannot be read.
        """
        file = self.path / "eval.json"
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found["probes"], dict):
                raise ValueError("no probes")
            return found
        except FileNotFoundError:
            raise RequestError(
                f"{self.path} is no evaluation: it has no eval.json. `holdfast eval` makes one."
            ) from None
        except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise RequestError(f"{file} cannot be read ({error}); evaluate again with another --out.") from None

    def keep(self, answer: Answer) -> None:
        """Add one sample."""
        q = answer.question
        where = {"probe": q.probe, "question": q.id, "group": q.cluster, "form": q.form, "topic": q.topic}
        said = {"index": answer.index, "messages": [{"role": m.role, "content": m.content} for m in q.messages]}
        more = {"answer": answer.text, "stopped": answer.stopped, "expected": q.expected}
        prompts = {"prompts": dict(q.prompts)} if q.prompts else {}
        filtered = {"filtered": True} if answer.filtered else {}
        append_row(self.path / "answers.jsonl", where | said | more | prompts | filtered)

    def answers(self) -> dict[Key, Answer]:
        """Every stored sample, in the order of the file."""
        return {key: _answer(row) for key, row in _by_key(self.path / "answers.jsonl").items()}

    def judged_by(self, judge: str | None) -> Path:
        """Where a judge's verdicts and summary stand; None is the evaluation's own."""
        return self.path if judge is None else self.path / "judges" / re.sub(r"[^\w.-]+", "-", judge)

    def said_by(self, judge: str | None) -> Path:
        """Where a judge's verdicts are: beside the others', or the evaluation's own if they are this judge's."""
        folder = self.judged_by(judge)
        if judge is None or (folder / "verdicts.jsonl").exists():
            return folder
        return self.path if judge in self.own_judges() else folder

    def own_judges(self) -> set[str]:
        """Who judged the evaluation itself, as stored; not who marked answers that have one right answer."""
        stored = self.answers()
        asked = {key for key, answer in stored.items() if answer.question.expected is None}
        return {row["judge"] for key, row in verdicts(self.path).items() if key in asked and row["judge"]}

    def known_judges(self) -> list[str]:
        """Everybody whose verdicts are here, by the names that stand beside them."""
        others = {row["judge"] for name in judges(self.path) for row in verdicts(self.judged_by(name)).values()}
        return sorted(self.own_judges() | {name for name in others if name})


def pronounce(folder: Path, answer: Answer, verdict: Verdict, judge: str | None) -> None:
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


def record(file: Path, told: Mapping[str, Any]) -> list[str]:
    """Write who was asked, and who the server said it was; lists grow over several sittings.

    Returns:
        What the server says now and did not in an earlier sitting; nothing in the first.
    """
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    grown = {k: sorted({*before.get(k, []), *v}) if isinstance(v, list) else v for k, v in told.items()}
    write_json(file, {"schema": SCHEMA, **grown})
    return [one for k, v in told.items() if isinstance(v, list) and before.get(k) for one in v if one not in before[k]]


def verdicts(folder: Path) -> dict[Key, dict[str, Any]]:
    """A folder's verdicts by sample; of several on one sample (a call that failed, asked again) the last."""
    return _by_key(folder / "verdicts.jsonl")


def joined(path: Path, judge: str | None = None) -> list[dict[str, Any]]:
    """Every answer with its verdict as one row; what has no verdict yet is missing.

    Args:
        path: an evaluation's folder.
        judge: another judge's name, and only what it was asked about; None for the evaluation's own.

    Raises:
        RequestError: there is no verdict of the named judge.
    """
    store = Store(path)
    folder = store.said_by(judge)
    mixed = judge is not None and folder == path  # with what marked answers, and with who judged an older evaluation
    found = {key: row for key, row in verdicts(folder).items() if not mixed or row["judge"] == judge}
    if judge is not None and not found:
        known = ", ".join(store.known_judges()) or "nobody"
        raise RequestError(
            f"{path} holds no verdict of {judge!r}; its answers were judged by {known}. Name one of them, or have "
            "others judge with `holdfast rescore`."
        )
    rows = _by_key(path / "answers.jsonl").items()
    return [row | found.get(key, _NO_VERDICT) for key, row in rows if judge is None or row["expected"] is None]


def judges(path: Path) -> list[str]:
    """The names of the folders of other judges' verdicts."""
    folder = path / "judges"
    return sorted(p.name for p in folder.iterdir() if verdicts(p)) if folder.is_dir() else []


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


def _answer(row: Mapping[str, Any]) -> Answer:
    question = Question(
        row["question"],
        row["probe"],
        tuple(Message(m["role"], m["content"]) for m in row["messages"]),
        row["topic"],
        row["expected"],
        row["group"],
        row["form"],
        tuple(row.get("prompts", {}).items()),
    )
    return Answer(question, row["index"], row["answer"], row["stopped"], row.get("filtered", False))


def _by_key(file: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a file by sample, each sample once."""
    try:
        return {_key(row): row for row in read_rows(file)}
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{file} cannot be read ({error}); evaluate again with another --out.") from None


def _key(row: Mapping[str, Any]) -> Key:
    return row["probe"], row["question"], row["index"]


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def missing(wanted: Iterable[tuple[Question, int]], have: Mapping[Key, Any]) -> list[tuple[Question, int]]:
    """The samples that are not there yet."""
    return [(q, i) for q, i in wanted if (q.probe, q.id, i) not in have]
