"""`measure`: how fast a model in this process answers, from a few answers that are thrown away."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from staytrue.evals.generation.lengths import AnswerLengths, SeenAnswers, shares
from staytrue.evals.generation.step_cost import StepCost
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Samples
from staytrue.utils.console import duration

if TYPE_CHECKING:
    from staytrue.evals.generation.batch import Batch, Row
    from staytrue.evals.generation.local import LocalGenerator

MEASURED = 10.0  # seconds of a trial
_STEPS = 3  # of a full batch that are timed
_FEWEST, _MOST, _OF_A_PROBE = 12, 48, 3  # answers that are written: one a second of measuring, and of each probe
# Steps, a token of each, if time allows. Until most have ended it is not known how many run to the limit, and the mean
# of a model that was fine-tuned on short answers comes out several times too long.
_TRIED = 80
_NINE_OF_TEN = 1.28  # standard errors, one-sided
_SHORT = 60.0  # seconds; what certainly takes less is not timed
_ON_A_CPU, _ON_A_GPU = (5e10, 1e10), (1e12, 2e11)  # operations and bytes a second, of a slow one
_TOGETHER = 16  # answers that are written side by side, unless memory is short or another number is asked for


@dataclass(frozen=True)
class Speed:
    """The speed of a model's answers, and their length.

    Attributes:
        places: answers that are written side by side.
        cost: of a step, in seconds.
        refilled: whether the next answer begins as soon as a place is free; else when all answers of the batch ended.
        prompt: mean tokens of a prompt.
        lengths: of each probe's answers, by its name; from so few answers rough ones.
        seen: the answers that the lengths are known from.
    """

    places: int
    cost: StepCost
    refilled: bool
    prompt: float
    lengths: Mapping[str, AnswerLengths]
    seen: SeenAnswers | None = None

    def answer(self, probes: Sequence[Probe], limit: int) -> float:
        """Mean tokens of an answer to these probes."""
        written = sum(len(p.samples()) * self.lengths[p.name].ahead(0, p.max_new_tokens or limit) for p in probes)
        return written / sum(len(probe.samples()) for probe in probes)

    def seconds(self, probes: Sequence[Probe], limit: int) -> float:
        """Seconds for all answers to these probes, written side by side."""
        limits = {probe.name: probe.max_new_tokens or limit for probe in probes}
        written = [
            (limits[probe.name], self.lengths[probe.name].quantile(share, limits[probe.name]))
            for probe in probes
            for share in shares(len(probe.samples()))
        ]
        random.Random(0).shuffle(written)
        waiting = [tokens for _, tokens in sorted(written, key=lambda answer: -answer[0])]  # as the batch sorts them
        prompts = sum(len(probe.questions) for probe in probes) * self.prompt
        ahead = self.cost.ahead([], waiting, self.places, self.prompt, self.refilled)
        return prompts * self.cost.read + ahead

    @property
    def at_best(self) -> Speed:
        """The speed if answers are as short as nine of ten such measurements allow."""
        return self._moved(_NINE_OF_TEN)

    @property
    def at_worst(self) -> Speed:
        """The speed if answers are as long as nine of ten such measurements allow."""
        return self._moved(-_NINE_OF_TEN)

    def _moved(self, errors: float) -> Speed:
        return replace(self, lengths={name: lengths.moved(errors) for name, lengths in self.lengths.items()})


def measure(generator: LocalGenerator, probes: Sequence[Probe], *, limit: int, seconds: float) -> Speed:
    """Time a full batch for a few tokens, then write a few answers, for some time or until all have ended.

    Args:
        generator: the model.
        probes: of the evaluation; some questions of each, evenly spread, are answered at the probe's temperature.
        limit: most tokens of an answer.
        seconds: how long the few answers are written, and at most twice as long until there are 80 steps, a token of
            each; reading their prompts does not count. Each of the two timings of the full batch ends after the first
            step by which a quarter of it is over.
    """
    parts = _few(probes, limit, min(_MOST, max(_FEWEST, round(seconds))))
    questions = [question for part in parts for question, _ in part.samples]
    few, limit = _Timed(generator.batch(parts, seed=0)), max(part.limit for part in parts)
    question, places = questions[0], few.batch.places
    full = _Timed(generator.batch([Samples([(question, i) for i in range(places)], 1.0, limit)], seed=0))
    with generator.evaluating():
        full.write(steps=_STEPS, seconds=seconds / 4)
        wider, wide = max(1, limit // 2), full.writing / full.steps
        attend = 0.0
        refilled = full.batch.widen(wider)
        if refilled:
            attend = max(0.0, full.again(_STEPS, seconds / 4) - wide) / (places * wider)
        few.write(seconds=seconds)
        few.write(steps=_TRIED, seconds=seconds)
    narrow, rows = few.writing / few.steps, few.batch.tokens / few.steps
    token = min(max((wide - narrow) / max(1.0, places - rows), 0.0), wide / places)
    begun = [*few.finished, *((row, False) for row in few.batch.rows)]  # in few places not all
    cost = StepCost(
        step=wide - token * places,
        token=max(0.0, token - attend * len(generator.prompt(question))),
        attend=attend,
        read=few.reading / sum(len(row.prompt) for row, _ in begun),
    )
    seen = SeenAnswers()
    for row, ended in begun:
        seen.add(row.question.probe, len(row.ids), ended)
    prompt = sum(len(generator.prompt(question)) for question in questions) / len(questions)
    lengths = seen.lengths()  # of a probe of which no answer has begun, those of all probes
    return Speed(places, cost, refilled, prompt, {p.name: lengths[p.name] for p in probes}, seen)


def trial(
    generator: LocalGenerator,
    probes: Sequence[Probe],
    limit: int,
    say: Callable[[str], None],
    seconds: float = MEASURED,
) -> Speed:
    """Say that the speed is measured, measure it, and give it to the generator, whose progress is truer by it."""
    say(f"Measuring how fast the model answers here, for about {duration(seconds)}, or longer where it is slow.")
    speed = measure(generator, probes, limit=limit, seconds=seconds)
    generator.cost, generator.seen = speed.cost, speed.seen
    return speed


def is_short(generator: LocalGenerator, tokens: int, answers: int = _TOGETHER) -> bool:
    """Whether so many tokens, in so many answers, certainly take less than a minute.

    That is two operations for each weight and token, and four bytes of each weight for the tokens of a step.
    """
    operations, size = _ON_A_CPU if generator.on_cpu else _ON_A_GPU
    together = max(1, min(answers, generator.batch_size or _TOGETHER))
    token = 2 / operations + 4 / size / together
    return generator.weights * tokens * token < _SHORT


def estimate(answers: int, share: float, speed: Speed, probes: Sequence[Probe], limit: int) -> str:
    """Say how long so many answers take, which are this share of the probes'."""
    seconds = [share * at.seconds(probes, limit) for at in (speed.at_best, speed, speed.at_worst)]
    best, likely, worst = map(duration, seconds)
    spread = "" if best == worst else f" ({best} to {worst}, since few answers were measured)"
    tokens = speed.answer(probes, limit)
    rate = answers * tokens / max(seconds[1], 0.1)  # prompts included
    many = "1 answer" if answers == 1 else f"{answers:,} answers"
    return (
        f"{many} will take about {likely}{spread}, at {rate:.0f} tokens a second and about {tokens:.0f} tokens an "
        "answer."
    )


