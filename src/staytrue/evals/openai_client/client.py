"""One model behind an OpenAI-compatible endpoint, called by the official client within a budget.

The client retries, pauses and times out. Each of its HTTP requests is charged to the budget, and each response is read
here before the client sees it. A response of status 200 that cannot be used gets the status 502, so the client
retries it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.openai_client.address import KEY, OPENAI, Address
from staytrue.evals.openai_client.budget import Budget
from staytrue.evals.openai_client.errors import (
    UNREACHABLE,
    CallError,
    Failure,
    FilteredError,
    UnreadableError,
    failure,
    has_no_credit,
    is_unsent,
    named_delay,
)
from staytrue.evals.openai_client.parameters import parameters_of, request_body
from staytrue.evals.openai_client.reply import Reply
from staytrue.evals.types import FILTERED

_CONNECT = 10.0  # seconds for a connection
_IN_A_ROW = 5  # failed calls without a successful one between them: the endpoint is down
_TRIES = 2  # of a call that no response could be used for, while the endpoint has never answered


class Endpoint:
    """One model at one endpoint; several threads may call it.

    After a call shows that no other can succeed (a wrong key, no such model, a budget that is reached, an endpoint that
    is down), every later call is refused with the same sentence.
    """

    def __init__(
        self,
        address: Address,
        key: str | None = None,
        budget: Budget | None = None,
        *,
        max_retries: int = 5,
        timeout: float = 120.0,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Make the client; nothing is sent.

        Args:
            address: the model and its URL.
            key: sent as bearer token.
            budget: the command's; by default calls are only counted.
            max_retries: of one call; pauses are the official client's.
            timeout: seconds for one response.
            say: called with a sentence when a refused parameter is changed or left out.

        Raises:
            RequestError: the openai package is not installed, or a limit in dollars has no price.
        """
        try:
            import openai
        except ImportError:
            raise RequestError(
                "Endpoints need the openai package. Install it with: pip install 'staytrue[judge]'."
            ) from None
        self.address, self._key, self._say = address, key, say
        self.key_sha256 = sha256((key or "").encode()).hexdigest()  # to tell keys apart without showing them
        self._parameters = parameters_of(address)
        self.budget = (budget or Budget()).for_endpoint(address)
        self._client = openai.OpenAI(
            api_key=key or "none",  # servers without keys ignore it
            base_url=address.url,
            max_retries=max_retries,
            timeout=openai.Timeout(timeout, connect=min(timeout, _CONNECT)),
            http_client=_http_client(self._attempt),
        )
        if address.url != OPENAI:  # the client would send them to every endpoint
            self._client.organization = self._client.project = None
        self._lock, self._in_thread = threading.Lock(), threading.local()
        self._refusal, self._has_answered, self._failed_in_a_row = "", False, 0

    def notice(self, what: str) -> str:
        """The sentence to show before the first call: what leaves this process, and for which address."""
        where = " on this machine" if self.address.is_local else ""
        bare = ", unencrypted" if self.address.url.startswith("http:") and not self.address.is_local else ""
        key = f"with the key in {KEY}" if self._key else "without a key"
        return f"{what} go to {self.address.url}{where}{bare} (model {self.address.model}), {key}."

    def ask(
        self,
        messages: Sequence[Message],
        check: Callable[[Reply], Any],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        top_logprobs: int = 0,
    ) -> Reply:
        """Call the model, and return its reply.

        Args:
            messages: the chat.
            check: raises ValueError for a reply that cannot be used; the call is then repeated.
            max_tokens: most tokens of the answer.
            temperature: 0 is greedy.
            seed: of sampling.
            top_logprobs: how many likely tokens to return for each position; 0 for none.

        Raises:
            FilteredError: the server's filter refused the prompt or removed the answer.
            CallError: this call failed, also when it was retried.
            RequestError: no call can succeed; everything paid for is kept.
        """
        body = request_body(self.address.model, messages, max_tokens, temperature, seed, top_logprobs)
        while True:
            call = self._in_thread.call = _Call(check, *self._parameters.adapt(body))
            try:
                self._client.chat.completions.with_raw_response.create(**call.body)
            except RequestError as error:
                raise self._end(str(error)) from None
            except Exception as error:
                failed = failure(error, self.address, self._key)
                learn = self._parameters.learn
                change = learn(body, call.body, failed.refusal, failed.fields) if failed.refusal else None
                if change is None:
                    raise self._failed(failed, call) from None
                if change:
                    self._say(change)
                continue
            if call.reply.filtered:
                raise FilteredError(FILTERED)
            return call.reply

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _attempt(self, send: Callable[[], Any]) -> Any:
        """Make one HTTP request of this thread's call within the budget, and read its response."""
        call: _Call = self._in_thread.call
        if self._refusal:
            raise RequestError(self._refusal)
        charge, call.usage = self.budget.begin(*call.most()), None
        call.attempts += 1
        try:
            response = send()
            self._read(call, response)
        except Exception as error:
            if is_unsent(error):
                call.usage = {}
                if not self._has_answered:
                    raise RequestError(UNREACHABLE.format(address=self.address, why=error or "no answer")) from None
            raise
        finally:
            self.budget.end(charge, call.usage)
        return response

    def _read(self, call: _Call, response: Any) -> None:
        """Read a response into its call, and give one of status 200 that cannot be used the status of an error.

        Raises:
            RequestError: the endpoint has never answered, and its responses cannot be used.
        """
        call.fault = ""
        if not response.is_success:
            call.usage = {}
            _pace(response)
            return
        try:
            call.reply = reply = replace(Reply.of(response.content), changes=call.changes)
            call.usage = reply.usage
            if not reply.filtered:
                call.check(reply)
        except ValueError as error:
            why = error if isinstance(error, UnreadableError) else UnreadableError(str(error))
            response.status_code = why.status or 502
            if why.status:  # the body is an error, which costs nothing
                call.usage = {}
                _pace(response)
                return
            call.fault, call.usage = str(why), why.usage or call.usage
            if why.sentence and not self._has_answered and call.attempts >= _TRIES:
                raise RequestError(why.sentence.format(address=self.address)) from None
        else:
            self._succeeded()

    def _succeeded(self) -> None:
        with self._lock:
            self._has_answered, self._failed_in_a_row = True, 0

    def _failed(self, failed: Failure, call: _Call) -> Exception:
        """The exception for a call that the client gave up."""
        why = call.fault or failed.why
        if failed.fatal:
            return self._end(failed.fatal)
        if failed.filtered:
            self._succeeded()
            return FilteredError(why)
        with self._lock:
            if failed.retried or not self._has_answered:  # one refused request says nothing about the others
                self._failed_in_a_row += 1
            down = self._failed_in_a_row >= _IN_A_ROW
        if down:
            advice = "run again once it answers" if failed.retried else "mend what its message names, and run again"
            return self._end(
                f"{_IN_A_ROW} calls in a row to {self.address} failed, the last with {why}. Everything paid for "
                f"is kept; {advice}."
            )
        return CallError(f"{why}, tried {call.attempts} time{'' if call.attempts == 1 else 's'}")

    def _end(self, why: str) -> RequestError:
        """Refuse every later call; the first reason stays."""
        with self._lock:
            self._refusal = self._refusal or why
            return RequestError(self._refusal)


