"""`measure`: how fast a model in this process answers, from a few answers that are thrown away."""

from __future__ import annotations

import heapq
import math
import random
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from staytrue.evals.generation.lengths import AnswerLengths, exposure
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Question

if TYPE_CHECKING:
    from staytrue.evals.generation.batch import Batch, Row
    from staytrue.evals.generation.local import LocalGenerator

_STEPS = 3  # of a full batch that are timed
_FEWEST, _MOST, _OF_A_PROBE = 12, 48, 3  # answers that are written: one a second of measuring, and of each probe
_NINE_OF_TEN = 1.28  # standard errors, one-sided
_ALIKE = 2.0  # answers of a probe, for which the lengths of all probes together count


@dataclass(frozen=True)
class Speed:
    """The speed of a model's answers, and their length.

    Attributes:
        places: answers that are written side by side.
        step: seconds of a step, which writes one token of each answer, whatever their number.
        token: seconds of a step for each answer in it.
        attend: seconds of a step for each answer in it and each token of the longest one, with its prompt.
        read: seconds for a token of a prompt.
        prompt: mean tokens of a prompt.
        lengths: of each probe's answers, by its name; from so few answers rough ones.
    """

    places: int
    step: float
    token: float
    attend: float
    read: float
    prompt: float
    lengths: Mapping[str, AnswerLengths]

    def answer(self, probes: Sequence[Probe], limit: int) -> float:
        """Mean tokens of an answer to these probes."""
        written = sum(len(p.samples()) * self.lengths[p.name].ahead(0, p.max_new_tokens or limit) for p in probes)
        return written / sum(len(probe.samples()) for probe in probes)

    def seconds(self, probes: Sequence[Probe], limit: int) -> float:
        """Seconds for all answers to these probes, one probe after the other."""
        return sum(self._seconds(probe, probe.max_new_tokens or limit) for probe in probes)

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

    def _seconds(self, probe: Probe, limit: int) -> float:
        answers, lengths = len(probe.samples()), self.lengths[probe.name]
        written = [lengths.quantile((i + 0.5) / answers, limit) for i in range(answers)]
        random.Random(0).shuffle(written)
        return len(probe.questions) * self.prompt * self.read + self._writing(written)

    def _writing(self, written: Sequence[float]) -> float:
        """Seconds for answers of so many tokens, each of which begins when a place is free."""
        waiting, seconds, now = deque(written), 0.0, 0.0
        places: list[tuple[float, float]] = []  # at which step an answer ends, and at which it began
        while waiting or places:
            while waiting and len(places) < self.places:
                heapq.heappush(places, (now + waiting.popleft(), now))
            longest = self.prompt + (now + places[0][0]) / 2 - min(began for _, began in places)
            step = self.step + len(places) * (self.token + self.attend * longest)
            seconds += (places[0][0] - now) * step
            now, _ = heapq.heappop(places)
        return seconds


def measure(generator: LocalGenerator, probes: Sequence[Probe], *, limit: int, seconds: float) -> Speed:
    """Time a full batch for a few tokens, then write a few answers, for so many seconds or until all have ended.

    Args:
        generator: the model.
        probes: of the evaluation; some questions of each, evenly spread, are answered at the probe's temperature.
        limit: most tokens of an answer.
        seconds: how long the few answers are written at most.
    """
    few = [
        _Timed(generator.batch([(q, 0) for q in questions], seed=0, temperature=temperature, limit=limit), questions)
        for temperature, questions in _few(probes, min(_MOST, max(_FEWEST, round(seconds)))).items()
    ]
    question, places = few[0].questions[0], few[0].batch.places
    samples = [(question, i) for i in range(places)]
    full = _Timed(generator.batch(samples, seed=0, temperature=1.0, limit=limit), [question])
    with generator.evaluating():
        full.write(steps=_STEPS)
        wider, wide = max(1, limit // 2), full.writing / full.steps
        attend = 0.0
        if full.batch.widen(wider):
            attend = max(0.0, full.again(_STEPS) - wide) / (places * wider)
        chosen = [question for part in few for question in part.questions]
        for part in few:
            part.write(seconds=seconds * len(part.questions) / len(chosen))
    steps, tokens = sum(part.steps for part in few), sum(part.batch.tokens for part in few)
    narrow, rows = sum(part.writing for part in few) / steps, tokens / steps
    token = (wide - narrow) / max(1.0, places - rows)
    token = min(max(token, 0.0), wide / places)
    prompts = sum(len(generator.prompt(question)) for question in chosen)
    return Speed(
        places=places,
        step=wide - token * places,
        token=max(0.0, token - attend * len(generator.prompt(question))),
        attend=attend,
        read=sum(part.reading for part in few) / prompts,
        prompt=prompts / len(chosen),
        lengths=_lengths(probes, few),
    )


class _Timed:
    """A batch, and the seconds that its prompts and its steps take."""

    def __init__(self, batch: Batch, questions: Sequence[Question]) -> None:
        self.batch, self.questions = batch, questions
        self.steps, self.reading, self.writing = 0, 0.0, 0.0
        self.finished: list[tuple[Row, bool]] = []

    def again(self, steps: int) -> float:
        """Write so many more steps and return the mean seconds of one."""
        written, writing = self.steps, self.writing
        self.write(steps=written + steps)
        return (self.writing - writing) / max(1, self.steps - written)

    def write(self, *, steps: int | None = None, seconds: float = math.inf) -> None:
        """Write so many steps or seconds, at least a step."""
        begun = time.monotonic()
        while not self.batch.finished and (self.steps == 0 or time.monotonic() - begun < seconds):
            if self.steps == steps:
                return
            before, start = self.batch.tokens, time.monotonic()
            self.finished += self.batch.step()
            took = time.monotonic() - start
            if self.batch.tokens == before:
                self.reading += took
            else:
                self.steps, self.writing = self.steps + 1, self.writing + took


def _few(probes: Sequence[Probe], answers: int) -> dict[float, list[Question]]:
    """About so many questions, some of each probe and evenly spread, by the temperature of their answers."""
    samples = sum(len(probe.samples()) for probe in probes)
    few: dict[float, list[Question]] = defaultdict(list)
    for probe in probes:
        many = max(_OF_A_PROBE, round(answers * len(probe.samples()) / samples))
        few[probe.temperature] += probe.questions[:: max(1, len(probe.questions) // many)][:many]
    return few


def _lengths(probes: Sequence[Probe], few: Sequence[_Timed]) -> dict[str, AnswerLengths]:
    """The lengths of each probe's answers, drawn towards those of all probes."""
    ended: dict[str, int] = defaultdict(int)
    exposed: dict[str, float] = defaultdict(float)
    for part in few:
        for row, stopped in [*part.finished, *((row, False) for row in part.batch.rows)]:
            ended[row.question.probe] += stopped
            exposed[row.question.probe] += exposure(len(row.ids))
    together = AnswerLengths.seen(sum(ended.values()), sum(exposed.values())).rate
    return {p.name: AnswerLengths.seen(ended[p.name], exposed[p.name], like=together, weight=_ALIKE) for p in probes}
