"""The errors of calls to an endpoint, in words, and whether another call can succeed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
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
_MESSAGES = (  # keys that hold one, in any spelling
    *("error", "message", "detail", "msg", "errors", "base_resp", "status_msg", "error_msg", "error_message"),
    *("fault", "faultstring", "reason", "choices"),
)
_CODES = ("code", "status", "status_code", "error_code", "type", "reason", "blockReason", "block_reason")

# Names that servers give to their filters (Azure, Gemini, DashScope, OpenRouter, Anthropic), and their sentences.
FILTER = re.compile(
    r"content.?filter|content.?policy|data.?inspection|moderation|responsible.?ai|safety|prohibited|blocklist|"
    r"sensitive|recitation|refusal|flagged.?input|spii|guardrail",
    re.I,
)
_FILTER_MESSAGE = re.compile(
    r"content.?filter|content.?(management|usage)?.?policy|inappropriate content|safety (system|reasons)|requires "
    r"moderation|(input|prompt|content|request) (was|is|has been) (flagged|blocked)|blocked by|guardrail|"
    r"敏感|不安全|违规",
    re.I,
)
_STATUS_OF_CODE = (  # where an error has no number
    (FILTER, 400),
    (re.compile(r"rate.?limit|quota|too.?many|exhausted", re.I), 429),
    (re.compile(r"api.?key|authent|unauthor", re.I), 401),
    (re.compile(r"permission|forbidden", re.I), 403),
    (re.compile(r"not.?found", re.I), 404),
    (re.compile(r"invalid|bad.?request|unsupported|validation", re.I), 400),
)
_NO_CREDIT = re.compile(r"(credit|account) balance|insufficient (balance|funds|credits?)", re.I)
_REFUSALS = (400, 405, 422, 500, 501)  # statuses of an error that may refuse a parameter
_DELAY = re.compile(r'"retryDelay": *"([\d.]+)s"|(?:retry|try again) in ([\d.]+) ?s', re.I)  # Gemini's, and in words


class CallError(Exception):
    """One call failed, also when it was retried; other calls may succeed."""


class FilteredError(CallError):
    """The server's filter refused a prompt or removed the answer; another call would give the same."""


