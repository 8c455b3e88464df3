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
_POSITIVE = 0.01  # a temperature where 0 is refused; close to greedy
_LARGEST_MINIMUM = 64  # tokens; a judge asks for one
_FEWER = (10, 8, 5, 4, 3, 2, 1)  # likely tokens, where a refusal states no number
_QUOTED = 12  # characters of a turn, from which on its text in a message is a quotation

_TOO_LONG = re.compile(r"context.{0,10}length|context.?window|too (long|large)|reduce the length", re.I)
_NUMBER = re.compile(r"(?<![\w.-])\d+(?![\w.]*\w)")
_SIZE = re.compile(
    r"\[0, ?\d+\]|\b(most|max\w*|exceed\w*|range|between|less|greater|limit\w*|too|high\w*|larg\w*|up to)\b|<", re.I
)
_MINIMUM = re.compile(r"minimum|at least|>=|greater than or equal", re.I)
_BOUND = re.compile(
    r"\b((greater|more|larger|higher|less|lower|fewer|smaller) (than|or)|max(imum)?|min(imum)?|exceed\w*|"
    r"at (most|least)|up to|between|range|too (high|low|big|small|large))\b|[<>]=? ?-?\d|[≤≥]",
    re.I,
)
_REFUSED = (
    r"(?:unsupported|unknown|unrecogni[sz]ed|unexpected|extra(?:neous)?|no such|forbidden|disallowed|deprecated|"
    r"(?:not|n['’]t|never) (?:be )?(?:support(?:ed)?|permit(?:ted)?|allow(?:ed)?|accept(?:ed)?|recogni[sz]ed?|known|"
    r"available|used|set|specified|exist|implemented)\b|unsupported[_ ]\w+|"
    r"invalid (?=parameter|argument|field|key|name|option|property))"
)
_BETWEEN = (  # words and marks between a parameter's name and the refusal
    r"(?:\(s\)|[\s:,;=\"'`()\[\]-]|\b(?:the|this|request|body|keyword|(?:argument|parameter|field|name|key|input|option|value|"
    r"propert(?:y|ie))s?|on|by|for|model|server|endpoint|does|do|supplied|provided|given|passed|got|found|is|are|was|were)\b)*"
)
_FOLLOWING = r"[\"'`\]]?\s+(?:must|should|has to|have to|needs? to|cannot|can not|can't|may not)\b"

