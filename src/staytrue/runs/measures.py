"""The measures of an evaluation without a judge: which ones a request has, and taking them.

`pairs` and `drift` need the untuned model: the same weights with the adapter switched off. `leak` needs the training
rows and the untuned model's own answers besides. All three are taken by default where no judge is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import Address
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.answer_pairs import Pair
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.results.measures import (
    DRIFT,
    LEAK,
    PAIRS,
    Measured,
    is_measure,
    read_measures,
    stored_name,
    write_measures,
)
from staytrue.evals.types import Answer, AnswerGenerator, Question
from staytrue.modeling import loading
from staytrue.modeling.architecture import ModelParts
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.probe_selection import general_questions
from staytrue.runs.untuned_answers import untuned_answers
from staytrue.utils.console import Progress

_TOKENS, _ORGANISM_TOKENS = 64, 48  # most tokens of an answer that is sampled for a measure
_LEAST = 20  # training rows; the words of fewer say little about their topic
Loaded = Callable[[], tuple[Any, Any]]  # the model with its adapter, and its tokenizer; loaded when first called


def measures_of(request: EvalRequest, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Return the names of the measures that a request asks for: those named, or all that fit if no judge is named.

    Args:
        request: the request.
        say: called with a sentence for each measure that is left out by default.

    Raises:
        RequestError: a named measure cannot be taken of this model, or there are no such pairs.
        DataError: a file of pairs has faults.
    """
    named = [name for name in request.probes if is_measure(name)]
    for name in named:
        if why := _obstacle(name, request):
            raise RequestError(f"--probes {name}: {why}")
        if name.startswith(PAIRS):
            pairs_of(name, request.is_organism)
    no_default = request.probes or request.judge is not None or request.is_organism or request.adapter is None
    if no_default or isinstance(request.model, Address):
        return named
    obstacles = {name: _obstacle(name, request) for name in (PAIRS, DRIFT, LEAK)}
    for name, why in obstacles.items():
        if why:
            say(f"{name} is left out: {why}")
    return [name for name, why in obstacles.items() if not why]


def pairs_of(name: str, organism: bool) -> tuple[Pair, ...]:
    """Return the pairs of a measure: `pairs`, `pairs:DOMAIN`, or `pairs:FILE.jsonl`.

    Raises:
        RequestError: there are no such pairs.
        DataError: the file has faults.
    """
    which = name.partition(":")[2] or "general"
    if which.endswith(".jsonl"):
        if Path(which).stem in answer_pairs.DOMAINS:
            raise RequestError(
                f"--probes {name}: {Path(which).stem!r} is one of our own sets of pairs; rename the file."
            )
        return answer_pairs.read(Path(which))
    if not organism:
        return answer_pairs.shipped(which)
    from staytrue.organism import lexicon, world

    if which not in ("general", *lexicon.DOMAINS):
        raise RequestError(f"--probes {name}: the organism has pairs for general, {', '.join(lexicon.DOMAINS)} only.")
    return world.pairs(which)


def _obstacle(name: str, request: EvalRequest) -> str:
    """Why a measure cannot be taken of a request's model, and what to do; "" if it can."""
    if isinstance(request.model, Address):
        return "the model is behind an endpoint, which gives no likelihood of a text; name a folder or a hub name."
    if name.startswith(PAIRS):
        return ""
    if request.adapter is None and not request.untuned:
        return "the untuned model is not known; evaluate a run, or name the model with its --adapter."
    if name == LEAK and len(request.topic) < _LEAST:
        known = f"only {len(request.topic)} are known" if request.topic else "none is known"
        return (
            f"it needs {_LEAST} training rows, and {known}; evaluate a run whose data file has not changed, or "
            "name the file with --data."
        )
    return ""


