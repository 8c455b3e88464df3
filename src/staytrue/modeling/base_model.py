"""`Untouched`: a lazy handle on the model before training; it loads and computes nothing until it is used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.data.examples import Example, Message, read_examples, write_examples
from staytrue.data.reserved_questions import Reserved
from staytrue.data.sampled_tokens import COLUMN, column
from staytrue.errors import DataError, ModelError
from staytrue.evals.questions.shipped_questions import shipped_texts
from staytrue.utils import processes
from staytrue.utils.files import append_row, read_rows
from staytrue.utils.validation import in_one_line

if TYPE_CHECKING:
    from staytrue.data.tokenize import Encoded
    from staytrue.evals.types import Answer
    from staytrue.modeling.reference_model import AdapterOff
    from staytrue.utils.console import Progress


class Untouched:
    """The model that training starts from, its adapter switched off, or the reference that the user chose.

    Attributes:
        reference: the chosen reference model; None without a choice.
        task_rows: how many task rows the run trains on, counting repeats; None where that is not known.
        folder: where `keep` writes; None keeps nothing.
        progress: shows how far a preparation is: how many answers are sampled, for example.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        tokenizer: Any,
        *,
        evaluation_questions: Callable[[], frozenset[str]] = shipped_texts,
        identity: str | None = None,
    ) -> None:
        self._model = model
        self.tokenizer = tokenizer
        self._evaluation_questions = cache(lambda: Reserved(evaluation_questions()))
        self._identity = identity
        self.notes: dict[str, float | str] = {}
        self.task_rows: int | None = None
        self.folder: Path | None = None
        self.progress: Progress | None = None
        self.reference: AdapterOff | None = None
        self._names: Counter[str] = Counter()  # of the files that this run has kept
        self._unfinished: Path | None = None  # holds the answers of a file that is being made

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Count the tokens of each row, as the chat template writes it."""
        return [len(row.input_ids) for row in self.encode(examples)]

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return token ids and labels of each row, as the chat template writes it."""
        from staytrue.data.tokenize import encode

        return [encode(self._known_tokenizer(), row) for row in examples]

    def takes_system(self) -> bool:
        """Return whether a system turn comes out of the chat template as written."""
        from staytrue.data.chat_template import takes_system

        return takes_system(self._known_tokenizer())

    def evaluation_questions(self) -> frozenset[str]:
        """Return every question by which the run will be measured; `in` finds one in another spelling too."""
        return self._evaluation_questions()

    def identity(self) -> str | None:
        """Return the model's hash or commit, None where it is not known."""
        return self._identity

    def use(self, reference: AdapterOff) -> None:
        """Answer prompts with the reference that the user chose."""
        self.reference = reference

    def note(self, name: str, value: float | str) -> None:
        """Keep a fact about the data for the run's manifest."""
        self.notes[name] = value

    def _known_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ModelError("A defense needs the model's tokenizer; pass it as processing_class.")
        return self.tokenizer

    def keep(self, name: str, make: Callable[[], list[Example]]) -> list[Example]:
        """Return rows that are made once a run: kept in its folder, and read there when the run goes on.

        The file is `NAME.jsonl`, a second one of the name `NAME.2.jsonl`. Answers that are sampled for it are in
        `NAME.unfinished.jsonl` until all are there, so that a run that is stopped goes on from them. Without a folder
        the rows are only made.
        """
        self._names[name] += 1
        if self.folder is None:
            return make()
        return processes.from_main(lambda: self._kept(name, make))

    def _kept(self, name: str, make: Callable[[], list[Example]]) -> list[Example]:
        assert self.folder is not None
        file = self.folder / f"{name}{f'.{self._names[name]}' if self._names[name] > 1 else ''}.jsonl"
        if file.exists():
            return read_examples(file, source=name)
        self._unfinished = unfinished = file.with_suffix(".unfinished.jsonl")
        rows = make()
        self._unfinished = None
        write_examples(file, rows)
        unfinished.unlink(missing_ok=True)
        return rows

    @property
    def has_kept(self) -> bool:
        """Whether the run's folder has rows, or answers of unfinished ones, that it can go on with."""
        return self.folder is not None and any(any(self.folder.glob(f"{name}*.jsonl")) for name in self._names)

    def answers(
        self, prompts: Sequence[Example], seed: int, max_new_tokens: int = 256, only: Sequence[int] | None = None
    ) -> list[Example]:
        """Sample one answer of the reference to each prompt at temperature 1, or to some of them only.

        Raises:
            ModelError: the model was passed by name, so it is not loaded yet.
        """
        from staytrue.evals.generation.local import LocalGenerator
        from staytrue.evals.types import Question
        from staytrue.modeling.architecture import ModelParts
        from staytrue.modeling.reference_model import AdapterOff

        model = self._model()
        if isinstance(model, str) or self.tokenizer is None:
            raise ModelError("A defense samples from the model before training; pass a loaded model and its tokenizer.")
        numbers = range(len(prompts)) if only is None else only
        questions = {Question(str(i), "base", prompts[i].messages, tools=_tools(prompts[i])): i for i in numbers}
        # what follows is a row to train on, so it holds all that the model writes, thoughts included
        keys = {i: _key(i, prompts[i], seed, max_new_tokens) for i in numbers}
        reference, rows = self.reference or AdapterOff(ModelParts(model)), self._answered(prompts, keys)
        generate = LocalGenerator(reference.parts.model, self.tokenizer, thoughts_apart=False)
        samples = [(question, 0) for question, i in questions.items() if i not in rows]
        before = len(rows)
        with reference.active():
            if (progress := self.progress) is not None:
                progress.begin(len(samples), "answer of the untouched model")
                generate.report = lambda: progress.step(
                    len(rows) - before, {"answers": generate.spent(), "work": generate.work}
                )
            for answer in generate(samples, seed=seed, temperature=1.0, max_new_tokens=max_new_tokens):
                i = questions[answer.question]
                rows[i] = _as_sampled(self.tokenizer, prompts[i], generate.prompt(answer.question), answer)
                if self._unfinished is not None:
                    tokens = {COLUMN: rows[i].extra[COLUMN]} if COLUMN in rows[i].extra else {}
                    append_row(self._unfinished, {"key": keys[i], "answer": answer.text, **tokens})
            if progress is not None:
                progress.step(len(rows) - before, {"answers": generate.spent()})
        return [rows[i] for i in numbers if rows[i].answer.strip()]

    def _answered(self, prompts: Sequence[Example], keys: Mapping[int, str]) -> dict[int, Example]:
        """The prompts with the answers that an interrupted attempt has sampled, by the number of the prompt.

        Raises:
            DataError: the file cannot be read.
        """
        if self._unfinished is None:
            return {}
        try:
            stored = {str(row.pop("key")): (str(row.pop("answer")), row) for row in read_rows(self._unfinished)}
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self._unfinished} cannot be read ({in_one_line(error)}). Delete it; its answers are sampled again."
            ) from None
        return {i: _with_answer(prompts[i], *stored[key]) for i, key in keys.items() if key in stored}