Change = tuple[Any, Any, str]  # key and value of `Parameters._changes`, and what is said of the change


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

    def adapt(self, body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The request that the endpoint accepts, as far as it is known, and each change in a few words.

        Example:
            >>> parameters = Parameters(Address("m"))
            >>> body = {"messages": [], "seed": 3}
            >>> _ = parameters.learn(body, body, "`seed` is not supported")
            >>> parameters.adapt(body)
            ({'messages': []}, ('seed left out',))
        """
        body, changes = dict(body), []
        for key, change in list(self._changes.items()):
            name, *value = key if isinstance(key, tuple) else (key,)
            if name not in body or (value and body[name] != value[0]):
                continue
            old = body.pop(name)
            label = f"{name} {old:.10g}" if value else name
            if change is None:
                changes.append(f"{label} left out")
            else:
                changes.append(f"{label} sent as {change}")
                body |= {change: old} if isinstance(change, str) else {name: change}
        if "top_logprobs" not in body:
            body.pop("logprobs", None)
        return body, tuple(changes)

    def learn(self, body: dict[str, Any], sent: dict[str, Any], message: str, fields: Sequence[str] = ()) -> str | None:
        """Change later requests after a refusal.

        Args:
            body: the request as it was meant.
            sent: the request as it was sent, by `adapt`.
            message: the server's.
            fields: names that the error has in a place of its own, such as `param`; the message's text counts
                without any.

        Returns:
            A sentence about the change; "" if another thread has made it; None if nothing can be changed.
        """
        with self._lock:
            if self.adapt(body)[0] != sent:
                return ""
            change = self._change(sent, _without_quotations(message, sent), fields)
            if change is None:
                return None
            key, value, sentence = change
            earlier = (k for k, v in self._changes.items() if isinstance(k, tuple) and (k[0], v) == key)
            self._changes[next(earlier, key)] = value  # of a value that a change made, that change
            return f"{self._address} {sentence} Its message: {message}"

    def _change(self, sent: dict[str, Any], message: str, fields: Sequence[str]) -> Change | None:
        if "top_logprobs" in sent and "logprob" in message.lower():
            return _fewer_tops(sent["top_logprobs"], message)
        name = _refused(sent, message, fields)
        if name is None or _TOO_LONG.search(message):
            return None
        value, is_bound = sent[name], _BOUND.search(message) is not None and not _refuses(message, name)[1]
        if name in _LIMITS:
            return self._change_limit(name, value, message, is_bound)
        if name == "temperature" and value == 0 and (is_bound or "positive" in message):
            return (name, 0), _POSITIVE, f"refuses temperature 0 and gets {_POSITIVE} instead."
        if is_bound and name != "top_p":  # another value is the user's to choose; top_p is none of theirs
            return None
        key = (name, value) if name == "temperature" else name  # a temperature is refused at one value only
        return key, None, f"refuses {name} {value}, which is left out from now on. {_EFFECT[name]}"

    def _change_limit(self, name: str, value: int, message: str, is_bound: bool) -> Change | None:
        """Another name for the limit of tokens, once; or the least limit that the server accepts."""
        least = [n for n in map(int, _NUMBER.findall(message)) if value < n <= _LARGEST_MINIMUM]
        if least and _MINIMUM.search(message):
            return (name, value), least[0], f"refuses {name} {value} and gets {least[0]} instead."
        if is_bound or _LIMITS[name] in self._changes:  # or this name came from a refusal of the other
            return None
        return name, _LIMITS[name], f"gets {_LIMITS[name]} from now on, because it refuses {name}."


def _fewer_tops(number: int, message: str) -> Change | None:
    """A lower number of likely tokens: the largest in the message, or the next of a few."""
    numbers = [n for n in map(int, _NUMBER.findall(message)) if 0 < n < number]
    fewer = max(numbers) if numbers else next((n for n in _FEWER if n < number), None)
    is_size = _SIZE.search(message) or ("top_logprobs" in message and not any(_refuses(message, "top_logprobs")[1:]))
    if fewer is None or not is_size:  # log-probabilities as such are refused
        return None
    effect = "Scores are expectations over these; the probability outside of them is reported."
    return ("top_logprobs", number), fewer, f"gives at most {fewer} likely tokens, not {number}. {effect}"


def _refused(sent: dict[str, Any], message: str, fields: Sequence[str]) -> str | None:
    """The parameter that an error refuses; None if it is about something else."""
    named = set(fields) & set(sent)
    candidates = [name for name in (*_EFFECT, *_LIMITS) if name in sent]
    return next((name for name in candidates if (name in named if named else any(_refuses(message, name)))), None)


def _refuses(message: str, name: str) -> tuple[bool, bool]:
    """Whether a message names a parameter as an error does, and whether it refuses it as such, not its value.

    A prompt's words have a name neither in quotes nor next to a word of refusal. Any spelling counts: top_p, topP,
    "top-p".
    """
    spelled = name.replace("_", "[_ -]?")
    whole = rf"(?<![\w-]){spelled}(?![\w-])"
    ways = (rf"{_REFUSED}{_BETWEEN}{whole}", rf"{whole}{_BETWEEN}{_REFUSED}(?! to\b)")
    refusals = [match.group().lower() for way in ways for match in re.finditer(way, message, re.I)]
    quoted = re.search(rf"[\"'`\[]{spelled}[\"'`\]]|{whole}{_FOLLOWING}", message, re.I)
    named = "_" in name and re.search(whole, message, re.I)  # a word that no prompt holds
    only = re.search(rf"invalid {spelled}\b|{whole}\W+only\b", message, re.I)
    return bool(refusals or quoted or named or only), any("value" not in text for text in refusals)


def _without_quotations(message: str, sent: dict[str, Any]) -> str:
    """The message without the texts of the request's turns."""
    for turn in sent["messages"]:
        text = " ".join(turn["content"].split())
        message = message.replace(text, "...") if len(text) >= _QUOTED else message
    return message


@cache
def parameters_of(address: Address) -> Parameters:
    """The endpoint's parameters, the same object in the whole process."""
    return Parameters(address)
