"""One answer of a chat endpoint, read strictly from its JSON. No openai."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from staytrue.evals.openai_client.errors import NO_CHAT, UnreadableError

Tops = list[tuple[str, float]]  # the likely tokens in one place, with their log-probabilities


@dataclass(frozen=True)
class Reply:
    """What the first choice says, and what the server says of it."""

    text: str
    finish: str  # "stop", "length", "content_filter", ...
    positions: tuple[tuple[str, Tops], ...]  # each token written with those in its place; () where none were given
    model: str  # who answered, as the server says
    fingerprint: str
    usage: Mapping[str, Any] | None

    @classmethod
    def of(cls, body: bytes) -> Reply:
        """Read a response's body.

        Raises:
            UnreadableError: it is no JSON, or not of the form of a chat completion.
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
    """The text with "?" for each half of a character, which an answer cut off in an emoji may end in."""
    return text.encode("utf-8", "replace").decode()


def _positions(logprobs: Any) -> tuple[tuple[str, Tops], ...]:
    """The laws of a choice; NaN is let through here, and refused where a number is made of it."""
    if not logprobs or not logprobs.get("content"):
        return ()
    return tuple(
        (str(place["token"]), [(str(top["token"]), float(top["logprob"])) for top in place["top_logprobs"]])
        for place in logprobs["content"]
    )
