"""An evaluation's folder: what was asked, and what was answered. No torch.

`eval.json` says what was asked and of which model; `answers.jsonl` holds every sample once, and is appended to, a row
as soon as it is there, so a stopped evaluation goes on where it was. What judges say of it: `docket`.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.types import Answer, Question
from staytrue.utils.run_dir import SCHEMA, append_row, read_rows, versions, write_json

Key = tuple[str, str, int]  # probe, question, index: which sample
_OF_THE_FILE = ("schema", "made", "versions")


@dataclass(frozen=True)
class AnswerStore:
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
                f"{self.path} is no evaluation: it has no eval.json. `staytrue eval` makes one."
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
        return {key: _answer(row) for key, row in by_key(self.path / "answers.jsonl").items()}


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


def by_key(file: Path) -> dict[Key, dict[str, Any]]:
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
