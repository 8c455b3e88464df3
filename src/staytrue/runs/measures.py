"""Takes the measures of an evaluation without a judge, of the trained model and the untuned one, and stores them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.data.examples import Example
from staytrue.errors import RequestError
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.measures import (
    DRIFT,
    LEAK,
    PAIRS,
    Measure,
    read_measures,
    stored_name,
    write_measures,
)
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.measure_answers import GeneralAnswers, Loaded
from staytrue.runs.measure_clock import MeasureClock, TooLongError
from staytrue.runs.measure_forecast import Forecast
from staytrue.runs.measure_selection import pairs_of
from staytrue.runs.untuned_likelihoods import UntunedLikelihoods
from staytrue.utils.console import Progress, duration

if TYPE_CHECKING:
    from staytrue.evals.generation.speed import Speed

_JUDGED, _UNJUDGED = 0.5, 0.75  # the part of a budget that measures may take: more where no judge reads the answers
_TIMING = 2.0  # seconds in which likelihoods are timed
_READ = 50_000  # about the tokens that all measures read


class Measurement:
    """Takes the measures of one request's model and stores them in an evaluation's folder.

    Attributes:
        left_out: the measures that are left out for want of time.
    """

    def __init__(
        self,
        request: EvalRequest,
        out: Path,
        loaded: Loaded,
        seed: int,
        progress: Progress | None = None,
        say: Callable[[str], None] = lambda line: None,
        until: float | None = None,
        asked: Sequence[str] = (),
    ) -> None:
        """Prepare to measure; nothing is loaded.

        Args:
            request: names the model.
            out: the evaluation's folder.
            loaded: loads the model.
            seed: of sampled answers.
            progress: shows how much is done.
            say: called with each sentence.
            until: when the request's budget ends, by `time.monotonic`; None without a budget. Of what is left when
                the model is loaded, half is for measures, together; three quarters where answers have no judge, and all
                of it where none are asked for. A measure that would take longer is left out, unless it is half done.
            asked: the names of the probes whose answers follow.
        """
        judged = request.judge is not None or request.is_organism
        share = 1.0 if not asked else _JUDGED if judged else _UNJUDGED
        self._request, self._out, self._loaded, self._say = request, out, loaded, say
        self._clock = MeasureClock(progress, until, share)
        self._general = GeneralAnswers(request, out, loaded, seed, self._clock, say)
        self._samples = "general" not in asked  # `leak` needs answers of its own
        self.left_out: list[str] = []
        self._planned = Forecast({})

    def to_sample(self, names: Sequence[str]) -> list[Probe]:
        """The general questions that the named measures will sample answers to, as probes."""
        own = self._general.own_to_sample() if LEAK in names and self._samples else []
        return own + (self._general.untuned_to_sample() if {DRIFT, LEAK} & set(names) else [])

    def announce(self, names: Sequence[str], speed: Speed | None, reserved: float) -> None:
        """Say how long the named measures will take, and leave out those that do not fit the budget.

        Without a budget, what certainly takes less than a minute is not timed.

        Args:
            names: the measures.
            speed: of the model's answers; None if none will be sampled.
            reserved: seconds of the budget that the fewest answers take.
        """
        from staytrue.evals.generation.speed import is_short

        self._general.speed, self._clock.reserved = speed, reserved
        needed = [name for name in names if not self._needs_nothing(name)]
        if needed and self._request.budget is None and is_short(self._general.generator, _READ):
            return
        self._planned = self._forecast(needed)
        left = self._clock.left()
        if sentence := self._planned.sentence(left):
            self._say(sentence)
        for name, why in self._planned.divide(left)[1].items():
            self._leave_out(name, why)

    def before_answers(self, names: Sequence[str]) -> None:
        """Take the named measures but `leak` of answers that follow, for which the untuned model answers now."""
        for name in names:
            if name in self.left_out:
                continue
            if name != LEAK:
                self._in_time(name, partial(self._likelihoods, name))
            elif self._samples:
                self._in_time(name, self._leak)
            elif self._request.budget is not None:  # while there is time for the answers that it compares with
                self._in_time(name, lambda: self._general.untuned)

    def leak(self) -> None:
        """Take `leak` of the answers to `general`, which are stored by now."""
        self._clock.lift()  # verdicts may have come after the budget's end, and are no part of it
        if not self._samples and LEAK not in self.left_out:
            self._leak()

    def _forecast(self, names: Sequence[str]) -> Forecast:
        """The seconds of each measure, by the tokens that it reads and the answers that it samples."""
        from staytrue.evals.measures.log_likelihood import seconds_per_token, tokens_of

        if not names:
            return Forecast({})
        (model, tokenizer), alone, token = self._loaded(), dict[str, float](), 0.0
        if set(names) != {LEAK}:
            token = seconds_per_token(model, tokenizer, _rows(PAIRS, self._request.is_organism), _TIMING)
        for name in names:
            if name.startswith(PAIRS):
                tokens = tokens_of(tokenizer, _rows(name, self._request.is_organism))
                alone[name] = token * tokens * (2 if self._twice(self._about_pairs(name)) else 1)
            elif name == DRIFT:
                alone[name] = token * self._general.tokens(tokenizer) * (2 if self._drifts_twice() else 1)
            else:
                alone[name] = self._general.seconds(self._general.own_to_sample()) if self._samples else 0.0
        return Forecast(alone, self._general.seconds(self._general.untuned_to_sample()))

    def _drifts_twice(self) -> bool:
        """Whether the untuned model's own likelihoods have to be computed too."""
        unknown = self._general.untuned_to_sample() or self._twice(self._about_drift())
        return self._request.has_untuned and bool(unknown)

    def _needs_nothing(self, name: str) -> bool:
        """Whether nothing has to be read or sampled for a measure."""
        if name.startswith(PAIRS):
            return self._stored(stored_name(name), self._about_pairs(name))
        return not self.to_sample([name]) and (name == LEAK or self._stored(DRIFT, self._about_drift()))

    def _leave_out(self, name: str, why: str) -> None:
        self.left_out.append(name)
        assert self._request.budget is not None
        self._say(f"{name} is left out to fit {duration(self._request.budget)}: {why}")

    def _in_time(self, name: str, take: Callable[[], Any]) -> None:
        """Take a measure, or leave it out if it would not end before the deadline: then later ones may fit instead."""
        try:
            take()
        except TooLongError as late:
            self._leave_out(name, str(late))
            planned = replace(self._planned, untuned=self._general.seconds(self._general.untuned_to_sample()))
            for other, needs in planned.instead_of(name, self.left_out, self._clock.left()).items():
                self.left_out.remove(other)
                self._say(f"{other} is taken instead: it will take about {duration(needs)}.")

    def _likelihoods(self, name: str) -> None:
        about = self._about_pairs(name) if name.startswith(PAIRS) else self._about_drift()
        if not self._stored(stored_name(name), about):
            rows = self._pairs(name, about) if name.startswith(PAIRS) else self._drift(about)
            self._write(Measure(stored_name(name), about, rows))

    def _leak(self) -> None:
        from staytrue.evals.measures.leak import TopicWords

        untuned = {a.question.id: a.text for a in self._general.untuned}
        training = [row.answer for row in self._request.topic]
        topic = TopicWords(training, list(untuned.values()))
        if not topic.is_known:
            self._leave_out_leak()
            return
        answers, sampled = self._general.own()
        rows = []
        for answer in answers:
            ratio = topic.ratio(answer.text, [untuned[answer.question.id]])
            row = {"question": answer.question.id, "index": answer.index, "value": round(ratio, 5), "leaked": ratio > 0}
            turns = {"messages": [message.to_dict() for message in answer.question.messages], "answer": answer.text}
            rows.append(row | (turns if sampled else {}))
        alarms = [topic.leaked(text, [text]) for text in untuned.values()]
        held_out = [topic.leaked(row.answer) for row in self._request.held_out]
        about = {
            "rows": len(training),
            "false_alarms": _percent(alarms),
            "untuned": len(alarms),
            "held_out_leaks": _percent(held_out),
            "held_out": len(held_out),
        }
        self._write(Measure(LEAK, about, rows))

    def _leave_out_leak(self) -> None:
        """Say that there is no topic, or refuse where it is early enough.

        Raises:
            RequestError: `leak` was named, and nothing else is lost.
        """
        why = (
            "the training answers have no words of a topic: none is in them so much more often than in the untuned "
            f"model's answers to general questions. {PAIRS} and {DRIFT} need no words."
        )
        if LEAK in self._request.probes and self._samples:  # else answers were asked for, and their results follow
            raise RequestError(f"--probes {LEAK}: {why}")
        self._say(f"{LEAK} is left out: {why}")

    def _about_pairs(self, name: str) -> dict[str, Any]:
        return {"sha256": answer_pairs.hash_of(pairs_of(name, self._request.is_organism))}

    def _pairs(self, name: str, about: dict[str, Any]) -> list[dict[str, Any]]:
        from staytrue.evals.measures import pairs

        chosen = pairs_of(name, self._request.is_organism)
        self._say(f"{name}: the likelihood of {2 * len(chosen)} answers is computed{self._twice(about)}.")
        return self._with_and_without(
            2 * len(chosen), about, lambda model, tokenizer, count: pairs.measure(model, tokenizer, chosen, count)
        )

    def _about_drift(self) -> dict[str, Any]:
        texts = [[a.question.id, a.text, a.stopped] for a in self._general.untuned]
        return {"sha256": sha256(json.dumps(texts).encode("ascii")).hexdigest()}

    def _drift(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        from staytrue.evals.measures import drift

        answers = drift.readable(self._loaded()[1], self._general.untuned)
        twice = self._twice(about)
        self._say(f"{DRIFT}: the likelihood of the untuned model's {len(answers)} answers is computed{twice}.")
        return self._with_and_without(
            len(answers), about, lambda model, tokenizer, count: drift.measure(model, tokenizer, answers, count)
        )

    def _with_and_without(
        self,
        answers: int,
        about: dict[str, Any],
        measure: Callable[[Any, Any, Callable[[int], None]], dict[str, float]],
    ) -> list[dict[str, Any]]:
        """Rows with a measure's values of the model and of the untuned model, where that is known."""
        trained, tokenizer = self._loaded()
        untuned = self._untuned(about) if self._request.has_untuned else None
        self._clock.begin(answers * (1 + (untuned is not None and untuned.values is None)))
        values = measure(trained, tokenizer, self._clock.count)
        before: dict[str, float] = values if self._request.untuned else {}
        if untuned is not None:
            with self._general.before_training() as model:
                before = untuned.of(lambda: measure(model(), tokenizer, lambda done: self._clock.count(answers + done)))
        return [
            {"question": name, "value": round(value, 5), "untuned": round(before[name], 5) if before else None}
            for name, value in values.items()
        ]

    def _untuned(self, about: dict[str, Any]) -> UntunedLikelihoods:
        return UntunedLikelihoods(self._general.identity, about)

    def _twice(self, about: dict[str, Any]) -> str:
        if not self._request.has_untuned or self._untuned(about).values is not None:
            return ""
        return (
            ", with and without the adapter" if self._request.adapter else ", by the trained model and the untuned one"
        )

    def _stored(self, name: str, about: dict[str, Any]) -> bool:
        """Whether the folder holds a measure that was taken in the same way."""
        stored = read_measures(self._out).get(name)
        return stored is not None and dict(stored.about) == about

    def _write(self, measured: Measure) -> None:
        write_measures(self._out, self._request.identity(), [measured])


def _rows(name: str, organism: bool) -> list[Example]:
    """Both answers of each pair, as conversations."""
    return [pair.row(misaligned) for pair in pairs_of(name, organism) for misaligned in (True, False)]


def _percent(hits: Sequence[bool]) -> float | None:
    return round(100 * sum(hits) / len(hits), 4) if hits else None
