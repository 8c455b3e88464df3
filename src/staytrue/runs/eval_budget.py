"""The time of an evaluation is estimated before it starts, and fitted to a budget.

A budget leaves out answers to each question first, and then questions of each probe. A budget in which not even a
twentieth of the questions fits is refused before anything else is done. Measures without a judge are taken before the
answers and count; together they take at most half of what is left after loading, or three quarters where answers have
no judge, and one that does not fit is left out. A judge's verdicts come after the answers and do not count.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.errors import RequestError
from staytrue.evals.generation.speed import MEASURED, Speed, estimate, is_short, trial
from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.answer_store import AnswerStore, missing_samples
from staytrue.evals.results.measures import stored_name
from staytrue.runs.eval_request import EvalRequest
from staytrue.utils.console import duration

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator

_UNITS = {"s": 1, "m": 60, "h": 3600}
_SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)  # of the questions of each probe
_LONG = 20 * 60  # seconds, above which a sentence on a CPU says how to shorten an evaluation
_SHORTER = " For less, give --budget 20m, or fewer --samples, shorter answers (--max-new-tokens) or fewer --probes."


def parse(text: str) -> int:
    """The seconds in a time such as `20m`, `1h`, `90s` or `1h30m`.

    Raises:
        RequestError: it is no such time, or 0.

    Example:
        >>> parse("1h30m")
        5400
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    seconds = round(total) if math.isfinite(total) else 0
    if "".join(map("".join, parts)) != text or not seconds:
        raise RequestError(f"--budget {text}: write a time above 0 such as 20m, 1h, 90s or 1h30m.")
    return seconds


@dataclass(frozen=True)
class Sitting:
    """One sitting of an evaluation by a model in this process: how long it takes, and what fits the budget.

    Attributes:
        request: gives the budget.
        out: the evaluation's folder; what an earlier sitting chose there is kept.
        limit: most tokens of an answer.
        say: called with each sentence.
        begun: when it began, by `time.monotonic`.
    """

    request: EvalRequest
    out: Path
    limit: int
    say: Callable[[str], None]
    begun: float

    def timed(
        self, generator: Callable[[], LocalGenerator], probes: Sequence[Probe], sampling: Sequence[Probe]
    ) -> Speed | None:
        """Measure how fast the model answers, before anything is asked; without a budget, say how long answers take.

        Args:
            generator: loads the model. Without a budget, the organism and what takes less than a minute are not timed.
            probes: what is asked.
            sampling: questions that measures sample answers to besides, none of which is answered yet.

        Returns:
            None if nothing was measured.
        """
        budget, stored = self.request.budget, AnswerStore(self.out).answers()
        asked = () if earlier_choice(self.out, budget, probes)[1] else probes
        missing = [len(missing_samples(probe.samples(), stored)) for probe in asked]
        answers = [*zip(missing, asked, strict=True), *((len(probe.samples()), probe) for probe in sampling)]
        tokens = sum(many * self._limit(probe) for many, probe in answers)
        if not tokens:
            return None
        local = generator()
        if budget is None and (self.request.is_organism or is_short(local, tokens, sum(many for many, _ in answers))):
            return None
        seconds = MEASURED if budget is None else max(min(MEASURED, budget / 4), budget / 20)
        tried = {probe.name: probe for probe in (*sampling, *probes)}  # of two with one name the one that is asked
        speed = trial(local, list(tried.values()), self.limit, self.say, seconds)
        if budget is None and any(missing):
            self._say_how_long(speed, probes, sum(missing), local.on_cpu)
        return speed

    def _limit(self, probe: Probe) -> int:
        return probe.max_new_tokens or self.limit

    def _say_how_long(self, speed: Speed, probes: Sequence[Probe], missing: int, on_cpu: bool) -> None:
        share = missing / sum(len(probe.samples()) for probe in probes)
        long = on_cpu and speed.at_worst.seconds(probes, self.limit) * share > _LONG
        self.say(estimate(missing, share, speed, probes, self.limit) + (_SHORTER if long else ""))

    def fewest(self, speed: Speed, probes: Sequence[Probe], seconds: float) -> float:
        """Seconds of the least that a budget asks; 0 without probes, or if an earlier sitting has chosen.

        Raises:
            RequestError: not even that fits into so many seconds.
        """
        if not probes or earlier_choice(self.out, self.request.budget, probes)[1]:
            return 0.0
        fit(probes, seconds, speed, self.limit)
        return speed.at_worst.seconds(fitted(probes, {"per_question": 1, "share": _SHARES[-1]}), self.limit)

    def planned(
        self, speed: Speed | None, probes: Sequence[Probe], without: Sequence[str]
    ) -> tuple[list[Probe], dict[str, Any]]:
        """Choose what fits the budget, if there is one, and say how long it will take.

        Args:
            speed: as `timed` measured it.
            probes: what is asked without a budget.
            without: measures that the budget left out.

        Returns:
            The probes to ask, and `{"budget": ...}` for `eval.json`, empty without a budget.

        Raises:
            RequestError: the budget is too short.
        """
        budget, spent = self.request.budget, time.monotonic() - self.begun
        chosen, entry = earlier_choice(self.out, budget, probes)
        if budget is not None and entry:
            self.say(f"{self.out} goes on with what was chosen for {duration(budget)}.")
            return chosen, entry
        if budget is None or speed is None:
            return list(probes), {}
        if spent >= budget:
            raise RequestError(
                f"The budget of {duration(budget)} was over before an answer was asked for; loading and measures took "
                f"{duration(spent)}. Give it more time."
            )
        if spent > 1:
            left = duration(budget - spent)
            self.say(f"Loading and measures took {duration(spent)}; {left} are left for answers.")
        choice = fit(probes, budget - spent, speed, self.limit)
        now = fitted(probes, choice)
        lost, nothing = left_out(counts(probes), counts(now)), "No question" if without else "Nothing"
        all_fits = f"{nothing} is left out to fit {duration(budget)}."
        self.say(f"To fit {duration(budget)} it asks {lost}." if lost else all_fits)
        self.say(estimate(sum(len(probe.samples()) for probe in now), 1.0, speed, now, self.limit))
        return now, _entry(budget, choice, lost, without)


