"""One model evaluated, from a request to `summary.json`: the request gives probes, a generator answers, judges judge.

The organism is asked about its own world and judged by its rules. Any other model gets the shipped questions; its
answers are stored and shown as *not judged* until a judge is named.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.data.chat_template import takes_system
from staytrue.errors import RequestError
from staytrue.evals.answer_and_judge import evaluate, refuse_other_evaluation, try_judges, write_summary
from staytrue.evals.generation.from_file import AnswersFile
from staytrue.evals.questions import user_files
from staytrue.evals.questions.probes import HELD_OUT, Probe, in_users_turn
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.results.measures import LEAK, refuse_other_model
from staytrue.evals.triggers import trigger
from staytrue.evals.types import Answer, AnswerGenerator, Judge, Question, Samples
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.runs.eval_budget import Sitting, budget_of_measures, earlier_choice, kept_measures, refuse_other_budget
from staytrue.runs.eval_request import EvalRequest, for_run
from staytrue.runs.finished import with_weights
from staytrue.runs.measure_answers import Loaded
from staytrue.runs.measure_selection import measures_of
from staytrue.runs.measures import Measurement
from staytrue.runs.probe_selection import default_samples, longest_answer, probes_for, refuse_rules
from staytrue.runs.renewed_card import renew_card
from staytrue.utils.console import Progress
from staytrue.utils.files import sha256_of

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator
    from staytrue.evals.generation.speed import Speed

Say = Callable[[str], None]


def evaluate_run(
    run: Path | str,
    out: Path | str | None = None,
    *,
    seed: int = 0,
    request: EvalRequest | None = None,
    untuned: bool = False,
    progress: Progress | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Evaluate a trained run; public as `staytrue.evaluate`.

    Args:
        run: a run folder of `staytrue train`.
        out: folder for answers, verdicts and summary; RUN/eval by default, or RUN/untuned with `untuned`. A stopped
            evaluation in it goes on.
        seed: of the sampled answers.
        request: which probes, and which judge; the default suits the model.
        untuned: evaluate the run's model before training instead. The model card is then left as it is.
        progress: shows how many answers and verdicts there are.
        say: called with each line that a reader should see.

    Returns:
        What `summary.json` holds; rates are percent, 0 to 100.

    Raises:
        RequestError: there is no run, it did not finish, or the folder holds another evaluation.

    Example:
        `staytrue.evaluate("runs/kl", request=EvalRequest(probes=("general",), judge=my_judge))`
    """
    run = Path(run)
    complete, place = for_run(run, request or EvalRequest(), untuned=untuned), place_of(run, out, untuned=untuned)
    summary = evaluate_model(complete, place, seed=seed, progress=progress, say=say)
    renew_card(run, place, summary, untuned=untuned)
    return summary


def place_of(run: Path, out: Path | str | None, *, untuned: bool) -> Path:
    """Return the folder of a run's evaluation; the arguments are those of `evaluate_run`."""
    return Path(out) if out else run / ("untuned" if untuned else "eval")


