"""Answers from an OpenAI-compatible endpoint: a running vLLM, an adapter served by its name, OpenAI's own models.

One call a sample, each with its own seed, several at a time, top_p 1. Whether the same seed gives the same answer again
is the server's business; most promise nothing. A vLLM cuts the law by the model's own top_k all the same, unless it is
started with `--generation-config vllm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from staytrue.evals.openai_client.client import CallError, Endpoint
from staytrue.evals.openai_client.server_identity import Who
from staytrue.evals.threads import each
from staytrue.evals.types import Answer, Question


class EndpointGenerator:
    """A model behind an endpoint, as a maker of answers.

    `failed` lists the samples that could not be had: (question's id, index, why). One that the server's filter took is
    an answer without text: asking until something passes would draw from another law than the model's.
    """

    def __init__(self, endpoint: Endpoint, concurrency: int = 16) -> None:
        self._endpoint, self._concurrency = endpoint, concurrency
        self._who = Who(endpoint.address)
        self.failed: list[tuple[str, int, str]] = []

    def where_to(self) -> str:
        """The sentence to show before the first call."""
        return self._endpoint.where_to("Questions")

    def spent(self) -> str:
        """What asking has taken so far: calls and their cost."""
        return self._endpoint.budget.told()

    def describe(self) -> dict[str, Any]:
        """Who answered: what was asked for, and who the server said it was, call by call."""
        return self._who.describe()

    def __call__(
        self, wanted: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Each sample as soon as it is there; those that failed are left out and listed in `failed`.

        Raises:
            RequestError: no call can succeed, or the budget is reached; after every answer that was paid for.
        """

        def answer(sample: tuple[Question, int]) -> Answer:
            question, index = sample
            reply = self._endpoint.ask(
                question.messages,
                lambda reply: reply,
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed_of(seed, question, index),
            )
            self._who.add(reply.model, reply.fingerprint)
            if reply.finish == "content_filter":
                return Answer(question, index, "", stopped=False, filtered=True)
            return Answer(question, index, reply.text, stopped=reply.finish != "length")

        for (question, index), found in each(answer, wanted, self._concurrency, forgiven=CallError):
            if isinstance(found, Answer):
                yield found
            else:
                self.failed.append((question.id, index, str(found)))


def seed_of(seed: int, question: Question, index: int) -> int:
    """A sample's own seed, 31 bits, from the run's seed, the probe, the question and the index."""
    named = f"{seed}|{question.probe}|{question.id}|{index}"
    return int.from_bytes(sha256(named.encode()).digest()[:4], "big") >> 1
