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
from staytrue.evals.types import Answer, Question
from staytrue.utils.console import quoted
from staytrue.utils.files import append_row, read_rows, write_json
from staytrue.utils.run_dir import SCHEMA, versions

Key = tuple[str, str, int]  # probe, question, index: which sample
_OF_THE_FILE = ("schema", "made", "versions")
_ABOUT = ("filtered", "thoughts", "called_tools", "empty")  # an answer's, which a row has only where they say something
_OF_A_SAMPLE = ("probe", "question", "index")  # keys of every row
_OF_AN_ANSWER = ("messages", "answer", "expected")
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

    def metadata(self) -> dict[str, Any]:
        """Read `eval.json`.

        Raises:
            RequestError: there is no such file, or it cannot be read.
        """
        file = self.path / "eval.json"
        try:
            metadata = json.loads(file.read_text(encoding="utf-8"))
            _refuse_wrong_metadata(metadata)
            return dict(metadata)
        except (FileNotFoundError, NotADirectoryError):
            raise RequestError(
                f"{self.path} is no evaluation: it has no eval.json. `staytrue eval` makes one."
            ) from None
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{file} cannot be read ({error}); evaluate again with another --out.") from None

    def model_name(self) -> str | None:
        """Return the name of the model that gave the answers; None for the answers of a file.

        Raises:
            RequestError: as `metadata`.
        """
        model = self.metadata().get("model", {})
        if not isinstance(model, dict):
            raise RequestError(f"{self.path / 'eval.json'} names no model; evaluate again with another --out.")
        return model.get("name")

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
    return rows_by_key(evaluation / "answers.jsonl", _OF_AN_ANSWER)


def rows_by_key(file: Path, keys: Iterable[str] = ()) -> dict[Key, dict[str, Any]]:
    """Read the rows of a file by sample; the last row of a sample counts.

    Args:
        file: JSON lines.
        keys: what each row has, beside its probe, question and index.

    Raises:
        RequestError: the file cannot be read, or a row lacks a key.
    """
    try:
        rows = read_rows(file)
        for number, row in enumerate(rows, start=1):
            lacks = [key for key in (*_OF_A_SAMPLE, *keys) if not isinstance(row, dict) or key not in row]
            if lacks:
                raise ValueError(f"row {number} has no {lacks[0]!r}")
        return {(row["probe"], row["question"], row["index"]): row for row in rows}
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"{file} cannot be read ({error}); evaluate again with another --out.") from None


def _refuse_wrong_metadata(metadata: Any) -> None:
    """Refuse what is no content of an `eval.json`."""
    probes = metadata.get("probes") if isinstance(metadata, dict) else None
    if not isinstance(probes, dict) or not all(isinstance(asked, dict) for asked in probes.values()):
        raise ValueError("it does not say what each probe asked")


def missing_samples(samples: Iterable[tuple[Question, int]], stored: Mapping[Key, Any]) -> list[tuple[Question, int]]:
    """List the samples that are not stored yet."""
    return [(q, i) for q, i in samples if (q.probe, q.id, i) not in stored]


def _answer(row: Mapping[str, Any]) -> Answer:
    question = Question(
        row["question"],
        row["probe"],
        tuple(map(Message.from_dict, row["messages"])),
        row.get("topic", ""),
        row["expected"],
        row.get("group", ""),
        row.get("form", "plain"),
        tuple(row.get("prompts", {}).items()),
        row.get("tools", ""),
    )
    about = {key: row[key] for key in _ABOUT if key in row}
    return Answer(question, row["index"], row["answer"], row.get("stopped", True), **about)


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
