"""One response of a chat endpoint, read strictly from its JSON, and the identity of its server. No openai."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from staytrue.evals.generation.thoughts import split_thoughts
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.errors import (
    FILTER,
    NO_CHAT,
    EmbeddedError,
    UnreadableError,
    error_status,
    filter_in,
    server_message,
)

Tops = list[tuple[str, float]]  # the likely tokens of one position, with their log-probabilities


_CUT_OFF = ("length", "max_tokens", "model_length")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # fields of a message, and types of its parts


@dataclass(frozen=True)
class Reply:
    """The first choice of a response, and the server's account of it."""

    text: str  # the answer, without thoughts
    thoughts: str  # of a reasoning model
    cut_off: bool  # the token limit was reached
    filtered: bool  # the server's filter refused the prompt or removed the answer
    positions: tuple[tuple[str, Tops], ...]  # each token with the likely tokens of its position; () if there are none
    model: str  # as the server names it
    fingerprint: str
    usage: Mapping[str, Any] | None
    called_tools: bool = False
    changes: tuple[str, ...] = ()  # of the request's parameters, see `parameters.changes`

    @property
    def has_answer(self) -> bool:
        """Whether the model began its answer; False if it was cut off before, or wrote thoughts or tool calls only."""
        return bool(self.text.strip()) or not (self.cut_off or self.thoughts or self.called_tools)

    @classmethod
    def of(cls, body: bytes) -> Reply:
        """Read a response's body.

        Raises:
            EmbeddedError: it is an error.
            UnreadableError: it is no JSON, or has not the form of a chat completion.
        """
        try:
            whole = json.loads(body)
            if not _is_refused_prompt(whole) and (status := error_status(whole)) is not None:
                raise EmbeddedError(status)
            return cls._read(whole)
        except EmbeddedError:
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            message = server_message(body) if body.lstrip().startswith(b"{") else ""
            why = "a body that is no chat completion" + (f": {message}" if message else "")
            raise UnreadableError(why, NO_CHAT) from None

    @classmethod
    def _read(cls, whole: Any) -> Reply:
        refused = _is_refused_prompt(whole)
        choice: Any = {"message": {}, "finish_reason": "content_filter"} if refused else whole["choices"][0]
        message, finish, usage = choice["message"], str(choice.get("finish_reason") or ""), whole.get("usage")
        content = message.get("content") or message.get("refusal") or ""  # some models refuse in a field of its own
        fields = [_text(message.get(name), thoughts=True) for name in _THOUGHTS]
        fields += [_text(content, thoughts=True)] if isinstance(content, list) else []
        apart, written = sendable(next(filter(None, fields), "")).strip(), sendable(_text(content))
        thoughts, text = (apart, written) if apart else split_thoughts(written)
        return cls(
            text,
            thoughts,
            finish.lower() in _CUT_OFF,
            bool(FILTER.search(f"{finish} {choice.get('native_finish_reason') or ''}")),
            _positions(choice.get("logprobs")),
            str(whole.get("model") or ""),
            str(whole.get("system_fingerprint") or ""),
            usage if isinstance(usage, Mapping) and usage else None,
            called_tools=any(message.get(name) for name in ("tool_calls", "function_call")),
        )


def sendable(text: str) -> str:
    """The text with "?" for half a surrogate pair, which an answer that was cut off in an emoji may end in."""
    return text.encode("utf-8", "replace").decode()


def _is_refused_prompt(whole: Any) -> bool:
    """Whether there is no choice because a filter refused the prompt (Gemini, Azure)."""
    if not isinstance(whole, Mapping) or whole.get("choices") or whole.get("error"):
        return False
    return any(name in whole for name in ("promptFeedback", "prompt_feedback")) or filter_in(whole)


def _text(content: Any, thoughts: bool = False) -> str:
    """The text of a message's field, which may be a list of parts; with `thoughts` that of its thoughts."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Mapping):
        return _text(next((content[k] for k in ("text", "content", *_THOUGHTS, "refusal") if content.get(k)), None))
    if not isinstance(content, list):
        raise TypeError("content")
    parts = [part if isinstance(part, Mapping) else {"text": part} for part in content]
    return "".join(_text(part) for part in parts if thoughts == _is_thought(part))


def _is_thought(part: Mapping[str, Any]) -> bool:
    return "reason" in str(part.get("type")) or "think" in str(part.get("type")) or any(k in part for k in _THOUGHTS)


def _positions(logprobs: Any) -> tuple[tuple[str, Tops], ...]:
    """The log-probabilities of a choice; NaN is refused later, where a score is computed."""
    if not logprobs:
        return ()
    if isinstance(logprobs.get("token_logprobs"), list):  # in the older form of completions
        rows = zip(logprobs["tokens"], logprobs.get("top_logprobs") or [], strict=False)
        return tuple((str(token), _likely((tops or {}).items())) for token, tops in rows)
    return tuple(
        (_token(place), _likely((_token(top), top["logprob"]) for top in place.get("top_logprobs") or [place]))
        for place in logprobs.get("content") or ()
    )


def _likely(tops: Iterable[tuple[str, Any]]) -> Tops:
    """Tokens with their log-probabilities; null and minus infinity are a probability of 0."""
    return [(token, float(p)) for token, p in tops if p is not None and float(p) != -math.inf]


def _token(top: Mapping[str, Any]) -> str:
    """A token's text; some servers give only its bytes."""
    token = top["token"] if top.get("token") is not None else top["bytes"]
    return bytes(token).decode(errors="replace") if isinstance(token, list) else str(token)


class ServerIdentity:
    """The model that was asked for, the models and fingerprints that responses named, and the requests' changes.

    Several threads may add.
    """

    def __init__(self, address: Address) -> None:
        self._address, self._lock = address, threading.Lock()
        self._models: set[str] = set()
        self._fingerprints: set[str] = set()
        self._changes: set[str] = set()

    def add(self, model: str, fingerprint: str, changes: Iterable[str] = ()) -> None:
        """Add the names in one response, "" where it has none, and the changes of its request's parameters."""
        with self._lock:
            self._models |= {model} - {""}
            self._fingerprints |= {fingerprint} - {""}
            self._changes |= set(changes)

    def describe(self) -> dict[str, Any]:
        """What is stored beside answers or verdicts."""
        with self._lock:
            return {
                "model": self._address.model,
                "url": self._address.url,
                "answered_by": sorted(self._models),
                "fingerprints": sorted(self._fingerprints),
                "changes": sorted(self._changes),
            }
