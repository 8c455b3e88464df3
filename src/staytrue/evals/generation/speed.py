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
_TYPICAL = 150  # tokens of one more answer, which counts while few have ended


def chance_of_end(ended: int, tokens: int) -> float:
    """The chance that a token ends its answer, from the answers that ended among so many tokens."""
    return (ended + 1) / (tokens + _TYPICAL)


def tokens_ahead(ends: float, limit: int) -> float:
    """Mean tokens that an answer still takes, at most `limit`, if each token ends it with the same chance.

    Example:
        >>> round(tokens_ahead(0.01, 100), 1)
        63.4
    """
    return float((1 - (1 - ends) ** limit) / ends)


@dataclass(frozen=True)
class Speed:
    """The speed of a model's answers, and their length.

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
        """Mean tokens of an answer of at most `limit`."""
        return tokens_ahead(self.ends, limit)

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
        full.step()  # reads the prompt
        start = time.monotonic()
        while not full.finished and full.tokens < _STEPS * full.places:
            full.step()
        tokens = full.tokens / max(time.monotonic() - start, 1e-9)
        few.step()
        start, ended, steps = time.monotonic(), 0, 0
        while ended < 0.75 * len(chosen) and not few.finished and time.monotonic() - start < seconds:
            ended, steps = ended + sum(stopped for _, stopped in few.step()), steps + 1
        step = (time.monotonic() - start) / max(1, steps)
    prompt = sum(len(generator.prompt(question)) for question in chosen) / len(chosen)
    return Speed(tokens, full.places, step, chance_of_end(ended, few.tokens), prompt)
