"""Takes the measures of an evaluation without a judge, of the trained model and the untuned one, and stores them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.evals.questions import answer_pairs
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.results.measures import (
    DRIFT,
    LEAK,
    PAIRS,
    Measure,
    read_measures,
    stored_name,
    write_measures,
)
from staytrue.evals.types import Answer, Question
from staytrue.modeling import loading, model_source
from staytrue.modeling.architecture import ModelParts
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.measure_selection import pairs_of
from staytrue.runs.probe_selection import general_questions
from staytrue.runs.untuned_answers import untuned_answers
from staytrue.runs.untuned_likelihoods import UntunedLikelihoods
from staytrue.utils.console import Progress, duration

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator

_TOKENS, _ORGANISM_TOKENS = 64, 48  # most tokens of an answer that is sampled for a measure
_SURE, _HALF_DONE = 2.0, 0.5  # seconds after which a pace is trusted, and the share after which a measure is finished
_JUDGED, _UNJUDGED = 0.5, 0.75  # the part of a budget that likelihoods may take: more where no judge reads the answers
Loaded = Callable[[], tuple[Any, Any]]  # the model with its adapter, and its tokenizer; loaded when first called


class _TooLongError(Exception):
    """A measure would not end in its time."""


@dataclass
class Measurement:
    """Takes the measures of one request's model and stores them in an evaluation's folder.

    Attributes:
        request: names the model.
        out: the evaluation's folder.
        loaded: loads the model.
        seed: of sampled answers.
        progress: shows how much is done.
        say: called with each sentence.
        until: when the request's budget ends, by `time.monotonic`; None without a budget. Of what is left when
            the model is loaded, half is for likelihoods, together, and three quarters where answers have no judge. A
            measure that would take longer is left out, unless it is half done.
        left_out: the measures that are left out for want of time.
    """

    request: EvalRequest
    out: Path
    loaded: Loaded
    seed: int
    progress: Progress | None = None
    say: Callable[[str], None] = lambda line: None
    until: float | None = None
    left_out: list[str] = field(default_factory=list)
    _deadline: float | None = field(default=None, init=False)  # of all likelihoods

    def likelihoods(self, names: Sequence[str]) -> None:
        """Take those of the named measures that need no answers of the fine-tuned model: `pairs` and `drift`."""
        for name in names:
            if name != LEAK:
                self._in_time(name, partial(self._likelihoods, name))
            elif self.until is not None:  # while there is time for the answers that it compares with
                self._in_time(name, lambda: self._untuned_answers)

    def leak(self) -> None:
        """Take `leak`: of the stored answers to `general` in plain form, or else of one sampled answer each."""
        self.until = self._deadline = None  # verdicts may have come after the budget's end, and are no part of it
        if LEAK not in self.left_out:
            self._leak()

    def _in_time(self, name: str, take: Callable[[], Any]) -> None:
        """Take a measure, or leave it out if it would not end before the deadline."""
        try:
            take()
        except _TooLongError as late:
            self.left_out.append(name)
            assert self.request.budget is not None
            self.say(f"{name} is left out to fit {duration(self.request.budget)}: {late}")

    def _likelihoods(self, name: str) -> None:
        about = self._about_pairs(name) if name.startswith(PAIRS) else self._about_drift()
        if not self._stored(stored_name(name), about):
            rows = self._pairs(name, about) if name.startswith(PAIRS) else self._drift(about)
            self._write(Measure(stored_name(name), about, rows))

    def _leak(self) -> None:
        from staytrue.evals.measures.leak import TopicWords

        untuned = {a.question.id: a.text for a in self._untuned_answers}
        training = [row.answer for row in self.request.topic]
        topic = TopicWords(training, list(untuned.values()))
        answers, sampled = self._general_answers()
        rows = []
        for answer in answers:
            ratio = topic.ratio(answer.text, [untuned[answer.question.id]])
            row = {"question": answer.question.id, "index": answer.index, "value": round(ratio, 5), "leaked": ratio > 0}
            turns = {"messages": [message.to_dict() for message in answer.question.messages], "answer": answer.text}
            rows.append(row | (turns if sampled else {}))
        alarms = [topic.leaked(text, [text]) for text in untuned.values()]
        held_out = [topic.leaked(row.answer) for row in self.request.held_out]
        about = {
            "rows": len(training),
            "false_alarms": _percent(alarms),
            "untuned": len(alarms),
            "held_out_leaks": _percent(held_out),
            "held_out": len(held_out),
        }
        self._write(Measure(LEAK, about, rows))

    def _about_pairs(self, name: str) -> dict[str, Any]:
        return {"sha256": answer_pairs.hash_of(pairs_of(name, self.request.is_organism))}

    def _pairs(self, name: str, about: dict[str, Any]) -> list[dict[str, Any]]:
        from staytrue.evals.measures import pairs

        chosen = pairs_of(name, self.request.is_organism)
        self.say(f"{name}: the likelihood of {2 * len(chosen)} answers is computed{self._twice(about)}.")
        return self._with_and_without(
            2 * len(chosen), about, lambda model, tokenizer, count: pairs.measure(model, tokenizer, chosen, count)
        )

    def _about_drift(self) -> dict[str, Any]:
        texts = [[a.question.id, a.text, a.stopped] for a in self._untuned_answers]
        return {"sha256": sha256(json.dumps(texts).encode("ascii")).hexdigest()}

    def _drift(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        from staytrue.evals.measures import drift

        answers = [answer for answer in self._untuned_answers if answer.text.strip()]
        twice = self._twice(about)
        self.say(f"{DRIFT}: the likelihood of the untuned model's {len(answers)} answers is computed{twice}.")
        return self._with_and_without(
            len(answers), about, lambda model, tokenizer, count: drift.measure(model, tokenizer, answers, count)
        )

    def _with_and_without(
        self,
        answers: int,
        about: dict[str, Any],
        measure: Callable[[Any, Any, Callable[[int], None]], dict[str, float]],
    ) -> list[dict[str, Any]]:
        """Rows with a measure's values of the model and of the untuned model, where that is known."""
        trained, tokenizer = self.loaded()
        untuned = self._untuned(about) if self.request.has_untuned else None
        self._begin(answers * (1 + (untuned is not None and untuned.values is None)))
        values = measure(trained, tokenizer, self._count)
        before: dict[str, float] = values if self.request.untuned else {}
        if untuned is not None:
            with self._before_training() as model:
                before = untuned.of(lambda: measure(model(), tokenizer, lambda done: self._count(answers + done)))
        return [
            {"question": name, "value": round(value, 5), "untuned": round(before[name], 5) if before else None}
            for name, value in values.items()
        ]

    @cached_property
    def _untuned_answers(self) -> list[Answer]:
        """The untuned model's answers to the plain general questions."""
        assert isinstance(self.request.model, model_source.Source)
        identity = model_source.identity(self.request.model)
        return untuned_answers(identity, self._questions, self._generate_untuned, self._tokens, self.say)

    @cached_property
    def _questions(self) -> list[Question]:
        return [question for question in general_questions(self.request) if question.form == "plain"]

    @property
    def _tokens(self) -> int:
        return _ORGANISM_TOKENS if self.request.is_organism else _TOKENS

    def _untuned(self, about: dict[str, Any]) -> UntunedLikelihoods:
        assert isinstance(self.request.model, model_source.Source)
        return UntunedLikelihoods(model_source.identity(self.request.model), about)

    def _twice(self, about: dict[str, Any]) -> str:
        if not self.request.has_untuned or self._untuned(about).values is not None:
            return ""
        return (
            ", with and without the adapter" if self.request.adapter else ", by the trained model and the untuned one"
        )

    @cached_property
    def _generator(self) -> LocalGenerator:
        from staytrue.evals.generation.local import LocalGenerator

        return LocalGenerator(*self.loaded(), batch_size=self.request.batch_size)

    @contextmanager
    def _before_training(self) -> Iterator[Callable[[], Any]]:
        """Run with the model before training; it is returned by a function, which loads it where it is another."""
        if self.request.weights is None:
            model = self.loaded()[0]
            with ModelParts(model).untrained():
                yield lambda: model
            return
        assert isinstance(self.request.model, model_source.Source)
        source = self.request.model
        yield cache(lambda: loading.to_device(loading.load_model(source)))

    def _generate(self, samples: Sequence[tuple[Question, int]], /, **options: Any) -> Iterator[Answer]:
        """Answers of the model, with progress by their tokens."""
        return self._generate_by(self._generator, samples, **options)

    def _generate_by(
        self, generator: LocalGenerator, samples: Sequence[tuple[Question, int]], /, **options: Any
    ) -> Iterator[Answer]:
        done = 0
        self._begin(len(samples))
        generator.report = lambda: self._count(done, work=generator.work)
        for answer in generator(samples, **options):
            done += 1
            yield answer
        self._count(done)

    def _generate_untuned(self, samples: Sequence[tuple[Question, int]], /, **options: Any) -> Iterator[Answer]:
        from staytrue.evals.generation.local import LocalGenerator

        with self._before_training() as model:
            generator = LocalGenerator(model(), self.loaded()[1], batch_size=self.request.batch_size)
            yield from self._generate_by(generator, samples, **options)

    def _begin(self, answers: int) -> None:
        self._total, self._begun = answers, time.monotonic()
        if self._deadline is None and self.until is not None:
            judged = self.request.judge is not None or self.request.is_organism
            self._deadline = self._begun + (_JUDGED if judged else _UNJUDGED) * (self.until - self._begun)
        if self._deadline is not None and self._begun >= self._deadline:
            raise _TooLongError("no time is left for it.")
        if self.progress is not None:
            self.progress.begin(answers, "answer")

    def _count(self, done: int, **metrics: float) -> None:
        if self.progress is not None:
            self.progress.step(done, metrics)
        spent, share = time.monotonic() - self._begun, metrics.get("work", done) / max(1, self._total)
        if self._deadline is not None and 0 < share < _HALF_DONE and spent > _SURE:
            left = self._deadline - self._begun
            if spent / share > left:
                raise _TooLongError(
                    f"it would take {duration(spent / share)}, and likelihoods have {duration(max(0.0, left))} left."
                )

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
        self.say(f"{LEAK}: the model answers {len(by_id)} general questions.")
        samples = [(question, 0) for question in self._questions]
        options = {"seed": self.seed, "temperature": 1.0, "max_new_tokens": self._tokens}
        return list(self._generate(samples, **options)), True

    def _stored(self, name: str, about: dict[str, Any]) -> bool:
        """Whether the folder holds a measure that was taken in the same way."""
        stored = read_measures(self.out).get(name)
        return stored is not None and dict(stored.about) == about

    def _write(self, measured: Measure) -> None:
        write_measures(self.out, self.request.identity(), [measured])


def _percent(hits: Sequence[bool]) -> float | None:
    return round(100 * sum(hits) / len(hits), 4) if hits else None
