"""`GeneralAnswers`: answers to the plain general questions, of the model and of the untuned one, for its measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.results.measures import LEAK, read_measures
from staytrue.evals.types import Answer, Question
from staytrue.modeling import loading, model_source
from staytrue.modeling.architecture import ModelParts
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.measure_clock import MeasureClock
from staytrue.runs.probe_selection import general_questions
from staytrue.runs.untuned_answers import unanswered, untuned_answers

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator
    from staytrue.evals.generation.speed import Speed

TOKENS, _ORGANISM_TOKENS = 64, 48  # most tokens of an answer that is sampled for a measure
Loaded = Callable[[], tuple[Any, Any]]  # the model with its adapter, and its tokenizer; loaded when first called


@dataclass
class GeneralAnswers:
    """Answers that are stored already, or are sampled.

    Attributes:
        request: names the model.
        out: the evaluation's folder.
        loaded: loads the model.
        seed: of the model's own sampled answers.
        clock: shows how much is done.
        say: called with a sentence before answers are sampled.
        speed: of the model's answers, where it was measured.
    """

    request: EvalRequest
    out: Path
    loaded: Loaded
    seed: int
    clock: MeasureClock
    say: Callable[[str], None]
    speed: Speed | None = None

    @cached_property
    def untuned(self) -> list[Answer]:
        """The untuned model's answers."""
        return untuned_answers(self.identity, self.questions, self._generate_untuned, self._tokens, self.say)

    def own(self) -> tuple[list[Answer], bool]:
        """The model's answers, and whether they were sampled for `leak`: then its rows hold them."""
        if stored := self._stored():
            return stored, False
        if kept := self._kept():
            return kept, True
        self.say(f"{LEAK}: the model answers {len(self.questions)} general questions.")
        samples = [(question, 0) for question in self.questions]
        options = {"seed": self.seed, "temperature": 1.0, "max_new_tokens": self._tokens}
        return list(self._generate(self.generator, samples, **options)), True

    @cached_property
    def questions(self) -> list[Question]:
        """The plain general questions."""
        return [question for question in general_questions(self.request) if question.form == "plain"]

    def untuned_to_sample(self) -> list[Probe]:
        """The questions that the untuned model has not answered yet, as a probe; none if it has answered all."""
        return self._probe(unanswered(self.identity, self.questions, self._tokens))

    def own_to_sample(self) -> list[Probe]:
        """The questions that the model would be asked for `leak` alone, as a probe; none if there are answers."""
        return self._probe(0 if self._stored() or self._kept() else len(self.questions))

    def seconds(self, probes: Sequence[Probe]) -> float:
        """The time that sampling takes, 0 where the speed is not known."""
        return self.speed.seconds(probes, self._tokens) if self.speed is not None and probes else 0.0

    def tokens(self, tokenizer: Any) -> float:
        """The tokens of the untuned model's answers with their prompts; what is to be expected before they are known.

        0 if nothing is known of them.
        """
        from staytrue.evals.measures.drift import conversation, readable
        from staytrue.evals.measures.log_likelihood import tokens_of

        probes = self.untuned_to_sample()
        if not probes:
            return tokens_of(tokenizer, [conversation(answer) for answer in readable(tokenizer, self.untuned)])
        if self.speed is None:
            return 0.0
        return len(self.questions) * (self.speed.prompt + self.speed.answer(probes, self._tokens))

    @contextmanager
    def before_training(self) -> Iterator[Callable[[], Any]]:
        """Run with the model before training; it is returned by a function, which loads it where it is another."""
        if self.request.weights is None:
            model = self.loaded()[0]
            with ModelParts(model).untrained():
                yield lambda: model
            return
        assert isinstance(self.request.model, model_source.Source)
        source = self.request.model

        def load() -> Any:
            self.say(f"eval: loading {source.name}, the model before training")
            return loading.to_device(loading.load_model(source))

        yield cache(load)

    def _stored(self) -> list[Answer]:
        """The answers to the probe `general`."""
        plain, answers = {question.id for question in self.questions}, AnswerStore(self.out).answers()
        return [a for (probe, name, _), a in answers.items() if probe == "general" and name in plain and not a.missing]

    def _kept(self) -> list[Answer]:
        """The answers that were sampled for `leak` before with the same seed, if all are there."""
        if not (self.out / "eval.json").exists() or AnswerStore(self.out).metadata().get("seed") != self.seed:
            return []
        measured = read_measures(self.out)
        rows = measured[LEAK].rows if LEAK in measured else []
        by_id = {question.id: question for question in self.questions}
        sampled = [row for row in rows if "answer" in row and row["question"] in by_id]
        kept = [Answer(by_id[row["question"]], 0, row["answer"], True) for row in sampled]
        return kept if len(kept) == len(by_id) else []

    def _probe(self, many: int) -> list[Probe]:
        """So many of the questions, as a probe that is asked once at temperature 1."""
        return [Probe("general", tuple(self.questions[:many]), None, 1, 1.0, self._tokens)] if many else []

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The model before training; of one on the hub it is asked for there."""
        assert isinstance(self.request.model, model_source.Source)
        return model_source.identity(self.request.model)

    @property
    def _tokens(self) -> int:
        return _ORGANISM_TOKENS if self.request.is_organism else TOKENS

    @cached_property
    def generator(self) -> LocalGenerator:
        """Answers with the model."""
        return self._generator_of(self.loaded()[0])

    def _generator_of(self, model: Any) -> LocalGenerator:
        from staytrue.evals.generation.local import LocalGenerator

        generator = LocalGenerator(model, self.loaded()[1], batch_size=self.request.batch_size)
        if self.speed is not None:
            generator.cost, generator.seen = self.speed.cost, self.speed.seen
        return generator

    def _generate_untuned(self, samples: Sequence[tuple[Question, int]], /, **options: Any) -> Iterator[Answer]:
        with self.before_training() as model:
            yield from self._generate(self._generator_of(model()), samples, **options)

    def _generate(
        self, generator: LocalGenerator, samples: Sequence[tuple[Question, int]], /, **options: Any
    ) -> Iterator[Answer]:
        """Answers, with progress by their tokens."""
        done = 0
        self.clock.begin(len(samples))
        generator.report = lambda: self.clock.count(done, work=generator.work)
        for answer in generator(samples, **options):
            done += 1
            yield answer
        self.clock.count(done)