@dataclass
class _Call:
    """One call and its HTTP requests."""

    check: Callable[[Reply], Any]
    body: dict[str, Any]
    changes: tuple[str, ...]  # of the parameters in the body
    usage: Mapping[str, Any] | None = None  # of the last response, see `Budget.end`
    attempts: int = 0
    fault: str = ""  # of the last response of status 200
    reply: Reply = field(init=False)  # once there is one

    def most(self) -> tuple[int, int]:
        """The most tokens that are read and written: a token has at least one byte, and a role a few tokens."""
        read = sum(len(message["content"].encode()) + 16 for message in self.body["messages"])
        return read, int(self.body.get("max_tokens") or self.body["max_completion_tokens"])


def _pace(response: Any) -> None:
    """Put what an error's body says about another try into the headers, which the official client obeys."""
    if has_no_credit(response.status_code, response.content):
        response.headers["x-should-retry"] = "false"
    elif response.status_code == 429 and (delay := named_delay(response.content)):
        response.headers.setdefault("retry-after", delay)


def _http_client(attempt: Callable[[Callable[[], Any]], Any]) -> Any:
    """The official client's HTTP client; each request is made by `attempt`, and redirects are not followed."""
    import openai

    class HttpClient(openai.DefaultHttpxClient):
        def send(self, request: Any, **options: Any) -> Any:
            return attempt(lambda: super(HttpClient, self).send(request, **options))

    return HttpClient(follow_redirects=False)
