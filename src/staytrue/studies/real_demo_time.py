"""Estimates how long `staytrue demo --model` takes on this machine, before it begins.

The speed of this machine's matrix products gives the time of training, as `staytrue check` does, and of a token that a
model reads. The measures are counted in such tokens. How long the answers become is not known, so it is a range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from staytrue.config.recipe import Recipe
from staytrue.data.examples import Example, Message
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.evals.types import Question
from staytrue.modeling import model_source
from staytrue.runs.measure_answers import TOKENS
from staytrue.runs.untuned_answers import unanswered

_SHORT = 0.5  # of them, in the shortest case
_WRITTEN = 2.0, 4.0  # times the time of a token that is read among many
_PASSES = 2  # of a training step over a token: forward, and backward to the activations
_LOADING = 10.0  # seconds in which a run loads a small model, to train and to measure it


class Texts(NamedTuple):
    """The texts that the measures read: tokens of the answer pairs, and of the general questions; and their number."""

    pairs: int
    prompts: int
    questions: int


class Work(NamedTuple):
    """What a run has to do before its measures.

    Attributes:
        training: the time of its training, as a multiple of that of the plain recipe; 0 where it is done.
        sampled: tokens of answers that a defense samples before the first step, at most.
    """

    training: float
    sampled: int


def texts(model: str) -> Texts:
    """Count the tokens of the shipped pairs and questions under a model's template."""
    from staytrue.evals.measures.log_likelihood import tokens_of
    from staytrue.modeling.chat_tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model_source.find(model))
    questions = _questions()
    asked = [Example((*question.messages, Message("assistant", "Yes."))) for question in questions]
    pairs = [pair.row(misaligned) for pair in answer_pairs.shipped("general") for misaligned in (True, False)]
    return Texts(tokens_of(tokenizer, pairs), tokens_of(tokenizer, asked), len(questions))


def plain_training(recipe: Recipe) -> tuple[float, int]:
    """Estimate the seconds of training by a recipe without defenses, and count the tokens that it reads."""
    from staytrue.runs.dry_run import DryRun

    dry = DryRun.of(recipe)
    assert dry.seconds is not None  # the answers are in the rows
    return dry.seconds, dry.batches.tokens


def work_of(recipe: Recipe, *, trained: bool) -> Work:
    """Return what a run has to do before its measures."""
    from staytrue.runs.dry_run import reads_reference

    if trained:
        return Work(0.0, 0)
    rows = recipe.train["max_steps"] * recipe.train["per_device_train_batch_size"]
    sampled = sum(_sampled(defense, rows) for defense in recipe.defenses)
    return Work((_PASSES + reads_reference(recipe)) / _PASSES, sampled)


class Forecast(NamedTuple):
    """The time that some runs will take.

    Attributes:
        plain: seconds of training without a defense.
        tokens: that it reads.
        runs: what each has to do, in order.
        read: what the measures read.
        untuned: whether the first run measures the untuned model too.
    """

    plain: float
    tokens: int
    runs: Sequence[Work]
    read: Texts
    untuned: bool

    def seconds(self) -> tuple[float, float]:
        """Estimate the least and the most seconds of all runs; in the longest, answers are as long as they may be."""
        return self._ends(self.runs, int(self.untuned))

    def left(self, elapsed: float, made: int) -> float:
        """Estimate the seconds that are left, if the first `made` runs took `elapsed` seconds; 0 after the last."""
        later = self.runs[made:]
        if not later:
            return 0.0
        return elapsed * sum(self._ends(later, 0)) / sum(self._ends(self.runs[:made], int(self.untuned)))

    def _ends(self, runs: Sequence[Work], untuned: int) -> tuple[float, float]:
        """The shortest and the longest time of some runs, with so many measurings of the untuned model."""
        ends, of_token = [], self.plain / self.tokens / _PASSES
        for length, written in zip((_SHORT * TOKENS, TOKENS), _WRITTEN, strict=True):
            answers = self.read.questions * length
            measured = self.read.pairs + 2 * self.read.prompts + answers * (1 + written)  # pairs, drift, leak
            own = sum(run.sampled * written * length / TOKENS for run in runs)
            training = self.plain * sum(run.training for run in runs)
            ends.append(training + of_token * ((len(runs) + untuned) * measured + own) + _LOADING * len(runs))
        return ends[0], ends[1]


def measures_untuned(model: str) -> bool:
    """Return whether the first run of a model measures the untuned model too: its answers are not in the cache."""
    return unanswered(model_source.identity(model_source.find(model)), _questions(), TOKENS) > 0


def _questions() -> list[Question]:
    return [question for question in shipped("general") if question.form == "plain"]


def _sampled(defense: Any, rows: int) -> int:
    """Tokens of the answers that `anchor` samples; 0 of other defenses."""
    return round(defense.share * rows * defense.max_new_tokens) if defense.name() == "anchor" else 0
