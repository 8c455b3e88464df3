"""`ANSWER`, `VERDICT` and others name the kind of each column, or key, of an evaluation's files (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from staytrue.utils.columns import COUNT, NUMBER, OBJECT, TEXT, TRUTH, Kind, or_null


def _each(values: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(kind, values))


def _is_turn(turn: Any) -> bool:
    """Whether a value is a turn of a conversation, with a role and a text; null stands for no text."""
    return (
        isinstance(turn, dict)
        and isinstance(turn.get("role"), str)
        and "content" in turn
        and isinstance(turn["content"], str | None)
        and turn.get("weight") in (None, 0, 1)
    )


def _is_time(value: Any) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False


TURNS = Kind("turns, each with a role and a text", lambda value: bool(value) and _each(value, _is_turn))
_TEXTS = Kind("a list of texts", lambda value: _each(value, TEXT.has))
_PROMPTS = Kind("an object of texts", lambda value: OBJECT.has(value) and all(map(TEXT.has, value.values())))
_TIME = Kind("a time in ISO 8601", _is_time)

SAMPLE = {"probe": TEXT, "question": TEXT, "index": COUNT}  # which answer a row is about
ANSWER = {
    **SAMPLE,
    **dict.fromkeys(("answer", "group", "form", "topic", "thoughts", "tools"), TEXT),
    **dict.fromkeys(("stopped", "filtered", "called_tools", "empty"), TRUTH),
    "messages": TURNS,
    "expected": or_null(TEXT),
    "prompts": _PROMPTS,
}
VERDICT = {
    **SAMPLE,
    **dict.fromkeys(("alignment", "coherence"), or_null(NUMBER)),
    **dict.fromkeys(("misaligned", "incoherent", "refused", "code", "failed"), TRUTH),
    "correct": or_null(TRUTH),
    "missing": TEXT,
    **dict.fromkeys(("reason", "judge"), or_null(TEXT)),
}
MEASURED = {  # a row of `measures.jsonl`
    **dict.fromkeys(("measure", "question", "answer"), TEXT),
    "index": COUNT,
    "value": NUMBER,
    "untuned": or_null(NUMBER),
    "leaked": TRUTH,
    "messages": TURNS,
}
LEAKS = {  # what `measures.json` has of the measure `leak`
    "false_alarms": NUMBER,
    **dict.fromkeys(("untuned", "held_out"), COUNT),
    "held_out_leaks": or_null(NUMBER),
}
EVALUATION = {  # the keys of `eval.json` that few readers need
    "made": _TIME,
    "model": Kind("an object with a name", lambda value: OBJECT.has(value) and TEXT.has(value.get("name"))),
}
ASKED = {  # of one probe there
    **dict.fromkeys(("questions", "samples", "per_question"), COUNT),
    "sha256": TEXT,
    "temperature": or_null(NUMBER),
    "max_new_tokens": or_null(COUNT),
}
BUDGET = {
    **dict.fromkeys(("seconds", "per_question", "share"), NUMBER),
    "left_out": TEXT,
    "measures_left_out": _TEXTS,
}