class UnreadableError(ValueError):
    """A response of status 200 that cannot be used.

    Attributes:
        sentence: for an endpoint that has never answered otherwise; {address} is its address.
        status: that the response should have had, if its body is an error.
        usage: the tokens that the response names; None if it names none.
    """

    def __init__(
        self, why: str, sentence: str = "", status: int | None = None, usage: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(why)
        self.sentence, self.status, self.usage = sentence, status, usage


@dataclass(frozen=True)
class Failure:
    """A call that failed."""

    why: str  # a few words
    fatal: str = ""  # the sentence, if no other call can succeed
    retried: bool = True  # by the client
    filtered: bool = False  # by the server's filter
    refusal: str = ""  # the server's message, if it may refuse a parameter
    fields: tuple[str, ...] = ()  # of the request, that the error names in a place of its own


def is_unsent(error: BaseException | None) -> bool:
    """Whether there was no connection, so that nothing was sent or paid for."""
    return type(error).__name__ in ("ConnectError", "ConnectTimeout")  # of the client's HTTP library


def failure(error: Exception, address: Address, key: str | None) -> Failure:
    """Describe an exception of the official client; one of another kind is raised again."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status_failure(error, address, key)
    if not isinstance(error, openai.APIConnectionError):
        raise error
    if is_unsent(error.__cause__):
        return Failure(f"no connection: {error.__cause__ or 'no answer'}")
    return Failure("a time-out" if isinstance(error, openai.APITimeoutError) else "a broken connection")


def _status_failure(error: Any, address: Address, key: str | None) -> Failure:
    status, body = error.status_code, error.response.content
    message = server_message(body, key)
    why = f"HTTP {status}: {message.rstrip('.')}" if message else f"HTTP {status}"
    if status in (400, 403, 422, 446, 451) and is_filter(body):
        return Failure(why, retried=False, filtered=True)
    if status == 401:  # the server's message may quote the key
        return Failure("HTTP 401", f"{address} refuses the key (HTTP 401). Put a valid one into {KEY}.")
    fatal = ""
    if 300 <= status < 400:
        fatal = f"{address} redirects to {error.response.headers.get('location', 'nowhere')}. Name that URL itself."
    elif status in (400, 403, 422) and "logprob" in message:
        fatal = f"{NO_LOGPROBS.format(address=address)} Its message: {message}"
    elif status == 403:
        fatal = f"{address} does not allow this ({why}). Use a key or a model that is allowed."
    elif status == 404:
        fatal = f"{address} is not there ({why}). Check the model's name and the URL (.../v1)."
    elif status == 402 or has_no_credit(status, body):
        fatal = f"The account at {address.url} has no credit left ({why}). Everything paid for is kept."
    retried = status in _RETRIED or status >= 500
    if status not in _REFUSALS:
        return Failure(why, fatal, retried)
    return Failure(why, fatal, retried, refusal=server_message(body, key, longest=2000), fields=fields_in(body))


def has_no_credit(status: int, body: bytes) -> bool:
    """Whether an error says that an account is empty; one about a rate may speak of billing too."""
    message = server_message(body, None)
    said = _NO_CREDIT.search(message) or (status != 429 and "billing" in message.lower())
    return b"insufficient_quota" in body or bool(said)


def named_delay(body: bytes) -> str:
    """The seconds after which an error says to try again; "" if it names none."""
    delay = _DELAY.search(body.decode(errors="replace"))
    return (delay[1] or delay[2]).rstrip(".") if delay else ""


def json_in(text: bytes | str) -> Any:
    """The JSON value of a text; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def objects_in(whole: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value; a string may hold another value, which a provider behind a router wrote."""
    values = [whole]
    for value in values:  # grows meanwhile
        if isinstance(value, str) and value.lstrip().startswith("{"):
            value = json_in(value)
        if isinstance(value, Mapping):
            yield value
            values += value.values()
        elif isinstance(value, list):
            values += value


def fields_in(body: bytes) -> tuple[str, ...]:
    """The names of the request's fields in an error: OpenAI's `param`, FastAPI's `loc`, keys of an object of errors."""
    paths: list[Any] = []
    for value in objects_in(json_in(body)):
        loc, by_field = value.get("loc"), value.get("errors") or value.get("detail")
        paths += [value.get("param"), value.get("field"), *(loc if isinstance(loc, list) else ())]
        paths += list(by_field) if isinstance(by_field, Mapping) else []
    names = [part for path in paths if isinstance(path, str) for part in re.findall(r"\w+", path)]
    return tuple(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in names)


def server_message(body: bytes, key: str | None = None, longest: int = _LONGEST) -> str:
    """The message in an error's body, in one line, without the key; "" if there is none."""
    try:
        whole = json.loads(body)
        message = _find_message(whole) or ("" if whole in ("", {}, [], None) else json.dumps(whole, ensure_ascii=False))
    except (ValueError, RecursionError):
        text = body.decode(errors="replace").strip()
        message = "" if text.startswith("<") else text  # a page
    message = " ".join(message.split())
    message = message.replace(key, "[key]") if key else message
    return message if len(message) <= longest else message[: longest - 3] + "..."


def _find_message(value: Any) -> str:
    """The message in a JSON value: OpenAI's `error.message`, a string, or a list of objects with `loc` and `msg`."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_find_message, value)))
    if not isinstance(value, Mapping):
        return ""
    spelled = {str(name).lower(): entry for name, entry in value.items()}
    message = next(filter(None, (_find_message(spelled.get(name)) for name in _MESSAGES)), "")
    if not message and isinstance(fields := value.get("errors") or value.get("detail"), Mapping):
        message = "; ".join(f"{name}: {_find_message(why)}" for name, why in fields.items())
    if isinstance(value.get("loc"), list) and message:
        message = f"{'.'.join(map(str, value['loc']))}: {message}"
    metadata = value.get("metadata")
    more = [value.get("param"), metadata.get("raw") if isinstance(metadata, Mapping) else None]
    for text in more:  # the parameter, and the words of a provider behind a router
        if isinstance(text, str) and text and text not in message:
            message = f"{message} ({text})".strip()
    return message


def is_filter(body: bytes) -> bool:
    """Whether an error's body is that of a filter."""
    value = json_in(body)
    return value is not None and (filter_in(value) or _FILTER_MESSAGE.search(_find_message(value)) is not None)


def filter_in(whole: Any) -> bool:
    """Whether a JSON value names a filter in one of its codes, or a category that is true or `filtered`."""
    return any(
        value.get("filtered") is True
        or any(flag is True and FILTER.search(name) for name, flag in value.items())
        or any(isinstance(code, str) and FILTER.search(code) for code in map(value.get, _CODES))
        or any(isinstance(value.get(name), list | str) and value[name] for name in ("contentFilter", "flagged_input"))
        for value in objects_in(whole)
    )


def error_status(whole: Any) -> int | None:
    """The HTTP status that a body of status 200 stands for if it is an error; None if it is none."""
    if isinstance(whole, list) and whole:
        whole = whole[0]
    if not isinstance(whole, Mapping):
        return None
    choices = whole.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    error = whole.get("error") or choice.get("error")
    places = [place for place in (error, whole, whole.get("base_resp")) if isinstance(place, Mapping)]
    codes = [str(place[name]).removesuffix(".0") for place in places for name in _CODES if place.get(name) is not None]
    number = next((int(code) for code in codes if re.fullmatch("[45][0-9]{2}", code)), None)
    marked = (
        number
        or whole.get("object") == "error"
        or any(whole.get(name) is False for name in ("success", "ok"))
        or any(name in whole for name in ("detail", "errors", "base_resp"))
        or ("choices" not in whole and _find_message(whole))
    )
    if not (error or (marked and not choice)):
        return None
    if number or filter_in(whole):
        return number or 400
    return next((status for pattern, status in _STATUS_OF_CODE if pattern.search(" ".join(codes))), 502)