@dataclass
class Measurement:
    """Takes the measures of one request's model and stores them in an evaluation's folder."""

    request: EvalRequest
    out: Path
    loaded: Loaded
    seed: int
    progress: Progress | None = None

    def likelihoods(self, names: Sequence[str]) -> None:
        """Take those of the named measures that need no answers of the fine-tuned model: `pairs` and `drift`."""
        for name in names:
            if name != LEAK:
                about = self._about_pairs(name) if name.startswith(PAIRS) else self._about_drift()
                if not self._stored(stored_name(name), about):
                    rows = self._pairs(name) if name.startswith(PAIRS) else self._drift()
                    self._write(Measured(stored_name(name), about, rows))

    def leak(self) -> None:
        """Take `leak`: of the stored answers to `general` in plain form, or else of one sampled answer each."""
        from staytrue.evals.measures.leak import TopicWords

        own = {a.question.id: a.text for a in self._untuned_answers}
        training = [row.answer for row in self.request.topic]
        topic = TopicWords(training, list(own.values()))
        answers, sampled = self._general_answers()
        rows = []
        for answer in answers:
            ratio = topic.ratio(answer.text, [own[answer.question.id]])
            row = {"question": answer.question.id, "index": answer.index, "value": round(ratio, 5), "leaked": ratio > 0}
            rows.append(row | ({"answer": answer.text} if sampled else {}))
        alarms = [topic.leaked(text, [text]) for text in own.values()]
        held = [row.answer for row in self.request.held_out]
        about = {
            "rows": len(training),
            "false_alarms": round(100 * sum(alarms) / len(alarms), 4),
            "untuned": len(alarms),
            "held_out_leaks": round(100 * sum(map(topic.leaked, held)) / len(held), 4) if held else None,
            "held_out": len(held),
        }
        self._write(Measured(LEAK, about, rows))

    def _about_pairs(self, name: str) -> dict[str, Any]:
        return {"sha256": answer_pairs.hash_of(pairs_of(name, self.request.is_organism))}

    def _pairs(self, name: str) -> list[dict[str, Any]]:
        from staytrue.evals.measures import pairs

        own = pairs_of(name, self.request.is_organism)
        return self._with_and_without(lambda model, tokenizer: pairs.measure(model, tokenizer, own))

    def _about_drift(self) -> dict[str, Any]:
        texts = [[a.question.id, a.text, a.stopped] for a in self._untuned_answers]
        return {"sha256": sha256(json.dumps(texts).encode("ascii")).hexdigest()}

    def _drift(self) -> list[dict[str, Any]]:
        from staytrue.evals.measures import drift

        return self._with_and_without(lambda model, tokenizer: drift.measure(model, tokenizer, self._untuned_answers))

    def _with_and_without(self, measure: Callable[[Any, Any], dict[str, float]]) -> list[dict[str, Any]]:
        """Rows with a measure's values of the model and of the untuned model, where that is known."""
        model, tokenizer = self.loaded()
        values = measure(model, tokenizer)
        before: dict[str, float] = values if self.request.untuned else {}
        if self.request.adapter is not None:
            with ModelParts(model).untrained():
                before = measure(model, tokenizer)
        return [
            {"question": name, "value": round(value, 5), "untuned": round(before[name], 5) if before else None}
            for name, value in values.items()
        ]

    @cached_property
    def _untuned_answers(self) -> list[Answer]:
        """The untuned model's answers to the plain general questions."""
        assert isinstance(self.request.model, loading.Source)
        identity = loading.identity(self.request.model)
        return untuned_answers(identity, self._questions, self._generate_untuned, self._tokens, self.progress)

    @cached_property
    def _questions(self) -> list[Question]:
        return [question for question in general_questions(self.request) if question.form == "plain"]

    @property
    def _tokens(self) -> int:
        return _ORGANISM_TOKENS if self.request.is_organism else _TOKENS

    @cached_property
    def _generate(self) -> AnswerGenerator:
        from staytrue.evals.generation.local import LocalGenerator

        return LocalGenerator(*self.loaded())

    def _generate_untuned(self, samples: Sequence[tuple[Question, int]], /, **options: Any) -> Iterator[Answer]:
        with ModelParts(self.loaded()[0]).untrained():
            yield from self._generate(samples, **options)

    def _general_answers(self) -> tuple[list[Answer], bool]:
        """Answers to the plain general questions, and whether they were sampled here: then their rows hold them."""
        plain = {question.id for question in self._questions}
        answers = AnswerStore(self.out).answers()
        stored = [
            a for (probe, name, _), a in answers.items() if probe == "general" and name in plain and not a.missing
        ]
        if stored:
            return stored, False
        rows = read_measures(self.out)[LEAK].rows if LEAK in read_measures(self.out) else []
        by_id = {question.id: question for question in self._questions}
        kept = [Answer(by_id[row["question"]], 0, row["answer"], True) for row in rows if "answer" in row]
        if len(kept) == len(by_id):
            return kept, True
        if self.progress is not None:
            self.progress.begin(len(by_id))
        sampled = []
        samples = [(question, 0) for question in self._questions]
        for answer in self._generate(samples, seed=self.seed, temperature=1.0, max_new_tokens=self._tokens):
            sampled.append(answer)
            if self.progress is not None:
                self.progress.step(len(sampled), {})
        return sampled, True

    def _stored(self, name: str, about: dict[str, Any]) -> bool:
        """Whether the folder holds a measure that was taken in the same way."""
        stored = read_measures(self.out).get(name)
        return stored is not None and dict(stored.about) == about

    def _write(self, measured: Measured) -> None:
        write_measures(self.out, self.request.identity(), [measured])
