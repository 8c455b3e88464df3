"""Answers from an OpenAI-compatible endpoint: a running vLLM, an adapter served by its name, or OpenAI's own models.

Each sample is one call with its own seed and top_p 1. Whether the same seed gives the same answer again depends on the
server. vLLM also applies the model's recommended top_k unless it is started with `--generation-config vllm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any

from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.openai_client.errors import CallError, FilteredError
from staytrue.evals.openai_client.reply import ServerIdentity
from staytrue.evals.threads import concurrently
from staytrue.evals.types import Answer, Question


class EndpointGenerator:
    """Generates answers with a model behind an endpoint.

    An answer that the server's filter removed has no text and is not asked for again: repeating the call until
    something passes would sample another distribution than the model's.

    Attributes:
        failed: the samples whose calls failed: question's id, index, reason.
    """

    def __init__(self, endpoint: Endpoint, concurrency: int = 16) -> None:
        self._endpoint, self._concurrency = endpoint, concurrency
        self._server = ServerIdentity(endpoint.address)
        self.failed: list[tuple[str, int, str]] = []

    def notice(self) -> str:
        """The sentence to show before the first call."""
        return self._endpoint.notice("Questions")

    def spent(self) -> str:
        """Calls and their cost so far."""
        return self._endpoint.budget.describe()

    def describe(self) -> dict[str, Any]:
        """The model that was asked for, the models that the server named, and the parameters that were changed."""
        return self._server.describe()

    def __call__(
        self, samples: Sequence[tuple[Question, int]], *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Yield each answer as its call ends; samples whose calls failed are left out and listed in `failed`.

        Raises:
            RequestError: no call can succeed, or the budget is reached; after every answer that was paid for.
        """

        def answer(sample: tuple[Question, int]) -> Answer | str:
            question, index = sample
            try:
                reply = self._endpoint.ask(
                    question.messages,
                    lambda reply: reply,
                    max_tokens=max_new_tokens,
                    temperature=temperature,
                    seed=seed_of(seed, question, index),
                )
            except FilteredError:
                return Answer(question, index, "", stopped=False, filtered=True)
            except CallError as error:
                return str(error)
            self._server.add(reply.model, reply.fingerprint, reply.changes)
            stopped = reply.has_answer and reply.ended
            called = reply.called_tools
            return Answer(question, index, reply.text, stopped, thoughts=reply.thoughts, called_tools=called)

        for (question, index), result in concurrently(answer, samples, self._concurrency):
            if isinstance(result, Answer):
                yield result
            else:
                self.failed.append((question.id, index, result))


def seed_of(seed: int, question: Question, index: int) -> int:
    """A sample's own seed, 31 bits, from the run's seed, the probe, the question and the index."""
    text = f"{seed}|{question.probe}|{question.id}|{index}"
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big") >> 1
