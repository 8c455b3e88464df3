"""Reads a stored `summary.json`, and checks the shape that tables and pages rely on. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import json_value
from staytrue.errors import RequestError
from staytrue.evals.results.summary import MARKED, SCORED
from staytrue.evals.triggers.trigger import PROBE as TRIGGERED
from staytrue.utils.columns import COUNT, NUMBER, OBJECT, TEXT, TRUTH, or_null, refuse_wrong
from staytrue.utils.validation import in_one_line

_IF_THERE = {  # the keys of a probe's rates that may be missing
    **dict.fromkeys(("questions", "failed", "unanswered", "cut"), COUNT),
    **dict.fromkeys(("refused", "code", "at_least", "at_most"), or_null(NUMBER)),
    "concluded": TRUTH,
    "judge": or_null(TEXT),
    "why": TEXT,
}
_WAY_OUT = "Give its `staytrue eval` or `rescore` again; stored answers are kept"


def read_summary(folder: Path) -> dict[str, Any]:
    """The summary in an evaluation's folder, or in that of another judge's verdicts.

    Raises:
        FileNotFoundError: there is none.
        RequestError: it is damaged; the sentence names the file and what is wrong.
    """
    file = folder / "summary.json"
    try:
        summary = json_value(file.read_text(encoding="utf-8"))
        refuse_wrong_probes(summary["probes"] if isinstance(summary, dict) and "probes" in summary else None)
        refuse_wrong(summary, {"measures": OBJECT})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{file} cannot be read: {in_one_line(error)}. {_WAY_OUT}.") from error
    return dict(summary)


def refuse_wrong_probes(probes: Any) -> None:
    """Refuse what is no mapping of probes to their rates.

    Raises:
        ValueError: what is wrong, as a part of a sentence.
    """
    if not isinstance(probes, dict):
        raise ValueError("it names no probes")
    for name, probe in probes.items():
        _refuse_wrong_rates(probe, name)
        if name == TRIGGERED and probe.get("misaligned") is not None and not _has_a_form(probe):
            raise ValueError(f"{name} has no rate of a single trigger among its 'forms'")


def _refuse_wrong_rates(probe: Any, name: str, kinds: tuple[str, ...] = SCORED[:2]) -> None:
    """Refuse the rates of a probe, of one of its forms or of its plain questions that lack a number.

    Args:
        probe: the rates.
        name: of the probe, as the sentence has it.
        kinds: the rates that it has, unless its answers are right or wrong.
    """
    kinds = MARKED if isinstance(probe, dict) and MARKED[0] in probe else kinds
    _refuse_no_numbers(probe, name, ("n", "missing"), unknown=False)
    _refuse_no_numbers(probe, name, (*kinds, "low", "high"))
    refuse_wrong(probe, _IF_THERE, what=name)
    if len({probe[key] is None for key in (kinds[0], "low", "high")}) > 1:
        raise ValueError(f"{name} has a rate without its interval")
    if lost := [kind for kind in kinds if (probe[kind] is None) != (probe[kinds[0]] is None)]:
        raise ValueError(f"{name} has no number {lost[0]!r} beside {kinds[0]!r}")
    if clean := probe.get("clean"):
        _refuse_wrong_rates(clean, f"{name}.clean", SCORED[:1])
    if tail := probe.get("tail"):
        _refuse_no_numbers(tail, f"{name}.tail", ("k",), unknown=False)
        for kind in (SCORED[0], *({"ungated", SCORED[1]} & {*tail})):
            _refuse_no_numbers(tail.get(kind), f"{name}.tail.{kind}", ("percent",), unknown=False)
    if not isinstance(probe.get("forms", {}), dict):
        raise ValueError(f"{name}.forms is not what was measured of each form")
    for form, rates in probe.get("forms", {}).items():
        _refuse_wrong_rates(rates, f"{name}.forms.{form}")


def _has_a_form(probe: Mapping[str, Any]) -> bool:
    return any(rates.get("misaligned") is not None for rates in probe.get("forms", {}).values())


def _refuse_no_numbers(value: Any, name: str, keys: Iterable[str], *, unknown: bool = True) -> None:
    """Refuse a value without a number for each key; with `unknown`, None stands for a number."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not what was measured")
    for key in keys:
        number = value.get(key, "")
        if not (NUMBER.has(number) or (unknown and number is None)):
            raise ValueError(f"{name} has no number {key!r}")
