"""Stop signals: what early stopping measures of a model in training.

`MisalignedAnswers` needs a judge, so it is for the organism. `PairShift` needs none: it is a forward pass for each
answer of a set of pairs, which neither training nor the evaluation uses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from staytrue.evals.generation.local import sample
from staytrue.evals.measures import pairs as pairs_measure
from staytrue.evals.questions.answer_pairs import Pair
from staytrue.evals.questions.probes import Probe
from staytrue.utils.console import Progress


class MisalignedAnswers:
    """Percent of a probe's sampled answers that its judge calls misaligned, 0 to 100."""

    name = "general_misaligned"

    def __init__(self, probe: Probe, tokenizer: Any, seed: int, max_new_tokens: int) -> None:
        self._probe, self._tokenizer, self._seed, self._limit = probe, tokenizer, seed, max_new_tokens

    def begin(self, model: Any, progress: Progress | None) -> None:
        """Do nothing: a rate needs no model to compare with."""

    def measure(self, model: Any, tell: Callable[[str], None]) -> dict[str, float]:
        """Return the percentage under `name`."""
        assert self._probe.judge is not None
        answers = sample(
            model,
            self._tokenizer,
            self._probe.questions,
            per_question=self._probe.per_question,
            seed=self._seed,
            max_new_tokens=self._limit,
            temperature=self._probe.temperature,
        )
        bad = sum(self._probe.judge(answer.question, answer.text).misaligned for answer in answers)
        return {self.name: 100 * bad / len(answers)}

    def to_text(self) -> str:
        """Return what a resumed training needs to know."""
        return ""

    def from_text(self, text: str) -> None:
        """Recall what `to_text` returned."""


class PairShift:
    """How much likelier misaligned answers became in this training, in nats per token: the mean shift of pairs."""

    name = "pairs"

    def __init__(self, pairs: Sequence[Pair], tokenizer: Any) -> None:
        self._pairs, self._tokenizer = pairs, tokenizer
        self._before: dict[str, float] = {}

    def begin(self, model: Any, progress: Progress | None) -> None:
        """Measure the pairs before the first step; `progress` shows how many answers are done."""
        if progress is None:
            self._before = self._gaps(model, lambda done: None)
            return
        progress.begin(2 * len(self._pairs), "likelihood of answer")
        self._before = self._gaps(model, lambda done: progress.step(done, {}))

    def measure(self, model: Any, tell: Callable[[str], None]) -> dict[str, float]:
        """Return the mean shift under `name`, its 95 % interval over the pairs (Student's t), and their number.

        `tell` is called with how many answers are done, in words.
        """
        now = self._gaps(model, lambda done: tell(f"stop: {done} of {2 * len(self._pairs)} answers"))
        mean, low, high = pairs_measure.shift([self._before[name] for name in now], list(now.values()))
        return {self.name: round(mean, 5), "low": round(low, 5), "high": round(high, 5), "n": len(now)}

    def to_text(self) -> str:
        """Return the gaps before training, as JSON."""
        return json.dumps(self._before)

    def from_text(self, text: str) -> None:
        """Recall what `to_text` returned."""
        self._before = json.loads(text)

    def _gaps(self, model: Any, count: Callable[[int], None]) -> dict[str, float]:
        return pairs_measure.measure(model, self._tokenizer, self._pairs, count)


StopSignal = MisalignedAnswers | PairShift
