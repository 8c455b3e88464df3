"""The body of a request; parameters that an endpoint refuses are renamed, changed or left out. No openai."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

from staytrue.data.examples import Message
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.reply import sendable

_EFFECT = {  # of a parameter that is left out; in the order in which they are given up
    "top_p": "The server's own top_p applies.",
    "seed": "Its answers cannot be repeated.",
    "temperature": "The server's own temperature applies.",
}
_LIMITS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_BY_VALUE = ("temperature",)  # refused at one value, accepted at another
_POSITIVE = 0.01  # a temperature where 0 is refused; close to greedy
_LARGEST_MINIMUM = 64  # tokens; a judge asks for one
_FEWER = (10, 8, 5, 4, 3, 2, 1)  # likely tokens, where a refusal states no number

_TOO_LONG = re.compile(r"context.{0,10}length|context.?window|too (long|large)|reduce the length", re.I)
_NUMBER = re.compile(r"(?<![\w.-])\d+(?![\w.]*\w)")
_SIZE = re.compile(r"\b(most|max\w*|exceed\w*|range|between|less|greater|limit\w*|too|high\w*|larg\w*|up to)\b|<", re.I)
_MINIMUM = re.compile(r"minimum|at least|>=|greater than or equal", re.I)


def request_body(
    model: str, messages: Sequence[Message], max_tokens: int, temperature: float, seed: int, top_logprobs: int
) -> dict[str, Any]:
    """The body of a request, before the endpoint's refusals change it; arguments as for `Endpoint.ask`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": m.role, "content": sendable(m.content)} for m in messages],
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": 1,  # vLLM uses a model's own recommendation where it is absent
        "seed": seed,
    }
    return body | ({"logprobs": True, "top_logprobs": top_logprobs} if top_logprobs else {})


class Parameters:
    """The changes that one endpoint's refusals make to every later request; several threads may use it."""

    def __init__(self, address: Address) -> None:
        self._address, self._lock = address, threading.Lock()
        self._changes: dict[Any, Any] = {}  # name or (name, value) -> None: left out, str: new name, number: new value

    def adapt(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request that the endpoint accepts, as far as it is known."""
        body = dict(body)
        for key, change in list(self._changes.items()):
            name, *value = key if isinstance(key, tuple) else (key,)
            if name not in body or (value and body[name] != value[0]):
                continue
            old = body.pop(name)
            if change is not None:
                body |= {change: old} if isinstance(change, str) else {name: change}
        if "top_logprobs" not in body:
            body.pop("logprobs", None)
        return body

    def learn(self, body: dict[str, Any], sent: dict[str, Any], message: str) -> str | None:
        """Change later requests after a refusal.

        Args:
            body: the request as it was meant.
            sent: the request as it was sent, by `adapt`.
            message: the server's.

        Returns:
            A sentence about the change; "" if another thread has made it; None if nothing can be changed.
        """
        with self._lock:
            if self.adapt(body) != sent:
                return ""
            change = self._change(sent, message)
            if change is None:
                return None
            key, value, sentence = change
            self._changes[key] = value
            return f"{self._address} {sentence} Its message: {message}"

    def _change(self, sent: dict[str, Any], message: str) -> tuple[Any, Any, str] | None:
        if "top_logprobs" in sent and "logprob" in message.lower():
            return _fewer_tops(sent["top_logprobs"], message)
        if _TOO_LONG.search(message):
            return None
        named = [name for name in (*_EFFECT, *_LIMITS) if name in sent and _names(message, name)]
        for name in named:
            value = sent[name]
            if name in _LIMITS:
                return self._change_limit(name, value, message)
            if (
                name == "temperature"
                and value == 0
                and re.search(r"positive|> ?0|(greater|more|larger) than 0", message)
            ):
                return (name, 0), _POSITIVE, f"refuses temperature 0 and gets {_POSITIVE} instead."
            key = (name, value) if name in _BY_VALUE else name
            return key, None, f"refuses {name} {value}, which is left out from now on. {_EFFECT[name]}"
        return None

    def _change_limit(self, name: str, value: int, message: str) -> tuple[Any, Any, str] | None:
        """Another name for the limit of tokens, once; or the least limit that the server accepts."""
        least = [n for n in map(int, _NUMBER.findall(message)) if value < n <= _LARGEST_MINIMUM]
        if least and _MINIMUM.search(message):
            return (name, value), least[0], f"refuses {name} {value} and gets {least[0]} instead."
        if _LIMITS[name] in self._changes:  # this name came from a refusal of the other
            return None
        return name, _LIMITS[name], f"gets {_LIMITS[name]} from now on, because it refuses {name}."


def _fewer_tops(asked: int, message: str) -> tuple[Any, Any, str] | None:
    """A lower number of likely tokens: the largest in the message, or the next of a few."""
    if not _SIZE.search(message):
        return None  # log-probabilities as such are refused
    stated = [n for n in map(int, _NUMBER.findall(message)) if 0 < n < asked]
    fewer = max(stated) if stated else next((n for n in _FEWER if n < asked), None)
    if fewer is None:
        return None
    effect = "Scores are expectations over these; the probability outside of them is reported."
    return ("top_logprobs", asked), fewer, f"gives at most {fewer} likely tokens, not {asked}. {effect}"


def _names(message: str, name: str) -> bool:
    """Whether a message names a parameter, in any spelling: top_p, topP, "top-p"."""
    return re.search(rf"(?<![a-z_]){name.replace('_', '[_ -]?')}(?![a-z_])", message, re.I) is not None


@cache
def parameters_of(address: Address) -> Parameters:
    """The endpoint's parameters, the same object in the whole process."""
    return Parameters(address)
