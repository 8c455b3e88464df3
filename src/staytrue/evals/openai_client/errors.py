"""The errors of calls to an endpoint, in words, and whether another call can succeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from staytrue.evals.openai_client.address import KEY, Address

NO_LOGPROBS = (
    "{address} gives no log-probabilities, and a judge's score is read from them. Name a model and server that do, or "
    "a model on this machine: local:FOLDER."
)
NO_CHAT = "{address} answers, but not with chat completions. Check the URL; it usually ends in /v1."
UNREACHABLE = "{address} cannot be reached: {why}. Start it, or correct the URL."
_RETRIED = (408, 409, 429)  # by the client, and every status from 500 up
_LONGEST = 200  # characters of a server's message
_MESSAGES = ("error", "message", "detail", "msg", "errors")  # keys that hold one


class CallError(Exception):
    """One call failed, also when it was retried; other calls may succeed."""


class UnreadableError(ValueError):
    """A response of status 200 that cannot be used."""

    def __init__(self, why: str, sentence: str = "") -> None:
        """Make the error.

        Args:
            why: a few words.
            sentence: for an endpoint that has never answered otherwise; {address} is its address.
        """
        super().__init__(why)
        self.sentence = sentence


@dataclass(frozen=True)
class Failure:
    """A call that failed."""

    why: str  # a few words
    fatal: str = ""  # the sentence, if no other call can succeed
    retried: bool = True  # by the client


def is_unsent(error: BaseException | None) -> bool:
    """Whether there was no connection, so that nothing was sent or paid for."""
    return type(error).__name__ in ("ConnectError", "ConnectTimeout")  # of the client's HTTP library


def failure(error: Exception, address: Address, key: str | None) -> Failure:
    """Describe an exception of the official client; one of another kind is raised again."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, address, key)
    if isinstance(error, openai.APIConnectionError):
        if is_unsent(error.__cause__):
            return Failure(f"no connection: {error.__cause__ or 'no answer'}")
        return Failure("a time-out" if isinstance(error, openai.APITimeoutError) else "a broken connection")
    raise error


def _status_failure(error: Any, address: Address, key: str | None) -> Failure:
    status, message = error.status_code, server_message(error.response.content, key)
    why = f"HTTP {status}: {message}" if message else f"HTTP {status}"
    fatal = ""
    if 300 <= status < 400:
        fatal = f"{address} redirects to {error.response.headers.get('location', 'nowhere')}. Name that URL itself."
    elif status == 401:  # the server's message may quote the key
        why, fatal = "HTTP 401", f"{address} refuses the key (HTTP 401). Put a valid one into {KEY}."
    elif status in (400, 403, 422) and "logprob" in message:
        fatal = f"{NO_LOGPROBS.format(address=address)} Its message: {message}"
    elif status == 403:
        fatal = f"{address} does not allow this ({why}). Use a key or a model that is allowed."
    elif status == 404:
        fatal = f"{address} is not there ({why}). Check the model's name and the URL (.../v1)."
    elif status == 402 or error.code == "insufficient_quota":
        fatal = f"The account at {address.host} has no credit left ({why}). Everything paid for is kept."
    return Failure(why, fatal, retried=status in _RETRIED or status >= 500)


def server_message(body: bytes, key: str | None) -> str:
    """The message in an error's body, in one line, without the key; "" if there is none."""
    try:
        message = _find_message(json.loads(body))
    except ValueError:
        text = body.decode(errors="replace").strip()
        message = "" if text.startswith("<") else text  # a page
    message = " ".join(message.split())
    message = message.replace(key, "[key]") if key else message
    return message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "..."


def _find_message(value: Any) -> str:
    """The message in a JSON value: of OpenAI `error.message`, of others a string, or a list of objects with `msg`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_find_message, value)))
    if not isinstance(value, Mapping):
        return ""
    return next(filter(None, (_find_message(value.get(name)) for name in _MESSAGES)), "")
