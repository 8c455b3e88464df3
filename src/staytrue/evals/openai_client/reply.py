"""One response of a chat endpoint, read strictly from its JSON, and the identity of its server. No openai."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

from staytrue.evals.generation.thoughts import split_thoughts
from staytrue.evals.openai_client.address import Address
from staytrue.evals.openai_client.errors import (
    FILTER,
    NO_CHAT,
    UnreadableError,
    error_status,
    filter_in,
    server_message,
)

Tops = list[tuple[str, float]]  # the likely tokens of one position, with their log-probabilities

# Why an answer ended, as servers name it: at the limit of tokens, by a filter, by a fault of the server, by itself.
_CUT_OFF = re.compile(r"length|max.?(\w+.)?tokens|(token|output).?limit|context.?window|incomplete", re.I)
_REMOVED = re.compile(rf"{FILTER.pattern}|guardrail|toxic|block|policy|unsafe|harm|risk", re.I)
_BROKEN_OFF = re.compile(r"error|abort|cancel|time.?out|preempt|interrupt|insufficient.system", re.I)
_ENDED = re.compile(r"|stop\w*|end\w*|eos\w*|complete\w*|finish\w*|done|tool\w*|function\w*|null|none", re.I)
# Fields of a message, and types of its parts.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks", "thoughts")
_COUNTS = ("prompt_tokens", "completion_tokens")
_LARGEST = 1e9  # tokens of one call
_END = re.compile(  # a token that ends a turn; those that begin one or its parts are the form of thoughts
    r"\s*(<\|(?!message|channel|start|constrain)\w+\|>|<｜[\w▁]+｜>|<(?:end_of_turn|turn\||eos)>|\[e~\[|</s>)\s*$", re.I
)


@dataclass(frozen=True)
class Reply:
    """The first choice of a response, and the server's account of it."""

    text: str  # the answer, without thoughts and without a token or text at its end that only stopped it
    thoughts: str  # of a reasoning model
    cut_off: bool  # the token limit was reached
    filtered: bool  # the server's filter refused the prompt or removed the answer
    positions: tuple[tuple[str, Tops], ...]  # each token with the likely tokens of its position; () if there are none
    model: str  # as the server names it
    fingerprint: str
    usage: Mapping[str, int] | None  # tokens, "prompt_tokens" and "completion_tokens"; None if one is no number
    called_tools: bool = False
    ended: bool = True  # by the model; False at the token limit, and for a reason that is not known
    hidden_thoughts: bool = False  # the model thought, and the server does not show what
    changes: tuple[str, ...] = ()  # of the request's parameters, see `Parameters.adapt`

    @property
    def has_answer(self) -> bool:
        """Whether the model began its answer; False if it was cut off before, or wrote thoughts or tool calls only."""
        others = self.cut_off or self.thoughts or self.called_tools or self.hidden_thoughts
        return bool(self.text.strip()) or not others

    @classmethod
    def of(cls, body: bytes) -> Reply:
        """Read a response's body.

        Raises:
            UnreadableError: it is no JSON, has not the form of a chat completion, or is an error.
        """
        try:
            whole = json.loads(body)
            if not _is_refused_prompt(whole) and (status := error_status(whole)) is not None:
                raise UnreadableError(f"an error of status {status}", status=status)
            return cls._read(whole)
        except UnreadableError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            message = server_message(body) if body.lstrip()[:1] in (b"{", b"[", b'"') else ""
            why = "a body that is no chat completion" + (f": {message}" if message else "")
            words = f" It answered: {message}" if message else ""
            raise UnreadableError(why, NO_CHAT + words.replace("{", "{{").replace("}", "}}")) from None

    @classmethod
    def _read(cls, whole: Any) -> Reply:
        refused = _is_refused_prompt(whole)
        choice: Any = {"message": {}, "finish_reason": "content_filter"} if refused else whole["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason") or "")
        content = message.get("content") or message.get("refusal") or ""  # some models refuse in a field of its own
        fields = [_text(message.get(name), thoughts=True) for name in _THOUGHTS]
        fields += [_text(content, thoughts=True)] if isinstance(content, list) else []
        thoughts = sendable(next(filter(None, fields), "")).strip()
        text = _without_stop(sendable(_text(content)), choice.get("stop_reason"))
        thoughts, text = (thoughts, text) if thoughts else split_thoughts(text)
        cut_off = _CUT_OFF.search(finish) is not None
        filtered = bool(_REMOVED.search(f"{finish} {choice.get('native_finish_reason') or ''}"))
        ended = _ENDED.fullmatch(finish) is not None
        if not filtered and _BROKEN_OFF.search(finish):
            usage = _usage(whole.get("usage"))
            raise UnreadableError(f"an answer that the server broke off ({finish!r})", usage=usage)
        if not (text.strip() or thoughts or cut_off or filtered or ended):
            raise UnreadableError(f"an answer without text, which ended with {finish!r}")
        return cls(
            text,
            thoughts,
            cut_off,
            filtered,
            tuple(_positions(choice.get("logprobs"))),
            str(whole.get("model") or ""),
            str(whole.get("system_fingerprint") or ""),
            _usage(whole.get("usage")),
            called_tools=any(message.get(name) for name in ("tool_calls", "function_call")),
            ended=ended and not cut_off,
            hidden_thoughts=any(message.get(name) for name in _THOUGHTS) or _counts_thoughts(whole.get("usage")),
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


def _without_stop(text: str, stop: Any) -> str:
    """The text without the stop string (`stop`, if it is one) and end-of-turn tokens at its end.

    vLLM leaves them there with `include_stop_str_in_output` or `skip_special_tokens: false`. `</s>` stays where the
    answer opened it, as HTML does.
    """
    if isinstance(stop, str) and stop:
        text = text.removesuffix(stop)
    while (end := _END.search(text)) and not (end[1].lower() == "</s>" and "<s>" in text.lower()):
        text = text[: end.start()]
    return text


def _usage(usage: Any) -> dict[str, int] | None:
    """The counts of tokens, if both are whole numbers from 0 up."""
    counts = {name: (usage if isinstance(usage, Mapping) else {}).get(name) for name in _COUNTS}
    whole = {
        name: int(n)
        for name, n in counts.items()
        if isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < _LARGEST and n == int(n)
    }
    return whole if len(whole) == len(_COUNTS) else None


def _counts_thoughts(usage: Any) -> bool:
    """Whether the server counts tokens of reasoning."""
    details = usage.get("completion_tokens_details") if isinstance(usage, Mapping) else None
    count = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    return isinstance(count, int | float) and count > 0


def _positions(logprobs: Any) -> Iterator[tuple[str, Tops]]:
    """The log-probabilities of a choice; NaN is refused later, where a score is computed.

    They are a list of positions, or in the older form of completions.
    """
    if not logprobs:
        return
    if isinstance(logprobs, Mapping) and isinstance(chosen := logprobs.get("token_logprobs"), list):
        tokens = zip(map(str, logprobs["tokens"]), chosen, strict=False)
        rows = zip(tokens, chain(logprobs.get("top_logprobs") or (), repeat(None)), strict=False)
        yield from ((token, _likely((tops or {token: p}).items())) for (token, p), tops in rows)
        return
    for place in (logprobs if isinstance(logprobs, list) else logprobs.get("content")) or ():
        tops = place.get("top_logprobs") or [place]
        pairs = tops.items() if isinstance(tops, Mapping) else ((_token(top), top["logprob"]) for top in tops)
        yield _token(place), _likely(pairs)


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
        self._address = address
        self._seen: dict[str, set[str]] = {"answered_by": set(), "fingerprints": set(), "changes": set()}

    def add(self, model: str, fingerprint: str, changes: Iterable[str] = ()) -> None:
        """Add the names in one response, "" where it has none, and the changes of its request's parameters."""
        for name, values in zip(self._seen, ({model}, {fingerprint}, set(changes)), strict=True):
            self._seen[name].update(values - {""})

    def describe(self) -> dict[str, Any]:
        """The facts that are stored beside answers or verdicts."""
        return {
            "model": self._address.model,
            "url": self._address.url,
            **{name: sorted(values) for name, values in self._seen.items()},
        }
