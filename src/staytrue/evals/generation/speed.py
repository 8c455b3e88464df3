"""`measure`: how fast a model in this process answers, from a few answers that are thrown away."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Question

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator

_STEPS = 3  # of a full batch that are timed
_ANSWERS = 12  # that are written to see how long answers are
_TYPICAL = 150  # tokens of one more answer, which counts where too few have ended


@dataclass(frozen=True)
class Speed:
    """How fast a model answers, and how long its answers are.

    Attributes:
        tokens: per second, with every place of the batch taken.
        places: of the batch.
        step: seconds for one token of a few answers side by side, as at the end of a batch.
        ends: the chance that a token ends its answer, from so few answers a rough one.
        prompt: mean tokens of a prompt.
    """

    tokens: float
    places: int
    step: float
    ends: float
    prompt: float

    def answer(self, limit: int) -> float:
        """Mean tokens of an answer of at most `limit`.

        Example:
            >>> Speed(100.0, 8, 0.1, ends=0.01, prompt=50.0).answer(100)
            63.4
        """
        return round((1 - (1 - self.ends) ** limit) / self.ends, 1)

    def seconds(self, probes: Sequence[Probe], limit: int) -> float:
        """Seconds for all answers to these probes: prompts, answers, and the end of each probe's batch."""
        total = 0.0
        for probe in probes:
            most = probe.max_new_tokens or limit
            answers = len(probe.samples())
            total += (answers * self.answer(most) + len(probe.questions) * self.prompt) / self.tokens
            longest = min(most, self.answer(most) * math.log(1 + min(answers, self.places)))
            total += self.step * longest / 2  # on average half of the places are empty at the end
        return total


def measure(generator: LocalGenerator, questions: Sequence[Question], *, limit: int, seconds: float) -> Speed:
    """Time a full batch for a few tokens, then write a few answers, for so many seconds or until most have ended.

    Args:
        generator: the model.
        questions: the questions of the evaluation; some of them, evenly spread, are answered at temperature 1.
        limit: most tokens of an answer.
        seconds: how long the few answers are written at most.
    """
    chosen = questions[:: max(1, len(questions) // _ANSWERS)][:_ANSWERS]
    few = generator.batch([(question, 0) for question in chosen], seed=0, temperature=1.0, limit=limit)
    full = generator.batch([(chosen[0], i) for i in range(few.places)], seed=0, temperature=1.0, limit=limit)
    with generator.evaluating():
        start, written = time.monotonic(), 0
        full.step()
        if not full.finished:
            start, written = time.monotonic(), full.tokens  # without the pass over the prompt
        while not full.finished and full.tokens < written + _STEPS * full.places:
            full.step()
        tokens = (full.tokens - written) / max(time.monotonic() - start, 1e-9)
        few.step()
        start, ended, steps = time.monotonic(), 0, 0
        while ended < 0.75 * len(chosen) and not few.finished and time.monotonic() - start < seconds:
            ended, steps = ended + sum(stopped for _, stopped in few.step()), steps + 1
        step = (time.monotonic() - start) / max(1, steps)
    prompt = sum(len(generator.prompt(question)) for question in chosen) / len(chosen)
    return Speed(tokens, full.places, step, (ended + 1) / (few.tokens + _TYPICAL), prompt)
