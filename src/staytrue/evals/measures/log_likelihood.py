"""The log-likelihood per token of given answers: one forward an answer, deterministic."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from staytrue.data.examples import Example
from staytrue.data.position_table import refuse_longer, table_length
from staytrue.data.tokenize import IGNORED, Encoded, encode, padding_id
from staytrue.utils.padding import pad_right

# Numbers in the logits (B, T, V) of one forward: 512 MB in float32, and 64 MB on a CPU, where more is no faster.
_MOST_LOGITS, _MOST_LOGITS_ON_A_CPU = 1 << 27, 1 << 24
_TIMED = 4  # rows that are read together to time them

Count = Callable[[int], None]  # called with how many answers are done


def log_likelihood(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Example],
    ended: Sequence[bool] | None = None,
    count: Count = lambda done: None,
) -> list[float]:
    """Compute the mean log-likelihood of each conversation's answers.

    Args:
        model: a causal language model; it is evaluated without dropout and without a gradient.
        tokenizer: its tokenizer, with a chat template.
        rows: conversations that end with an answer.
        ended: for each row, whether the token that ends its last answer is scored; True for all by default. An answer
            that was cut off has no such token.
        count: called with the number of rows that are done, after each batch.

    Returns:
        For each row, nats per token: at most 0.

    Raises:
        DataError, ModelError: as `staytrue.data.tokenize.encode`; or a row is longer than a table of positions.
    """
    encoded = [_encoded(tokenizer, row, end) for row, end in zip(rows, ended or [True] * len(rows), strict=True)]
    table = table_length(model)
    for row, tokens in zip(rows, encoded, strict=True):
        where, way = f"An answer to {row.question[:60]!r}, with its question,", "Take it out, or leave the measure out."
        refuse_longer(len(tokens.input_ids), table, where, way)
    values, done = [0.0] * len(encoded), 0
    was_training = model.training
    model.eval()
    try:
        batches = list(_batches(encoded, _most_logits(model) // model.config.get_text_config().vocab_size))
        random.Random(0).shuffle(batches)  # else the short ones come first, and `count` promises too early an end
        for batch in batches:
            for i, value in zip(batch, _means(model, tokenizer, [encoded[i] for i in batch]), strict=True):
                values[i] = value
            done += len(batch)
            count(done)
    finally:
        model.train(was_training)
    return values


def seconds_per_token(model: Any, tokenizer: Any, rows: Sequence[Example], seconds: float) -> float:
    """Measure the seconds of one token, prompts included: some rows are read until so many seconds are over."""
    begun, tokens = time.monotonic(), 0
    for start in range(0, len(rows), _TIMED):
        few = rows[start : start + _TIMED]
        log_likelihood(model, tokenizer, few)
        tokens += tokens_of(tokenizer, few)
        if time.monotonic() - begun > seconds:
            break
    return (time.monotonic() - begun) / max(1, tokens)


def tokens_of(tokenizer: Any, rows: Sequence[Example]) -> int:
    """Count the tokens of some conversations, prompts included."""
    return sum(len(encode(tokenizer, row).input_ids) for row in rows)


def _encoded(tokenizer: Any, row: Example, ended: bool) -> Encoded:
    encoded = encode(tokenizer, row)
    if ended:
        return encoded
    end = max(i for i, label in enumerate(encoded.labels) if label != IGNORED)
    return replace(encoded, input_ids=encoded.input_ids[:end], labels=encoded.labels[:end])


def _most_logits(model: Any) -> int:
    return _MOST_LOGITS_ON_A_CPU if next(model.parameters()).device.type == "cpu" else _MOST_LOGITS


def _batches(encoded: Sequence[Encoded], tokens: int) -> Iterator[list[int]]:
    """Indices of rows of like length, as many as so many tokens allow, padding included."""
    batch: list[int] = []
    for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids)):
        if batch and (len(batch) + 1) * len(encoded[i].input_ids) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@torch.no_grad()
def _means(model: Any, tokenizer: Any, rows: Sequence[Encoded]) -> list[float]:
    """The mean over scored tokens of each row of a batch."""
    device = next(model.parameters()).device
    ids, labels, mask = (tensor.to(device) for tensor in pad_right(rows, padding_id(tokenizer)))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    means = []
    for row, targets in zip(logits, labels[:, 1:], strict=True):  # float32 copies are (T, V), not (B, T, V)
        scored = targets != IGNORED
        log_p = row[scored].float().log_softmax(-1).gather(-1, targets[scored].unsqueeze(-1))
        means.append(float(log_p.mean()))
    return means
