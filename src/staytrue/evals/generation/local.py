"""Answers from a model in this process: every sample has its own seed, and samples of one prompt share its cache.

A sample depends on (seed, probe, question, index) and the model; on the other samples and the size of the batch only by
rounding. Where a random number falls between two tokens within that rounding, the answer goes on differently: in
float32 rarely (with SmolLM2-135M at least one of 160 answers), in half precision more often.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from staytrue.data.position_table import refuse_longer, table_length
from staytrue.data.special_tokens import special_tokens
from staytrue.data.tokenize import encode_prompt, padding_id
from staytrue.data.vocabulary import embedding_count, refuse_unknown_tokens
from staytrue.evals.generation.batch import Batch, Row
from staytrue.evals.generation.batch_size import batch_size
from staytrue.evals.generation.check import check_generation
from staytrue.evals.generation.lengths import SeenAnswers
from staytrue.evals.generation.step_cost import StepCost
from staytrue.evals.generation.thoughts import opens_thoughts, split_thoughts
from staytrue.evals.types import Answer, Question, Samples

_REPORTED = 0.2  # seconds between two reports; one may take some milliseconds
_ALIKE = 16  # neighbouring prompts that are alike in length
_END = 8  # tokens of a table of positions that are left for the end of the turn, so that the answer can be read again
_MARKER = 16  # most tokens of a marker that opens thoughts, with the blanks after it


class LocalGenerator:
    """Generates answers with a model in this process; temperature 0 is greedy.

    The end token of the chat template and the model's own end tokens end an answer; its thoughts are kept apart. The
    distribution is not cut: no top-p, no top-k.

    Attributes:
        batch_size: how many answers are written side by side; None for as many as memory allows.
        report: called while answers are written, at most five times a second.
        work: the part of the answers of this call that is done, by their cost: 0 to the number of samples.
        cost: of a step, where it was timed.
        seen: earlier answers, whose lengths tell how much is ahead.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, thoughts_apart: bool = True, batch_size: int | None = None
    ) -> None:
        """Check that the model can be sampled from.

        Args:
            model: a causal language model, with or without an adapter.
            tokenizer: the model's own.
            thoughts_apart: keep thoughts apart from answers.
            batch_size: how many answers are written side by side; None for as many as memory allows, at most 192.

        Raises:
            ModelError: staytrue cannot sample from the model, or it has no embedding for the padding.
        """
        self._row_bytes, self._known = check_generation(model), embedding_count(model)
        self._table = table_length(model)
        refuse_unknown_tokens([padding_id(tokenizer)], self._known, "The tokenizer's padding")
        self._model, self._tokenizer, self._apart, self.batch_size = model, tokenizer, thoughts_apart, batch_size
        self._tokens = 0
        self.work = 0.0
        self.report: Callable[[], None] | None = None
        self.cost: StepCost | None = None
        self.seen: SeenAnswers | None = None

    def __call__(
        self, samples: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Yield the answer of each sample as it is finished."""
        return self.together([Samples(samples, temperature, max_new_tokens)], seed=seed)

    def together(self, parts: Sequence[Samples], *, seed: int) -> Iterator[Answer]:
        """Yield the answers of samples that have temperatures and limits of their own, written side by side."""
        many = sum(len(part.samples) for part in parts)
        if not many:
            return
        batch, shown, self.work = self.batch(parts, seed=seed), -math.inf, 0.0
        with self.evaluating():
            while not batch.finished:
                before, finished = batch.tokens, batch.step()
                self._tokens += batch.tokens - before
                if self.report is not None and time.monotonic() - shown > _REPORTED:
                    self.work, shown = many * batch.share, time.monotonic()
                    self.report()
                for row, stopped in finished:
                    yield self._answer(row, stopped)

    def batch(self, parts: Sequence[Samples], *, seed: int) -> Batch:
        """The samples as a batch of which no token is written yet.

        Those with a high limit begin first, so that no short one waits for a long one in a batch that is not refilled.
        """
        questions = dict.fromkeys(question for part in parts for question, _ in part.samples)
        prompts = {question: self.prompt(question) for question in questions}
        longest = max(part.limit for part in parts) / 2
        order = _mixed({question: len(prompt) for question, prompt in prompts.items()}, longest)
        rows = [
            Row(question, index, prompts[question], _dice(seed, question, index), part.temperature, limit)
            for part in parts
            for question, index in part.samples
            for limit in [self._limit(part.limit, prompts[question])]
        ]
        rows.sort(key=lambda row: (-row.limit, order[row.question], row.index))
        tokens = max(len(row.prompt) + row.limit for row in rows)
        places = self.batch_size or batch_size(self._model, self._row_bytes, tokens)
        return Batch(self._model, self._tokenizer, rows, places=places, cost=self.cost, seen=self.seen)

    def spent(self) -> str:
        """Tokens written so far."""
        return f"{self._tokens:,} tokens"

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(weight.numel() for weight in self._model.parameters())

    @property
    def on_cpu(self) -> bool:
        """Whether the model is on a CPU."""
        return bool(next(self._model.parameters()).device.type == "cpu")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode, and back."""
        training = self._model.training
        self._model.eval()
        try:
            yield
        finally:
            self._model.train(training)

    def prompt(self, question: Question) -> list[int]:
        """The tokens of a question under the chat template."""
        tools = json.loads(question.tools) if question.tools else None
        ids = encode_prompt(self._tokenizer, question.messages, tools)
        where = f"The prompt of question {question.id!r}"
        refuse_unknown_tokens(ids, self._known, where)
        refuse_longer(len(ids) + 1 + _END, self._table, f"{where}, with {1 + _END} for its answer,", "Shorten it.")
        return ids

    def _limit(self, most: int, prompt: list[int]) -> int:
        """The most tokens of an answer: where the model has a table of positions, what is left of it."""
        return most if self._table is None else min(most, self._table - len(prompt) - _END)

    def _answer(self, row: Row, stopped: bool) -> Answer:
        """The answer in the generated tokens; a reasoning model's thoughts are kept apart from it."""
        question, index = row.question, row.index
        text, whole = self._tokenizer.decode(row.ids, skip_special_tokens=True), self._tokenizer.decode(row.ids)
        opened = opens_thoughts(self._tokenizer.decode(row.prompt[-_MARKER:]))
        thoughts, rest = split_thoughts(whole, opened)
        if not self._apart or (thoughts, rest) == ("", whole):
            return Answer(question, index, text, stopped, tokens=tuple(row.ids), end=row.end)
        for token in special_tokens(self._tokenizer):
            thoughts, rest = thoughts.replace(token, ""), rest.replace(token, "")
        return Answer(question, index, rest, stopped, thoughts=thoughts, tokens=tuple(row.ids), end=row.end)


def sample(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    per_question: int,
    seed: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    thoughts_apart: bool = True,
    batch_size: int | None = None,
) -> list[Answer]:
    """`per_question` answers to each question, in order; with `thoughts_apart=False` their thoughts are in the text."""
    samples = [(questions[i], k) for i in range(len(questions)) for k in range(per_question)]
    answers = LocalGenerator(model, tokenizer, thoughts_apart=thoughts_apart, batch_size=batch_size)(
        samples, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens
    )
    by_sample = {(answer.question, answer.index): answer for answer in answers}
    return [by_sample[sample] for sample in samples]


def _mixed(lengths: Mapping[Question, int], longest: float) -> dict[Question, int]:
    """The place of each question in an order in which neighbours are alike in length, and all lengths come early.

    Long prompts often have long answers; if they came last, the answers that have ended would be no sample of those
    ahead. Prompts longer than `longest` tokens do come last: one of them makes the attention of all others wider.
    """
    by_length = sorted(lengths, key=lengths.__getitem__)
    many = sum(length <= longest for length in lengths.values())
    groups = [by_length[i : min(i + _ALIKE, many)] for i in range(0, many, _ALIKE)]
    bits = len(groups).bit_length()
    # Read backwards, the binary digits of 0, 1, 2 ... are evenly spread in each part of the order.
    spread = sorted(range(len(groups)), key=lambda i: f"{i:0{bits}b}"[::-1], reverse=True)
    order = chain(*(groups[i] for i in spread), by_length[many:])
    return {question: place for place, question in enumerate(order)}


def _dice(seed: int, question: Question, index: int) -> random.Random:
    return random.Random(f"{seed}|{question.probe}|{question.id}|{index}")