class _Timed:
    """A batch, and the seconds that its prompts and its steps take."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.steps, self.reading, self.writing = 0, 0.0, 0.0
        self.finished: list[tuple[Row, bool]] = []

    def again(self, steps: int, seconds: float) -> float:
        """Write so many more steps, at most so many seconds, and return the mean seconds of one."""
        written, writing = self.steps, self.writing
        self.write(steps=written + steps, seconds=seconds)
        return (self.writing - writing) / max(1, self.steps - written)

    def write(self, *, steps: int | None = None, seconds: float = math.inf) -> None:
        """Write until there are so many steps, or at least a step and for so many seconds without those of reading."""
        begun, written = self.writing, self.steps
        while not self.batch.finished and (self.steps == written or self.writing - begun < seconds):
            if steps is not None and self.steps >= steps:
                return
            before, start = self.batch.tokens, time.monotonic()
            self.finished += self.batch.step()
            took = time.monotonic() - start
            if self.batch.tokens == before:
                self.reading += took
            else:
                self.steps, self.writing = self.steps + 1, self.writing + took


def _few(probes: Sequence[Probe], limit: int, answers: int) -> list[Samples]:
    """About so many answers, some to each probe's questions and evenly spread over their forms.

    Answers to one form may be several times as long as to another, and the forms of a question stand together, so that
    every third or thirtieth question of a probe may have the same form.
    """
    samples = sum(len(probe.samples()) for probe in probes)
    few = []
    for probe in probes:
        many = max(_OF_A_PROBE, round(answers * len(probe.samples()) / samples))
        by_form = sorted(probe.questions, key=lambda question: question.form)
        many = min(many, len(by_form))
        questions = [by_form[i * len(by_form) // many] for i in range(many)]
        few.append(Samples([(q, 0) for q in questions], probe.temperature, probe.max_new_tokens or limit))
    return few
