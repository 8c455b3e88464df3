"""The answer store: an evaluation's folder, with what was asked and every answer. No torch.

`eval.json` holds the model's identity and what was asked. `answers.jsonl` holds every sample once; a row is appended as
soon as it exists, so a stopped evaluation goes on where it stopped. Verdicts are in the verdict store.
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
from staytrue.evals.results.columns import ANSWER, ASKED, BUDGET, EVALUATION, SAMPLE
from staytrue.evals.types import Answer, Question
from staytrue.utils.columns import NUMBER, OBJECT, Kind, checked_rows, or_null, refuse_wrong
from staytrue.utils.console import quoted
from staytrue.utils.files import append_row, write_json
from staytrue.utils.run_dir import SCHEMA, versions

Key = tuple[str, str, int]  # probe, question, index: which sample
_OF_THE_FILE = ("schema", "made", "versions")
_ABOUT = ("filtered", "thoughts", "called_tools", "empty")  # an answer's, which a row has only where they say something
_OF_AN_ANSWER = ("messages", "answer", "expected")
_DEFAULTS = {"group": "", "form": "plain", "topic": "", "stopped": True}  # of an answer, where its row has no such key
_NO_PROBES = "it does not say what each probe asked"
_NAMES = {"samples": "number of answers"}  # of a probe's keys in eval.json, in a sentence
_GROWING = ("samples", "per_question")  # of the same keys; more answers to the same questions are added to the others


def evaluation_folder(folder: Path) -> Path:
    """Find the evaluation in a folder that a user names: a run's `eval`, else the folder itself."""
    return folder if (folder / "eval.json").exists() or not (folder / "eval").is_dir() else folder / "eval"


def eval_command(evaluation: Path, probes: str) -> str:
    """Write the command that adds probes to an evaluation: of a run, of its untuned model, or of any other model."""
    run, extra = evaluation.parent, {"eval": "", "untuned": " --untuned"}.get(evaluation.name)
    if extra is not None and (run / "manifest.json").exists():
        return f"`staytrue eval {quoted(run)}{extra} --probes {quoted(probes)}`"
    if (evaluation / "eval.json").exists() and "answers" in AnswerStore(evaluation).metadata():  # of a file, no model
        return f"`staytrue eval --model MODEL --out FOLDER --probes {quoted(probes)}`"
    return f"`staytrue eval --model MODEL --out {quoted(evaluation)} --probes {quoted(probes)}`"


