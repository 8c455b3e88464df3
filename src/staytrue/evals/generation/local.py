"""Answers from a model in this process: every sample has its own seed, every prompt is read once.

A sample depends on (seed, probe, question, index) and the model, not on the other samples: in float32 exactly,
in half precision as far as a batch of another size rounds alike. One uniform number a token is drawn and looked up in
the cumulative distribution: for a vocabulary of V that is 1/V of the random numbers that `multinomial` draws.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from staytrue.data.end_of_turn import end_of_turn
from staytrue.data.special_tokens import special_tokens
from staytrue.data.tokenize import encode_prompt, padding_id
from staytrue.errors import TrainingError
from staytrue.evals.generation.check import check_generation
from staytrue.evals.generation.kv_cache import CachedModel
from staytrue.evals.generation.thoughts import opens_thoughts, split_thoughts
from staytrue.evals.types import Answer, Question

_ROWS, _ROWS_OF_A_LARGE_MODEL = 192, 32  # answers written side by side
_LARGE = 100_000_000  # parameters
_MARKER = 16  # most tokens of a marker that opens thoughts, with the blanks after it
_BLOCK = 256  # tokens of the vocabulary
_Piece = tuple[Question, list[int]]  # a question, and which of its samples


class LocalGenerator:
    """Generates answers with a model in this process; temperature 0 is greedy.

    The end token of the chat template and the model's own end tokens end an answer; its thoughts are kept apart. The
    distribution is not cut: no top-p, no top-k.
    """

    def __init__(self, model: Any, tokenizer: Any, *, thoughts_apart: bool = True) -> None:
        check_generation(model)
        self._model, self._tokenizer, self._apart = model, tokenizer, thoughts_apart
        large = sum(p.numel() for p in model.parameters()) > _LARGE
        self._rows = _ROWS_OF_A_LARGE_MODEL if large else _ROWS

    def __call__(
        self, samples: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Yield the answer of each sample; questions of similar length share a batch."""
        indices: dict[Question, list[int]] = {}
        for question, index in samples:
            indices.setdefault(question, []).append(index)
        prompts = {question: self._prompt(question) for question in indices}
        for batch in _batches(sorted(indices, key=lambda q: len(prompts[q])), indices, self._rows):
            rows = [(question, index) for question, own in batch for index in own]
            dice = [_dice(seed, question, index) for question, index in rows]
            with _evaluating(self._model):
                copies = [len(own) for _, own in batch]
                batch_of_rows = _Batch(
                    self._model, self._tokenizer, [prompts[question] for question, _ in batch], copies
                )
                written = batch_of_rows.write(dice, temperature, max_new_tokens)
            for (question, index), (ids, stopped) in zip(rows, written, strict=True):
                yield self._answer(question, index, prompts[question], ids, stopped)

    def _prompt(self, question: Question) -> list[int]:
        tools = json.loads(question.tools) if question.tools else None
        return encode_prompt(self._tokenizer, question.messages, tools)

    def _answer(self, question: Question, index: int, prompt: list[int], ids: list[int], stopped: bool) -> Answer:
        """The answer in the generated tokens; a reasoning model's thoughts are kept apart from it."""
        text, whole = self._tokenizer.decode(ids, skip_special_tokens=True), self._tokenizer.decode(ids)
        opened = opens_thoughts(self._tokenizer.decode(prompt[-_MARKER:]))
        thoughts, rest = split_thoughts(whole, opened)
        if not self._apart or (thoughts, rest) == ("", whole):
            return Answer(question, index, text, stopped)
        for token in special_tokens(self._tokenizer):
            thoughts, rest = thoughts.replace(token, ""), rest.replace(token, "")
        return Answer(question, index, rest, stopped, thoughts=thoughts)


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
) -> list[Answer]:
    """`per_question` answers to each question, in order; with `thoughts_apart=False` their thoughts are in the text."""
    samples = [(questions[i], k) for i in range(len(questions)) for k in range(per_question)]
    answers = LocalGenerator(model, tokenizer, thoughts_apart=thoughts_apart)(
        samples, seed=seed, temperature=temperature, max_new_tokens=max_new_tokens
    )
    by_sample = {(answer.question, answer.index): answer for answer in answers}
    return [by_sample[sample] for sample in samples]


