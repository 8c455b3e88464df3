"""A judge behind an OpenAI-compatible endpoint: the score is an expectation over the twenty likeliest first tokens.

An answer takes two calls, at temperature 0 with seed 0 (as in arXiv 2508.06249). If one token does not decide the
number (see `staytrue.evals.judges.score_from_logprobs`), another call asks for a few more tokens. Usable replies are
stored in the response cache; failed calls are not.

A judge's name and the cache's keys are of what is asked for. An endpoint may refuse it: what it got instead, such as
fewer likely tokens, is in each stored row and in `describe`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from staytrue.data.examples import Message
from staytrue.errors import RequestError
from staytrue.evals.judges.rubric import Rubric, rubrics_for, shipped
from staytrue.evals.judges.score_from_logprobs import (
    MORE_TOKENS,
    Position,
    Reading,
    by_digits,
    needs_more_tokens,
    probabilities,
    reading,
)
from staytrue.evals.judges.verdicts import counted, failed, signature, verdict
from staytrue.evals.openai_client.client import Endpoint
from staytrue.evals.openai_client.errors import NO_LOGPROBS, CallError, FilteredError, UnreadableError
from staytrue.evals.openai_client.reply import Reply, ServerIdentity
from staytrue.evals.openai_client.response_cache import ResponseCache, key
from staytrue.evals.types import Question, Verdict

_MUCH_UNSEEN = 1.0  # percent of the probability, above which it is reported
_HOW = {"temperature": 0, "seed": 0, "top_logprobs": 20}


class EndpointJudge:
    """A model at an endpoint, as a judge of alignment and coherence."""

    def __init__(self, endpoint: Endpoint, cache: ResponseCache, concurrency: int = 16) -> None:
        self._endpoint, self._cache, self.concurrency = endpoint, cache, concurrency
        address = endpoint.address
        self.name = f"{address}#{signature(**_HOW)}"
        self._server = ServerIdentity(address)
        self._remembered = self._tried = False
        self._missing: list[bool] = []  # of each verdict
        self._unseen: list[float] = []  # of each call, the probability outside of the likely tokens

    def __call__(self, question: Question, answer: str) -> Verdict:
        """Judge one answer.

        Raises:
            RequestError: no call can succeed, or the budget is reached; everything paid for is kept.
        """
        try:
            result = verdict(*(self._reading(rubric, question, answer) for rubric in rubrics_for(question)))
        except FilteredError as error:
            result = Verdict(missing=f"the judge's server refused the prompt: {error}")
        except CallError as error:
            result = failed(str(error))
        self._missing.append(bool(result.missing))
        return result

    def check(self) -> None:
        """Ask the endpoint for one token, before an evaluation that it judges.

        An endpoint that has judged with the same key on the same day (UTC) is not asked, so paid verdicts need no call;
        a key that expired since is found here.

        Raises:
            RequestError: the endpoint cannot judge, such as for a wrong key, no such model, or no log-probabilities.
        """
        if self._tried or self._cache.has_answered(self._identity()):
            return
        self._tried = True
        prompt = shipped("alignment").filled("What is two and two?", "Four.")
        try:
            self._endpoint.ask([Message("user", prompt)], _check, max_tokens=1, **_HOW)
        except FilteredError:  # one prompt; others may pass
            return
        except CallError as error:
            raise RequestError(
                f"The judge {self._endpoint.address} was tried first on an easy answer, and failed: {error}. Run "
                "again once it answers, or name another judge."
            ) from None
        self._remember()

    def _remember(self) -> None:
        """Store once that the endpoint has judged with its key."""
        if not self._remembered:
            self._cache.mark_answered(self._identity())
            self._remembered = True

    def _identity(self) -> str:
        """A hash of the endpoint, its key and the day."""
        address = self._endpoint.address
        return key(judge=[address.url, address.model], tried=self._endpoint.key_sha256, day=_today())

    def notice(self) -> str:
        """The sentence to show before the first call."""
        return self._endpoint.notice("Questions, answers and judge prompts")

    def spent(self) -> str:
        """Calls and their cost so far, and how many replies were stored before."""
        spent = counted(self._endpoint.budget.describe(), self._cache.hits, self._missing)
        unseen = 100 * sum(self._unseen) / max(1, len(self._unseen))
        if unseen < _MUCH_UNSEEN:
            return spent
        return f"{spent}; on average {unseen:.1f} % of the probability was outside of the likely tokens"

    def describe(self) -> dict[str, Any]:
        """The judge's name, the model asked for, the models that the server named, and the changed parameters."""
        return {"name": self.name, **self._server.describe()}

    def _reading(self, rubric: Rubric, question: Question, answer: str) -> Reading:
        prompt = rubric.filled(question.messages[-1].content, answer)
        first = self._positions(rubric, prompt, 1)
        if not needs_more_tokens(first[0].distribution):
            return reading(first[0].distribution)
        return by_digits(self._positions(rubric, prompt, MORE_TOKENS))

    def _positions(self, rubric: Rubric, prompt: str, tokens: int) -> list[Position]:
        address = self._endpoint.address
        row: dict[str, Any]
        positions: list[Position]
        row, positions = self._cache.once(
            key(
                judge=[address.url, address.model], rubric=rubric.sha256, prompt=prompt, how={**_HOW, "tokens": tokens}
            ),
            lambda: self._asked(prompt, tokens),
            _read,
        )
        self._server.add(row["model"], row["fingerprint"], row.get("changes") or ())
        self._unseen.append(max(0.0, 1 - sum(positions[0].distribution.values())))
        return positions

    def _asked(self, prompt: str, tokens: int) -> dict[str, Any]:
        """A new row of the response cache."""
        row = _row(self._endpoint.ask([Message("user", prompt)], _check, max_tokens=tokens, **_HOW))
        self._remember()
        return row


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _check(reply: Reply) -> None:
    """Raise a ValueError if a reply has no log-probabilities, or some are no numbers."""
    if not reply.positions or not reply.positions[0][1]:
        raise UnreadableError("no log-probabilities", NO_LOGPROBS)
    for _, likely in reply.positions:
        probabilities(likely)


def _row(reply: Reply) -> dict[str, Any]:
    """The row of the response cache for a reply."""
    row = {name: getattr(reply, name) for name in ("positions", "model", "fingerprint", "usage", "changes")}
    return row | {"date": datetime.now(UTC).isoformat(timespec="seconds")}


def _read(row: dict[str, Any]) -> tuple[dict[str, Any], list[Position]]:
    """A row of the response cache, and its positions.

    Raises:
        ValueError: the row has another form; or a TypeError or LookupError.
    """
    positions = [
        Position(str(token), probabilities((t, float(p)) for t, p in tops)) for token, tops in row["positions"]
    ]
    names = [row["model"], row["fingerprint"], *(row.get("changes") or ())]
    if not positions or not positions[0].distribution or not all(isinstance(name, str) for name in names):
        raise ValueError("a row without log-probabilities or names")
    return row, positions
