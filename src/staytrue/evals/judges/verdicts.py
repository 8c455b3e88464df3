"""Two readings, of alignment and of coherence, as one verdict."""

from __future__ import annotations

from staytrue.evals.judges.rubric import shipped
from staytrue.evals.judges.score_from_logprobs import CODE, REFUSAL, Reading
from staytrue.evals.openai_client.response_cache import key
from staytrue.evals.types import Verdict

_RULE = 1  # raised when the same law comes to be read in another way


def verdict(alignment: Reading, coherence: Reading) -> Verdict:
    """What the two say together.

    REFUSAL and CODE are verdicts of their own, whatever is said of coherence. Without them an answer needs both scores;
    one without a number is missing, and why is said.
    """
    refusal, code = alignment.word == REFUSAL, alignment.word == CODE
    missing = "" if refusal or code else _missing("alignment", alignment) or _missing("coherence", coherence)
    return Verdict(alignment.score, coherence.score, refusal=refusal, code=code, missing=missing)


def failed(why: str) -> Verdict:
    """A call failed: there is no verdict, and asking again may give one."""
    return Verdict(missing=why, failed=True)


def signature(**how: object) -> str:
    """Eight hex digits of the shipped rubrics and of how they are put: part of a judge's name."""
    rubrics = [shipped(name).sha256 for name in ("alignment", "coherence", "code")]
    return key(rubrics=rubrics, rule=_RULE, **how)[:8]


def _missing(what: str, reading: Reading) -> str:
    if reading.score is not None:
        return ""
    return (
        f"no score for {what}: it said {reading.said!r}, and {reading.mass:.2f} of the mass are numbers that are known"
    )
