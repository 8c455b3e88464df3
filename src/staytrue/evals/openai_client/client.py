"""One model behind an OpenAI-compatible endpoint: a call, tried again where that may help, within a budget.

The official client makes the calls and this file tries them again: the client's own retries have fixed delays, cannot
be counted against a budget, and do not see a body that was cut off (its ValueError comes through as it is).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import KEY, OPENAI, Address
from staytrue.evals.openai_client.budget import Budget
from staytrue.evals.openai_client.errors import AttemptError, UnreadableError, fault_of
from staytrue.evals.openai_client.reply import Reply, sendable

T = TypeVar("T")

_CONNECT = 10.0  # seconds for a connection
_IN_A_ROW = 5  # calls that failed for good, and none between them that did not: the endpoint is down


class CallError(Exception):
    """One call failed for good; others may not."""


@dataclass(frozen=True)
class Patience:
    """How often and how long a call is tried; seconds."""

    attempts: int = 6
    first: float = 0.5  # the first pause; each is twice the one before, less up to a quarter by chance
    longest: float = 30.0  # a pause of our own; the server's retry-after may be longer
    timeout: float = 120.0  # for an answer
    total: float = 600.0  # for a call with all its pauses


class Endpoint:
    """One model at one endpoint; may be called from several threads.

    Once a call has shown that no other can succeed (a wrong key, no such model, a budget that is reached, an endpoint
    that is down), every later one is refused with the same sentence. The first goes alone until it was answered or
    failed by itself, so that what is wrong with all of them is paid for once.
    """

    def __init__(
        self,
        address: Address,
        key: str | None = None,
        budget: Budget | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Make a client; nothing is sent.

        Raises:
            RequestError: the openai package is not installed.
        """
        try:
            import openai
        except ImportError:
            raise RequestError(
                "Endpoints need the openai package. Install it with: pip install 'staytrue[judge]'."
            ) from None
        self.address, self.budget = address, budget or Budget()
        self._key, self._patience = key, patience or Patience()
        self._client = openai.OpenAI(
            api_key=key or "none",  # servers without keys do not look at it
            base_url=address.url,
            max_retries=0,
            timeout=openai.Timeout(self._patience.timeout, connect=min(self._patience.timeout, _CONNECT)),
            # what leaves the machine goes where it was said to go, and nowhere else
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )
        if address.url != OPENAI:  # the client would tell every endpoint what its variables hold
            self._client.organization = self._client.project = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._first, self._open = threading.Lock(), threading.Event()
        self._why_over, self._heard, self._failed_in_a_row = "", False, 0

    def where_to(self, what: str) -> str:
        """The sentence to show before the first call: what leaves this process, and to where."""
        where = " on this machine" if self.address.is_local else ""
        bare = ", unencrypted" if self.address.url.startswith("http:") and not self.address.is_local else ""
        key = f"with the key in {KEY}" if self._key else "without a key"
        return f"{what} go to {self.address.url}{where}{bare} (model {self.address.model}), {key}."

    def ask(
        self,
        messages: Sequence[Message],
        read: Callable[[Reply], T],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_logprobs: int = 0,
    ) -> T:
        """What `read` makes of the answer; a ValueError of it means that asking again may mend it.

        Raises:
            CallError: this call failed, also when tried again.
            RequestError: no call can succeed; everything paid for is kept.
        """
        body: dict[str, Any] = {
            "model": self.address.model,
            "messages": [{"role": m.role, "content": sendable(m.content)} for m in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": 1,  # vLLM takes a model's own recommendation where nothing is said
            "seed": seed,
        }
        if top_logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        self._wait_for_the_first()
        try:
            return self._persist(body, read)
        except RequestError as error:
            self._end(str(error))
            raise
        finally:
            self._open.set()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _wait_for_the_first(self) -> None:
        """The first call goes alone, until it was answered or failed in a way that says nothing of the others."""
        if not self._open.is_set() and not self._first.acquire(blocking=False):
            self._open.wait()

    def _persist(self, body: dict[str, Any], read: Callable[[Reply], T]) -> T:
        patience, until = self._patience, time.monotonic() + self._patience.total
        attempt = 1
        while True:
            if self._over.is_set():
                raise RequestError(self._why_over)
            try:
                value = self._once(body, read)
            except AttemptError as fault:
                if fault.tries is None:  # a server that is busy, or slow, is so for each call by itself
                    self._open.set()
                pause = min(patience.first * 2 ** (attempt - 1), patience.longest) * (1 - random.random() / 4)
                pause = pause if fault.wait is None else fault.wait
                most = patience.attempts if self._heard or fault.tries is None else fault.tries
                if not fault.again or attempt >= most or time.monotonic() + pause > until:
                    raise self._given_up(fault, attempt) from None
                self._over.wait(pause)
                attempt += 1
            else:
                with self._lock:
                    self._heard, self._failed_in_a_row = True, 0
                self._open.set()
                return value

    def _once(self, body: dict[str, Any], read: Callable[[Reply], T]) -> T:
        most = sum(len(m["content"].encode()) + 16 for m in body["messages"])
        reserved, usage = self.budget.begin(most, body["max_tokens"]), None
        try:
            raw = self._client.chat.completions.with_raw_response.create(**body)
            reply = Reply.of(raw.content)
            usage = reply.usage
            return read(reply)
        except UnreadableError as error:
            raise AttemptError(str(error), hopeless=error.hopeless, tries=error.tries) from None
        except ValueError as error:
            raise AttemptError(f"the answer cannot be read: {error}") from None
        except Exception as error:  # the client raises its own kinds, and a few of what is below it
            fault = fault_of(error, self.address, self._key, self._heard)
            usage = None if fault.billed else {}
            if fault.over:
                raise RequestError(fault.over) from None
            raise fault from None
        finally:
            self.budget.end(reserved, usage)

    def _given_up(self, fault: AttemptError, attempts: int) -> Exception:
        with self._lock:
            if fault.again or not self._heard:  # that one request is refused says nothing of the others
                self._failed_in_a_row += 1
            if fault.hopeless and not self._heard:
                return RequestError(fault.hopeless.format(address=self.address))
            if self._failed_in_a_row >= _IN_A_ROW:
                return RequestError(
                    f"{_IN_A_ROW} calls in a row to {self.address} failed, the last with {fault}. Everything paid for "
                    "is kept; run again once it answers."
                )
        return CallError(f"{fault}, tried {attempts} time{'' if attempts == 1 else 's'}")

    def _end(self, why: str) -> None:
        with self._lock:
            if not self._over.is_set():
                self._why_over = why
                self._over.set()