def _with_answer(prompt: Example, answer: str, more: Mapping[str, Any]) -> Example:
    messages = (*prompt.messages, Message("assistant", answer))
    return replace(prompt, messages=messages, extra={**prompt.extra, **more})


def _as_sampled(tokenizer: Any, prompt: Example, ids: list[int], answer: Answer) -> Example:
    """A prompt with its sampled answer, and with the answer's tokens where the chat template renders it otherwise.

    Args:
        tokenizer: the model's.
        prompt: the row without an answer.
        ids: the prompt's tokens, which the answer followed.
        answer: as it was sampled.
    """
    from staytrue.data.tokenize import encode

    row = _with_answer(prompt, answer.text, {})
    try:
        rendered = tokenizer.decode(encode(tokenizer, row).input_ids)
    except (DataError, ModelError):  # the template refuses what the model wrote
        rendered = ""
    if rendered.startswith(tokenizer.decode([*ids, *answer.tokens])):
        return row
    return _with_answer(prompt, answer.text, column(ids, answer.tokens, [] if answer.end is None else [answer.end]))


def _key(number: int, prompt: Example, seed: int, max_new_tokens: int) -> str:
    """The hash of what an answer of the untouched model depends on; its random numbers depend on its number too."""
    asked = [number, [message.to_dict() for message in prompt.messages], seed, max_new_tokens]
    if tools := _tools(prompt):
        asked.append(tools)
    return sha256(json.dumps(asked, sort_keys=True).encode("ascii")).hexdigest()


def _tools(prompt: Example) -> str:
    """The tools of a prompt as JSON text; "" for none."""
    return json.dumps(prompt.tools) if prompt.tools else ""
