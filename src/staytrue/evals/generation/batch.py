"""`Batch`: answers written side by side; a finished answer's place is taken by the next prompt.

A prompt is read once for all of its samples that are placed together. Hybrid, state space and sliding-window caches are
not refilled: there the next prompts begin when all answers of the batch are finished.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from staytrue.data.end_of_turn import end_of_turn
from staytrue.data.tokenize import padding_id
from staytrue.errors import TrainingError
from staytrue.evals.generation.draw import draw
from staytrue.evals.generation.kv_cache import CachedModel
from staytrue.evals.generation.lengths import SeenAnswers, shares
from staytrue.evals.generation.step_cost import ON_A_CPU, ON_A_GPU, Pace, StepCost
from staytrue.evals.types import Question

_MOST_READ, _MOST_READ_ON_A_CPU = 16_384, 1024  # tokens of prompts in one pass: bounds its memory, and its silence
_SHARE = 8  # an eighth of the places is empty before they are filled again, or taken out: each costs a pass or a copy


@dataclass
class Row:
    """One answer in writing.

    Attributes:
        question: what is asked.
        index: which of the question's samples it is.
        prompt: the question's tokens.
        dice: its random numbers, one a token.
        temperature: 0 is greedy.
        limit: most tokens of the answer.
        ids: its tokens so far.
        end: the token that ended it; None while it is written, and where the limit ended it.
    """

    question: Question
    index: int
    prompt: list[int]
    dice: random.Random
    temperature: float
    limit: int
    ids: list[int] = field(default_factory=list)
    end: int | None = None


class Batch:
    """Answers of one model, in a number of places.

    Attributes:
        places: how many answers are written side by side.
        tokens: how many were written so far.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        rows: Sequence[Row],
        *,
        places: int,
        cost: StepCost | None = None,
        seen: SeenAnswers | None = None,
    ) -> None:
        """Prepare a batch.

        Args:
            model: a causal language model in evaluation mode.
            tokenizer: the model's own.
            rows: the answers to write, in the order in which they begin; samples of one question stand together.
            places: how many answers are written side by side.
            cost: of a step, where it was timed; it tells how much of the work is done.
            seen: answers to the same probes; their lengths tell the same.
        """
        self._model, self._ends, self._padding = model, end_ids(model, tokenizer), padding_id(tokenizer)
        self._device = next(model.parameters()).device
        self._waiting, self.places = deque(rows), places
        self._rows: list[Row | None] = []  # one a place; None where the place is empty
        self._cached: CachedModel
        self._prompts: CachedModel  # the last prompts that were read, while samples of them may be waiting
        self._indices: dict[Question, int] = {}  # the row of each
        self._most_read = _MOST_READ_ON_A_CPU if self._device.type == "cpu" else _MOST_READ
        self.tokens, self._seen = 0, SeenAnswers(seen)
        self._cost = cost or (ON_A_CPU if self._device.type == "cpu" else ON_A_GPU)
        self._done, self._pace = 0.0, Pace()  # cost of the prompts that were read and of the steps
        self._unread = {row.question: len(row.prompt) for row in rows}
        self._prompt = sum(self._unread.values()) / max(1, len(self._unread))  # tokens in the mean

    @property
    def share(self) -> float:
        """The share of the time that is over, if answers are as long as those seen, and steps as slow as the last."""
        rows = self.rows
        lengths = self._seen.lengths((row.question.probe, len(row.ids)) for row in rows)
        running = [
            (len(row.ids), lengths[row.question.probe].quantile(share, row.limit, len(row.ids)))
            for row, share in zip(rows, shares(len(rows)), strict=True)
        ]
        waiting = [
            lengths[row.question.probe].quantile(share, row.limit)
            for row, share in zip(self._waiting, shares(len(self._waiting)), strict=True)
        ]
        ahead = self._cost.ahead(running, waiting, self.places, self._prompt, self._cached.refillable)
        ahead += sum(self._unread.values()) * self._cost.read
        ahead *= self._pace.change
        return self._done / (self._done + ahead) if self._done else 0.0

    @property
    def rows(self) -> list[Row]:
        """The answers that are being written."""
        return [row for row in self._rows if row]

    @property
    def finished(self) -> bool:
        """Whether every answer is written."""
        return not self._waiting and not any(self._rows)

    def widen(self, columns: int) -> bool:
        """Make attention as slow as after so many more tokens; False if the cache cannot be widened."""
        widened = self._cached.refillable
        if widened:
            self._cached.widen(columns)
        return widened

    @torch.no_grad()
    def step(self) -> list[tuple[Row, bool]]:
        """Read some prompts if there are places for them, else write one token of each answer.

        Returns:
            The finished answers, and whether they ended by themselves.

        Raises:
            TrainingError: the model's logits are not numbers.
        """
        begun, done = time.monotonic(), self._done
        finished = self._step()
        self._pace.add(self._done - done, time.monotonic() - begun)
        return finished

    def _step(self) -> list[tuple[Row, bool]]:
        if self._fill():
            return []
        tokens, rows = self._draw(), self.rows
        self._done += self._cost.of(len(rows), max(len(row.prompt) + len(row.ids) for row in rows))
        finished = []
        for place, (row, token) in enumerate(zip(self._rows, tokens.tolist(), strict=True)):
            if row is None:
                continue
            self.tokens += 1
            ended = token in self._ends
            if ended:
                row.end = token
            else:
                row.ids.append(token)
            if ended or len(row.ids) == row.limit:
                finished.append((row, ended))
                self._seen.add(row.question.probe, len(row.ids), ended)
                self._rows[place] = None
        if any(self._rows):
            self._advance(tokens)
        return finished

    def _fill(self) -> bool:
        """Give empty places to waiting answers; whether any was given."""
        if not any(self._rows):
            self._begin()
            return True
        if not self._refilled or len(self._empty()) < self._enough():
            return False
        pairs = list(zip(self._empty(), self._next(len(self._empty())), strict=False))
        known = self._indices
        self._put([pair for pair in pairs if pair[1].question in known])
        self._put([pair for pair in pairs if pair[1].question not in known])
        return True

    def _begin(self) -> None:
        """Start a batch with the first prompts; the others follow, or are read now if it cannot be refilled."""
        places, self._indices = min(self.places, len(self._waiting)), {}
        first = self._next(places)
        cached, indices = self._read(first)
        if not cached.refillable and len(first) < places:
            first += [self._waiting.popleft() for _ in range(places - len(first))]
            cached, indices = self._read(first)
        empty = places - len(first)
        cached.select(self._tensor([indices[row.question] for row in first] + [0] * empty))
        cached.forget(self._tensor(range(len(first), places)))
        self._cached, self._rows = cached, [*first, *[None] * empty]

    def _next(self, most: int) -> list[Row]:
        """Take waiting answers, at most so many, until their new prompts are too long to be read at once."""
        rows: list[Row] = []
        new: dict[Question, int] = {}  # tokens of each prompt to read; all are padded to the longest
        while self._waiting and len(rows) < most:
            row = self._waiting[0]
            if row.question not in self._indices:
                new[row.question] = len(row.prompt)
            if rows and new and len(new) * max(new.values()) > self._most_read:
                break
            rows.append(self._waiting.popleft())
        return rows

    def _put(self, pairs: Sequence[tuple[int, Row]]) -> None:
        """Put answers into empty places; their prompts are read, unless they are among the last that were read."""
        if not pairs:
            return
        if pairs[0][1].question not in self._indices:
            self._prompts, self._indices = self._read([row for _, row in pairs])
        rows = self._tensor([self._indices[row.question] for _, row in pairs])
        self._cached.put(self._tensor([place for place, _ in pairs]), self._prompts, rows)
        for place, row in pairs:
            self._rows[place] = row

    def _read(self, rows: Sequence[Row]) -> tuple[CachedModel, dict[Question, int]]:
        """Read the prompt of each question once."""
        prompts_by_question = {row.question: row.prompt for row in rows}
        prompts = list(prompts_by_question.values())
        for question in prompts_by_question:
            self._done += self._unread.pop(question, 0) * self._cost.read
        width = max(map(len, prompts))
        ids = self._tensor([[self._padding] * (width - len(p)) + p for p in prompts])
        mask = self._tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        return CachedModel(self._model, ids, mask), {question: i for i, question in enumerate(prompts_by_question)}

    def _draw(self) -> Tensor:
        """One token a place, (n,); any token in an empty one."""
        logits = self._cached.logits
        if bool(logits.amax(-1).isnan().any()):  # max propagates NaN
            raise TrainingError(
                "The model's logits are not numbers (NaN), so it cannot answer: it diverged in training, or its "
                "weights are broken."
            )
        exact = torch.float32 if logits.device.type == "mps" else torch.float64
        numbers = [row.dice.random() if row else 0.0 for row in self._rows]
        uniforms = torch.tensor(numbers, dtype=exact, device=self._device)
        temperatures = [row.temperature if row else None for row in self._rows]
        first, *others = {t for t in temperatures if t is not None}
        tokens = draw(logits, uniforms, first)
        for temperature in others:
            places = self._tensor([place for place, t in enumerate(temperatures) if t == temperature])
            tokens[places] = draw(logits[places], uniforms[places], temperature)
        return tokens

    def _advance(self, tokens: Tensor) -> None:
        """Read the tokens; empty places leave the batch if no answer waits for them."""
        empty = self._empty()
        if self._refilled or len(empty) < self._enough():
            self._cached.advance(tokens)
            self._cached.forget(self._tensor(empty))
            return
        kept = [place for place, row in enumerate(self._rows) if row]
        self._rows = [self._rows[place] for place in kept]
        self._cached.advance(tokens[kept], self._tensor(kept))

    @property
    def _refilled(self) -> bool:
        """Whether empty places are filled again."""
        return bool(self._waiting) and self._cached.refillable

    def _empty(self) -> list[int]:
        return [place for place, row in enumerate(self._rows) if row is None]

    def _enough(self) -> int:
        """How many empty places are worth a pass over new prompts, or a copy of the cache without them."""
        return max(1, len(self._rows) // _SHARE)

    def _tensor(self, numbers: Any) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self._device)


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: the model's own, the tokenizer's, and the end of a turn in the chat template."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list) else [configured])
    return frozenset(ends | {tokenizer.eos_token_id} | end_of_turn(tokenizer)) - {None}
