"""What went wrong with a call, in words: whether to try again, when, and whether any other call can succeed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from staytrue.evals.openai_client.address import KEY, Address

NO_LOGPROBS = (
    "{address} gives no log-probabilities, and a judge's score is read from them. Name a model and server that do, or "
    "a model on this machine: local:FOLDER."
)
NO_CHAT = "{address} answers, but not with chat completions. Check the URL; it usually ends in /v1."
_AGAIN = (408, 409, 425, 429)  # and everything from 500 up


class UnreadableError(ValueError):
    """An answer that cannot be used."""

    def __init__(self, why: str, hopeless: str = "", tries: int | None = None) -> None:
        """Make one.

        Args:
            why: in a few words.
            hopeless: the sentence for an endpoint that has never answered otherwise; {address} is its address.
            tries: how often to ask an endpoint that has never answered otherwise; None is as often as any.
        """
        super().__init__(why)
        self.hopeless, self.tries = hopeless, tries


class AttemptError(Exception):
    """One attempt that failed."""

    def __init__(
        self,
        why: str,
        *,
        again: bool = True,
        tries: int | None = None,  # as many at most, where the endpoint has never answered
        wait: float | None = None,  # seconds, as the server asks
        hopeless: str = "",  # the sentence, where the endpoint has never answered
        over: str = "",  # the sentence, where no call can succeed
        billed: bool = False,  # it may have been answered, and paid for, all the same
    ) -> None:
        super().__init__(why)
        self.again, self.tries, self.wait = again, tries, wait
        self.hopeless, self.over, self.billed = hopeless, over, billed


def fault_of(error: Exception, address: Address, key: str | None, heard: bool) -> AttemptError:
    """What an exception of the client means; one that is none of its own is passed on.

    `heard`: whether this endpoint has answered before; one that has may be back in a moment.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        return _answered(error.status_code, _message(error, key), str(error.code), error.response.headers, address)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):  # of the client's transport; nothing was sent
            said = str(cause) or "nobody answers"
            sentence = f"{address} cannot be reached: {said}. Start it, or correct the URL."
            return AttemptError(f"no connection: {said}", over="" if heard else sentence)
        late = isinstance(error, openai.APITimeoutError)
        return AttemptError("a time-out" if late else "a broken connection", billed=True)
    raise error


def _answered(status: int, said: str, code: str, headers: Mapping[str, str], address: Address) -> AttemptError:
    """A status other than 200."""
    why = f"HTTP {status}: {said}" if said else f"HTTP {status}"
    if 300 <= status < 400:
        place = headers.get("location", "nowhere")
        return AttemptError(why, over=f"{address} redirects to {place}. Name that URL itself.")
    if status == 401:  # what the server says may quote the key
        return AttemptError("HTTP 401", over=f"{address} refuses the key (HTTP 401). Put a valid one into {KEY}.")
    if status in (400, 403, 422) and "logprob" in said:
        return AttemptError(why, over=f"{NO_LOGPROBS.format(address=address)} It says: {said}")
    if status == 403:
        return AttemptError(why, over=f"{address} does not allow this ({why}). Use a key or a model that is allowed.")
    if status == 404:
        return AttemptError(why, over=f"{address} is not there ({why}). Check the model's name and the URL (.../v1).")
    if code == "insufficient_quota":
        return AttemptError(
            why, over=f"The account at {address.host} has no credit left ({why}). Everything paid for is kept."
        )
    return AttemptError(why, again=status in _AGAIN or status >= 500, wait=_asked_to_wait(headers))


def _message(error: Any, key: str | None) -> str:
    """What the server says, in one line, without the key."""
    body = error.body if isinstance(error.body, Mapping) else {}
    said = " ".join(str(body.get("message") or body.get("detail") or "").split())
    said = said.replace(key, "[key]") if key else said
    return said if len(said) <= 200 else said[:197] + "..."


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds in `retry-after-ms` or `retry-after` (seconds or a date); None where neither says anything."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        return wait if 0 <= wait < float("inf") else None
    try:
        return max(0.0, parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
