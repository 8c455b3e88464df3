"""`drift`: how much less likely the untuned model's own answers to general questions have become.

It shows how far a fine-tune has moved the model on questions that the training data do not mention, whatever the
direction. It is no measure of misalignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from staytrue.data.examples import Example, Message
from staytrue.data.special_in_answers import special_token_in
from staytrue.evals.measures.log_likelihood import Count, log_likelihood
from staytrue.evals.types import Answer


def measure(
    model: Any, tokenizer: Any, answers: Sequence[Answer], count: Count = lambda done: None
) -> dict[str, float]:
    """Compute the log-likelihood of each of the untuned model's answers, one to a question.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with a chat template.
        answers: what the untuned model answered; those that `readable` leaves out are not read.
        count: called with the number of answers that are done.

    Returns:
        By the question's id: nats per token. The drift of a question is this minus the untuned model's own value.

    Example:
        `after = measure(model, tokenizer, answers)`, the same with the adapter switched off, and the mean of the
        differences is the drift.
    """
    scored = readable(tokenizer, answers)
    rows = [conversation(answer) for answer in scored]
    values = log_likelihood(model, tokenizer, rows, [answer.stopped for answer in scored], count)
    return {answer.question.id: value for answer, value in zip(scored, values, strict=True)}


def readable(tokenizer: Any, answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers without empty ones and without those that spell a special token of the chat template.

    Such a text would be read as another one than the model wrote.
    """
    return [
        answer
        for answer in answers
        if answer.text.strip() and special_token_in(tokenizer, conversation(answer)) is None
    ]


def conversation(answer: Answer) -> Example:
    """Return the question and the answer as the row that is read."""
    return Example((*answer.question.messages, Message("assistant", answer.text.strip())))