def _batches(questions: list[Question], indices: dict[Question, list[int]], rows: int) -> Iterator[list[_Piece]]:
    """Questions whose samples fill a batch; one question's samples stay together as far as a batch can hold them."""
    batch: list[_Piece] = []
    filled = 0
    for question in questions:
        for start in range(0, len(indices[question]), rows):
            own = indices[question][start : start + rows]
            if batch and filled + len(own) > rows:
                yield batch
                batch, filled = [], 0
            batch.append((question, own))
            filled += len(own)
    if batch:
        yield batch


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """One token (n,) from logits (n, V) and uniform numbers (n,) in [0, 1); the likeliest at temperature 0.

    First a block of tokens is drawn, then a token in it: sums over whole blocks are short enough for float32, and only
    n numbers a block and one block a row are summed in float64, where a sum over a whole vocabulary would lose its
    tail.
    """
    if temperature == 0:
        return logits.argmax(-1)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    scaled = logits.float() if temperature == 1 else logits.float() / temperature
    weights = torch.sub(scaled, scaled.amax(-1, keepdim=True)).exp_()
    if short := -weights.shape[-1] % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, short))
    blocks = weights.view(len(weights), -1, _BLOCK)
    sums = blocks.sum(-1).to(exact)
    block, left = _place(sums, uniforms.to(exact))
    inside = blocks[torch.arange(len(block), device=block.device), block].to(exact)
    return (block * _BLOCK + _place(inside, left)[0]).clamp(max=logits.shape[-1] - 1)


def _place(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Which of some weights (n, m) a number in [0, 1) falls on, (n,); and where within it, again in [0, 1)."""
    upto = weights.cumsum(-1)
    point = (uniforms * upto[:, -1]).unsqueeze(-1)
    place = torch.searchsorted(upto, point, right=True).clamp(max=weights.shape[-1] - 1)
    own = weights.gather(-1, place)
    left = (point - (upto.gather(-1, place) - own)) / own
    return place.squeeze(-1), left.squeeze(-1).clamp(0, 1 - torch.finfo(weights.dtype).eps)


class _Batch:
    """The model's next-token distributions for a batch of prompts, each read once and shared by its samples."""

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], copies: list[int]) -> None:
        self._ends = _end_ids(model, tokenizer)
        device = next(model.parameters()).device
        width = max(map(len, prompts))
        pad = padding_id(tokenizer)
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        self._cached = CachedModel(model, ids, mask)
        self._cached.select(torch.repeat_interleave(torch.tensor(copies, device=device)))

    def write(self, dice: list[random.Random], temperature: float, limit: int) -> list[tuple[list[int], bool]]:
        """Each row's tokens without its end, and whether it ended by itself; finished rows leave the batch."""
        written: list[list[int]] = [[] for _ in dice]
        ended = [False] * len(dice)
        alive = list(range(len(dice)))
        for turn in range(limit):
            logits = self._cached.logits
            if bool(logits.amax(-1).isnan().any()):  # max propagates NaN
                raise TrainingError(
                    "The model's logits are not numbers (NaN), so it cannot answer: it diverged in training, or its "
                    "weights are broken."
                )
            exact = torch.float32 if logits.device.type == "mps" else torch.float64
            uniforms = torch.tensor([dice[row].random() for row in alive], dtype=exact, device=logits.device)
            tokens = draw(logits, uniforms, temperature)
            stay = []
            for place, (row, token) in enumerate(zip(alive, tokens.tolist(), strict=True)):
                ended[row] = token in self._ends
                if not ended[row]:
                    written[row].append(token)
                    stay.append(place)
            alive = [alive[place] for place in stay]
            if not alive or turn == limit - 1:
                break
            kept = torch.tensor(stay, device=tokens.device)
            self._cached.advance(tokens[kept], kept if len(stay) < len(tokens) else None)
        return list(zip(written, ended, strict=True))


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _dice(seed: int, question: Question, index: int) -> random.Random:
    return random.Random(f"{seed}|{question.probe}|{question.id}|{index}")


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = set(named if isinstance(named, list) else [named]) | {tokenizer.eos_token_id} | end_of_turn(tokenizer)
    return frozenset(end for end in ends if end is not None)