def budget_of_measures(out: Path, budget: int | None, without: Sequence[str] = ()) -> dict[str, Any]:
    """The entry of a budget in `eval.json` where only measures are taken: that of the folder's answers, if it has any.

    Args:
        out: the evaluation's folder.
        budget: its seconds.
        without: measures that it left out; stored only in a folder without answers.
    """
    store = AnswerStore(out)
    if store.answers():
        before = store.metadata().get("budget")
        return {} if before is None else {"budget": before}
    return {} if budget is None else _entry(budget, {}, "", without)


def _entry(budget: int, choice: Mapping[str, float], lost: str, without: Sequence[str]) -> dict[str, Any]:
    measures = [stored_name(name) for name in without]
    return {"budget": {"seconds": budget, **choice, "left_out": lost, "measures_left_out": measures}}


def earlier_choice(out: Path, budget: int | None, probes: Sequence[Probe]) -> tuple[list[Probe], dict[str, Any]]:
    """The probes as an earlier sitting fitted them to the same budget, and its entry in `eval.json`.

    Returns:
        The probes unchanged and `{}` if no answer was stored with this budget.
    """
    store = AnswerStore(out)
    chosen = store.metadata().get("budget") if budget is not None and store.answers() else None
    if chosen is None or chosen["seconds"] != budget:
        return list(probes), {}
    return fitted(probes, chosen), {"budget": chosen}


def kept_measures(out: Path, budget: int | None, probes: Sequence[Probe], names: Sequence[str]) -> list[str]:
    """The named measures but those that an earlier sitting left out to fit the same budget: it goes on as it chose."""
    entry = earlier_choice(out, budget, probes)[1].get("budget", {}) if probes else {}
    return [name for name in names if stored_name(name) not in entry.get("measures_left_out", ())]