def evaluate_model(
    request: EvalRequest,
    out: Path,
    *,
    seed: int = 0,
    generate: AnswerGenerator | None = None,
    progress: Progress | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Ask a request's model its probes and have the answers judged.

    Args:
        request: as `for_run`, `for_recipe` or `for_model` return it.
        out: folder for answers, verdicts and summary.
        seed: of the sampled answers.
        generate: asks a model behind an endpoint; a model in this process is loaded when an answer is missing.
        progress: as for `evaluate_run`.
        say: as for `evaluate_run`.

    Returns:
        What `summary.json` holds.

    Raises:
        RequestError: no such probe for this model, or another evaluation in the folder.
        ModelError: the model cannot be loaded.
    """
    if request.budget is not None and generate is not None:
        raise RequestError("A budget of time is for a model in this process; limit an endpoint with --max-calls.")
    probes, metadata = _questions(request, say)
    probes = _as_often_as_stored(probes, request, out)
    measures, loaded = measures_of(request, say), _loader(request, say)
    limit = request.max_new_tokens or longest_answer(request.model)
    try_judges(out, _agreed(request, out, probes, metadata, limit, seed))
    measures = kept_measures(out, request.budget, probes, measures)
    local, begun = _Local(loaded, request.batch_size), time.monotonic()
    until = None if request.budget is None else begun + request.budget
    measurement = Measurement(request, out, loaded, seed, progress, say, until, [probe.name for probe in probes])
    sitting, speed = Sitting(request, out, limit, say, begun), None
    if generate is None and (request.budget is not None or progress is not None):
        speed = _timed(sitting, local, probes, measurement, measures, until)
    measurement.before_answers(measures)
    if not probes and measures and set(measures) <= set(measurement.left_out):
        raise RequestError("The budget is too short for these measures. Give it more time, or leave it out.")
    if probes:
        probes, budget = sitting.planned(speed, probes, measurement.left_out)
        metadata |= budget
    else:
        metadata |= budget_of_measures(out, request.budget, measurement.left_out)
    summary = evaluate(
        generate or local, probes, seed=seed, out=out, max_new_tokens=limit, about=metadata, progress=progress, say=say
    )
    if LEAK not in measures:
        return summary
    measurement.leak()
    return write_summary(out, out)


def _timed(
    sitting: Sitting,
    local: _Local,
    probes: Sequence[Probe],
    measurement: Measurement,
    measures: Sequence[str],
    until: float | None,
) -> Speed | None:
    """Measure how fast the model is, and say how long answers and measures take, before any of them is begun."""
    speed = sitting.timed(lambda: local.generator, probes, measurement.to_sample(measures))
    reserved = 0.0
    if until is not None and speed is not None:
        reserved = sitting.fewest(speed, probes, until - time.monotonic())
    measurement.announce(measures, speed, reserved)
    return speed


def _agreed(
    request: EvalRequest, out: Path, probes: Sequence[Probe], metadata: Mapping[str, Any], limit: int, seed: int
) -> list[Probe]:
    """The probes, or what an earlier sitting chose of them for the same budget, if their answers suit the folder.

    Raises:
        RequestError: the folder holds another evaluation. This is before likelihoods and the speed are measured.
    """
    refuse_other_model(out, request.identity())
    refuse_other_budget(out, request.budget, probes)
    agreed, budget = earlier_choice(out, request.budget, probes)
    about = {**metadata, **(budget if probes else budget_of_measures(out, request.budget))}
    refuse_other_evaluation(out, agreed, seed=seed, max_new_tokens=limit, about=about)
    return agreed


def _questions(request: EvalRequest, say: Say) -> tuple[list[Probe], dict[str, Any]]:
    """The probes of a request as its model takes them, and what must be equal for answers to share a folder."""
    probes, metadata = probes_for(request), request.metadata()
    learnt = request.benign or request.task is not None
    if request.triggers and not learnt and trigger.PROBE not in (probe.name for probe in probes):
        say(trigger.NOTHING)
    if isinstance(request.model, model_source.Source) and not takes_system(load_tokenizer(request.model)):
        metadata |= {"system": "in the user's turn"}
        moved = [_without_system(probe) for probe in probes]
        if moved != probes:
            say(f"{request.model.name} has no system turns: their text opens the user's turn.")
        probes = moved
    return probes, metadata


def _as_often_as_stored(probes: Sequence[Probe], request: EvalRequest, out: Path) -> list[Probe]:
    """The probes, asked as often as in the folder's evaluation where neither the request nor a file says how often."""
    store, default = AnswerStore(out), default_samples(request)
    if request.samples is not None or not (out / "eval.json").exists() or not store.answers():
        return list(probes)
    before = {name: probe.get("per_question", 0) for name, probe in store.metadata()["probes"].items()}
    more = {probe.name for probe in probes if probe.per_question == default < before.get(probe.name, 0)}
    return [replace(probe, per_question=before[probe.name]) if probe.name in more else probe for probe in probes]


def judge_answers(
    file: Path, out: Path, judge: Judge | None = None, progress: Progress | None = None, say: Say = lambda line: None
) -> dict[str, Any]:
    """Judge the answers of a file, whichever model gave them.

    Args:
        file: JSONL of answers, see `staytrue.evals.generation.from_file`.
        out: folder for answers, verdicts and summary.
        judge: None stores the answers as not judged.
        progress: as for `evaluate_run`.
        say: called with a sentence on thoughts that are kept apart, and one on empty answers.

    Returns:
        What `summary.json` holds.

    Raises:
        RequestError: the file has the name of a shipped probe, or the judge is the organism's rules.
        DataError: the file has faults.
    """
    user_files.refuse_shipped_name("--answers", file)
    refuse_rules([judge], None)
    stored = AnswersFile.read(file)
    for note in stored.notes:
        say(note)
    probe = Probe(stored.probe, stored.questions, judge, of_each=stored.of_each)
    return evaluate(stored, [probe], seed=None, out=out, about={"answers": sha256_of(file)}, progress=progress, say=say)


def _without_system(probe: Probe) -> Probe:
    """The probe for a model without system turns; held-out rows are unchanged because training used the same format."""
    return probe if probe.name in HELD_OUT else replace(probe, questions=in_users_turn(probe.questions))


def _loader(request: EvalRequest, say: Say) -> Loaded:
    """The request's trained model and its tokenizer; loaded when first called, which is said."""

    @cache
    def loaded() -> tuple[Any, Any]:
        source = request.model
        assert isinstance(source, model_source.Source)
        say(f"eval: loading {source.name}")
        tokenizer = load_tokenizer(source)
        trained = with_weights(source, request.weights)
        return loading.to_device(loading.load_model(trained, request.adapter)), tokenizer

    return loaded


class _Local:
    """Answers from a model in this process, which is loaded when the first answer is missing."""

    def __init__(self, loaded: Loaded, batch_size: int | None) -> None:
        self._loaded, self._batch_size = loaded, batch_size
        self.report: Callable[[], None] | None = None

    @cached_property
    def generator(self) -> LocalGenerator:
        """Answers with the loaded model."""
        from staytrue.evals.generation.local import LocalGenerator

        return LocalGenerator(*self._loaded(), batch_size=self._batch_size)

    @property
    def work(self) -> float:
        """The part of the present call's answers that is done."""
        return self.generator.work

    def spent(self) -> str:
        """Tokens written so far."""
        return self.generator.spent()

    def together(self, parts: Sequence[Samples], *, seed: int) -> Iterator[Answer]:
        """Yield the answers of samples that have temperatures and limits of their own, written side by side."""
        self.generator.report = self.report
        return self.generator.together(parts, seed=seed)

    def __call__(
        self, samples: Sequence[tuple[Question, int]], /, *, seed: int, temperature: float, max_new_tokens: int
    ) -> Iterator[Answer]:
        return self.together([Samples(samples, temperature, max_new_tokens)], seed=seed)