@dataclass(frozen=True)
class AnswerStore:
    """The answers in one evaluation's folder."""

    path: Path

    def metadata(self, *needed: str) -> dict[str, Any]:
        """Read `eval.json`.

        Args:
            needed: keys that it must have, since the caller reads them.

        Raises:
            RequestError: there is no such file, or it cannot be read, or it lacks a needed key.
        """
        file = self.path / "eval.json"
        try:
            metadata = json.loads(file.read_text(encoding="utf-8"))
            refuse_wrong_metadata(metadata, needed)
            if "probes" not in metadata:
                raise ValueError(_NO_PROBES)
            return dict(metadata)
        except (FileNotFoundError, NotADirectoryError):
            raise RequestError(
                f"{self.path} is no evaluation: it has no eval.json. `staytrue eval` makes one."
            ) from None
        except (ValueError, RecursionError) as error:
            raise _unreadable(file, error) from None

    def model_name(self) -> str | None:
        """Return the name of the model that gave the answers; None for the answers of a file.

        Raises:
            RequestError: as `metadata`, or the model has no name.
        """
        if "model" not in self.metadata():
            return None
        name: str = self.metadata("model")["model"]["name"]
        return name

    def merge(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Merge further probes into `eval.json`'s content; nothing is written.

        Args:
            metadata: the model's identity, the seed, and `probes`: what is asked.

        Raises:
            RequestError: the folder holds answers to other questions, more to each, or of another model; or answers
                without metadata.
        """
        metadata = json.loads(json.dumps(metadata))
        answered = (self.path / "answers.jsonl").exists()
        if answered and not (self.path / "eval.json").exists():
            raise RequestError(
                f"{self.path} holds answers, but no eval.json with their model. Name another folder with --out."
            )
        if not answered:  # a first try that failed does not bind the next one
            created = datetime.now(UTC).isoformat(timespec="seconds")
            return {"schema": SCHEMA, "made": created, "versions": versions(), **metadata}
        before = self.metadata()
        self._refuse_differences({k: v for k, v in before.items() if k not in _OF_THE_FILE}, metadata)
        return before | {"probes": before["probes"] | metadata["probes"]}

    def begin(self, metadata: Mapping[str, Any]) -> None:
        """Write what is asked to `eval.json`; probes of other names are added to those that were asked before.

        Raises:
            RequestError: as `merge`.
        """
        write_json(self.path / "eval.json", self.merge(metadata))

    def _refuse_differences(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse answers of another model, to other questions, or fewer to each than are wanted already."""
        pairs = {key: (before.get(key), now.get(key)) for key in (*before, *now) if key != "probes"}
        for name in before["probes"].keys() & now["probes"].keys():
            old, new = before["probes"][name], now["probes"][name]
            fixed = [key for key in (*old, *new) if key not in _GROWING or old.get(key, 0) > new.get(key, 0)]
            pairs |= {f"{_NAMES.get(key, key)} of {name}": (old.get(key), new.get(key)) for key in fixed}
        for key, (old, new) in pairs.items():
            if old != new:
                raise RequestError(
                    f"{self.path} holds an evaluation with another {key} ({_brief(old)}, now {_brief(new)}); answers "
                    "of two are never mixed. Name another folder with --out."
                )

    @contextmanager
    def lock(self, way_out: str = ", or name another folder with --out") -> Iterator[None]:
        """Keep other processes from adding to the folder.

        Args:
            way_out: the end of the sentence about another process, after "Wait for it".

        Raises:
            RequestError: another process holds the lock.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RequestError(f"Another process evaluates into {self.path}. Wait for it{way_out}.") from None
            yield

    def append(self, answer: Answer) -> None:
        """Add one sample."""
        q = answer.question
        where = {"probe": q.probe, "question": q.id, "group": q.cluster, "form": q.form, "topic": q.topic}
        turns = {"index": answer.index, "messages": [message.to_dict() for message in q.messages]}
        more = {"answer": answer.text, "stopped": answer.stopped, "expected": q.expected}
        prompts = {"prompts": dict(q.prompts)} if q.prompts else {}
        optional = {key: getattr(answer, key) for key in _ABOUT} | {"tools": q.tools}
        present = {key: value for key, value in optional.items() if value}
        append_row(self.path / "answers.jsonl", where | turns | more | prompts | present)

    def answers(self) -> dict[Key, Answer]:
        """Read every stored sample, in the order of the file."""
        return {key: _answer(row) for key, row in answer_rows(self.path).items()}


def answer_rows(evaluation: Path) -> dict[Key, dict[str, Any]]:
    """Read the rows of an evaluation's answers by sample.

    Raises:
        RequestError: the file cannot be read, or a row is no answer.
    """
    rows = rows_by_key(evaluation / "answers.jsonl", ANSWER, _OF_AN_ANSWER)
    return {key: _DEFAULTS | row for key, row in rows.items()}


def rows_by_key(file: Path, kinds: Mapping[str, Kind], needed: Iterable[str]) -> dict[Key, dict[str, Any]]:
    """Read the rows of a file by sample; the last row of a sample counts.

    Args:
        file: JSON lines.
        kinds: of the columns.
        needed: the columns that each row has, beside its probe, question and index.

    Raises:
        RequestError: the file cannot be read, or a row lacks a column or has a value of another kind.
    """
    try:
        rows = checked_rows(file, kinds, (*SAMPLE, *needed))
    except ValueError as error:
        raise _unreadable(file, error) from None
    return {(row["probe"], row["question"], row["index"]): row for row in rows}


def refuse_wrong_metadata(metadata: Any, needed: Iterable[str] = ()) -> None:
    """Refuse what is no content of an `eval.json`; a key that is not needed may be missing.

    Raises:
        ValueError: what is wrong, as a part of a sentence.
    """
    probes = metadata.get("probes", {}) if isinstance(metadata, dict) else None
    if not isinstance(probes, dict) or not all(isinstance(asked, dict) for asked in probes.values()):
        raise ValueError(_NO_PROBES)
    known = {"seed": or_null(NUMBER), "budget": or_null(OBJECT)}
    refuse_wrong(metadata, known | {key: EVALUATION[key] for key in needed}, needed)
    if budget := metadata.get("budget"):
        refuse_wrong(budget, BUDGET, ("seconds", "left_out"), "its budget")
    for name, asked in probes.items():
        refuse_wrong(asked, ASKED, what=f"its probe {name}")


def _unreadable(file: Path, error: Exception) -> RequestError:
    return RequestError(f"{file} cannot be read ({error}); evaluate again with another --out.")


def missing_samples(samples: Iterable[tuple[Question, int]], stored: Mapping[Key, Any]) -> list[tuple[Question, int]]:
    """List the samples that are not stored yet."""
    return [(q, i) for q, i in samples if (q.probe, q.id, i) not in stored]


def _answer(row: Mapping[str, Any]) -> Answer:
    question = Question(
        row["question"],
        row["probe"],
        tuple(map(Message.from_dict, row["messages"])),
        row["topic"],
        row["expected"],
        row["group"],
        row["form"],
        tuple(row.get("prompts", {}).items()),
        row.get("tools", ""),
    )
    about = {key: row[key] for key in _ABOUT if key in row}
    return Answer(question, row["index"], row["answer"], row["stopped"], **about)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