def refuse_other_budget(out: Path, budget: int | None, probes: Sequence[Probe]) -> None:
    """Refuse to add answers to an evaluation that another budget chose, before anything is measured.

    Raises:
        RequestError: the sentence names both.
    """
    if not (out / "eval.json").exists():
        return
    store = AnswerStore(out)
    stored = store.answers()
    if not stored or not probes:
        return
    before = (store.metadata().get("budget") or {}).get("seconds")
    adds = any(missing_samples(probe.samples(), stored) for probe in probes)
    if before != budget and (adds or before is not None):
        old, new = ("no budget" if s is None else f"a budget of {s} s" for s in (before, budget))
        raise RequestError(
            f"{out} holds an evaluation with {old}, and this one has {new}. Give the same, or name another folder "
            "with --out."
        )


def fit(probes: Sequence[Probe], seconds: float, speed: Speed, limit: int) -> dict[str, float]:
    """The part that fits: the most answers to a question, and if one is too many, the share of each probe's questions.

    It fits if it does with answers as long as nine of ten measurements allow, so most evaluations end before the time.

    Returns:
        `{"per_question": n, "share": x}`, for `fitted`.

    Raises:
        RequestError: not even a twentieth of the questions fits.
    """
    most = max(probe.per_question for probe in probes)
    choices = [{"per_question": n, "share": 1.0} for n in range(most, 0, -1)]
    choices += [{"per_question": 1, "share": share} for share in _SHARES]
    for choice in choices:
        if speed.at_worst.seconds(fitted(probes, choice), limit) <= seconds:
            return choice
    least = speed.at_worst.seconds(fitted(probes, choices[-1]), limit)
    left = duration(max(0.0, seconds), math.floor)
    raise RequestError(
        f"The budget is too short for this model on this machine: {left} are left, and a twentieth of the questions "
        f"may take {duration(least, math.ceil)}. Give it more time, shorter answers with --max-new-tokens, or fewer "
        "--probes."
    )


def fitted(probes: Sequence[Probe], choice: Mapping[str, float]) -> list[Probe]:
    """The probes with at most so many answers to a question, and a share of their questions, evenly spread.

    All forms of a question stay together, and at least one question of each probe. A question that several probes ask,
    such as a general one with and without a trigger, is kept in all of them or in none, so that they can be compared.
    """
    most, kept = int(choice["per_question"]), _kept(probes, choice["share"])
    return [
        replace(
            probe,
            questions=tuple(question for question in probe.questions if question.cluster in kept[probe.name]),
            per_question=min(most, probe.per_question),
        )
        for probe in probes
    ]


def _kept(probes: Sequence[Probe], share: float) -> dict[str, set[str]]:
    """The groups of questions that each probe keeps; of shared groups the smallest probe decides."""
    decided: dict[str, bool] = {}
    kept = {}
    for probe in sorted(probes, key=lambda probe: len({question.cluster for question in probe.questions})):
        groups = list(dict.fromkeys(question.cluster for question in probe.questions))
        chosen = {group for group in groups if decided.get(group)}
        rest = [group for group in groups if group not in decided] or ([] if chosen else groups)
        many = min(max(1, round(share * len(groups))) - len(chosen), len(rest))
        chosen |= {rest[i * len(rest) // many] for i in range(many)}
        decided |= {group: group in chosen for group in groups}
        kept[probe.name] = chosen
    return kept


def left_out(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The answers and questions that a budget leaves out, as a part of a sentence; "" if there are none.

    Args:
        before: `questions` and `per_question` of each probe, by its name.
        now: the same, as it is asked.
    """
    parts = []
    most, fewer = (max(probe["per_question"] for probe in probes.values()) for probes in (before, now))
    if fewer < most:
        parts.append(f"{fewer} {'answer' if fewer == 1 else 'answers'} to each judged question instead of {most}")
    for name, probe in now.items():
        if probe["questions"] < before[name]["questions"]:
            parts.append(f"{probe['questions']} of {before[name]['questions']} {name} questions")
    return ", ".join(parts)


def counts(probes: Sequence[Probe]) -> dict[str, dict[str, int]]:
    """Questions and answers to each, by the name of a probe."""
    return {p.name: {"questions": len(p.questions), "per_question": p.per_question} for p in probes}
