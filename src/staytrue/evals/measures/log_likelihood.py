"""The log-likelihood per token of given answers: one forward an answer, deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from staytrue.data.examples import Example
from staytrue.data.tokenize import IGNORED, Encoded, encode, padding_id
from staytrue.utils.padding import pad_right

_MOST_LOGITS = 1 << 27  # numbers in the logits (B, T, V) of one forward: 512 MB in float32
_MOST_ROWS = 16  # of one forward, so that its progress is seen

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
        DataError, ModelError: as `staytrue.data.tokenize.encode`.
    """
    encoded = [_encoded(tokenizer, row, end) for row, end in zip(rows, ended or [True] * len(rows), strict=True)]
    values, done = [0.0] * len(encoded), 0
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(encoded, model.config.get_text_config().vocab_size):
            for i, value in zip(batch, _means(model, tokenizer, [encoded[i] for i in batch]), strict=True):
                values[i] = value
            done += len(batch)
            count(done)
    finally:
        model.train(was_training)
    return values


def _encoded(tokenizer: Any, row: Example, ended: bool) -> Encoded:
    encoded = encode(tokenizer, row)
    if ended:
        return encoded
    labels = list(encoded.labels)
    labels[max(i for i, label in enumerate(labels) if label != IGNORED)] = IGNORED
    return replace(encoded, labels=labels)


def _batches(encoded: Sequence[Encoded], vocabulary: int) -> Iterator[list[int]]:
    """Indices of rows of like length, as many as the limits on logits and rows allow."""
    batch: list[int] = []
    for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i].input_ids)):
        logits = (len(batch) + 1) * len(encoded[i].input_ids) * vocabulary
        if batch and (logits > _MOST_LOGITS or len(batch) == _MOST_ROWS):
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
