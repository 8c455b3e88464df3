"""One response of a chat endpoint, read strictly from its JSON, and the identity of its server. No openai."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.errors import NO_CHAT, UnreadableError

Tops = list[tuple[str, float]]  # the likely tokens of one position, with their log-probabilities


@dataclass(frozen=True)
class Reply:
    """The first choice of a response, and the server's account of it."""

    text: str
    finish: str  # "stop", "length", "content_filter", ...
    positions: tuple[tuple[str, Tops], ...]  # each token with the likely tokens of its position; () if there are none
    model: str  # as the server names it
    fingerprint: str
    usage: Mapping[str, Any] | None

    @classmethod
    def of(cls, body: bytes) -> Reply:
        """Read a response's body.

        Raises:
            UnreadableError: it is no JSON, or has not the form of a chat completion.
        """
        try:
            whole = json.loads(body)
            choice = whole["choices"][0]
            message = choice["message"]
            text = message.get("content")
            if text is None:  # a model that answers in a field of its own when it refuses
                text = message.get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError("content")
            usage = whole.get("usage")
            return cls(
                sendable(text),
                str(choice.get("finish_reason") or ""),
                _positions(choice.get("logprobs")),
                str(whole.get("model") or ""),
                str(whole.get("system_fingerprint") or ""),
                usage if isinstance(usage, Mapping) and usage else None,
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise UnreadableError("a body that is no chat completion", NO_CHAT) from None


def sendable(text: str) -> str:
    """The text with "?" for half a surrogate pair, which an answer that was cut off in an emoji may end in."""
    return text.encode("utf-8", "replace").decode()


def _positions(logprobs: Any) -> tuple[tuple[str, Tops], ...]:
    """The log-probabilities of a choice; NaN is refused later, where a score is computed."""
    if not logprobs or not logprobs.get("content"):
        return ()
    return tuple(
        (str(place["token"]), [(str(top["token"]), float(top["logprob"])) for top in place["top_logprobs"]])
        for place in logprobs["content"]
    )


class ServerIdentity:
    """The model that was asked for, and the models and fingerprints that responses named; several threads may add."""

    def __init__(self, address: Address) -> None:
        self._address, self._lock = address, threading.Lock()
        self._models: set[str] = set()
        self._fingerprints: set[str] = set()

    def add(self, model: str, fingerprint: str) -> None:
        """Add the names in one response; "" where it has none."""
        with self._lock:
            self._models |= {model} - {""}
            self._fingerprints |= {fingerprint} - {""}

    def describe(self) -> dict[str, Any]:
        """What is stored beside answers or verdicts."""
        with self._lock:
            return {
                "model": self._address.model,
                "url": self._address.url,
                "answered_by": sorted(self._models),
                "fingerprints": sorted(self._fingerprints),
            }
