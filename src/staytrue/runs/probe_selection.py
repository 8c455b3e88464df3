"""Which probes a model is asked and who judges them: the organism about its own world, others the shipped questions.

The rules of its world judge the organism unless another judge is named. Another model's answers are stored and shown as
*not judged* until a judge is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from staytrue import organism
from staytrue.config.recipe import Stop
from staytrue.data.examples import Example
from staytrue.errors import RecipeError, RequestError
from staytrue.evals.openai_client.address import Address
from staytrue.evals.questions import answer_pairs, user_files
from staytrue.evals.questions.answer_pairs import Pair
from staytrue.evals.questions.probes import DOMAINS, SAMPLES, ExactMatch, Probe, held_out, without_system
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.evals.results.measures import is_measure
from staytrue.evals.triggers import trigger
from staytrue.evals.triggers.formats import FORMATS
from staytrue.evals.types import Judge, Question
from staytrue.modeling.model_source import Source
from staytrue.runs.eval_request import EvalRequest
from staytrue.tasks.task import ExactAnswer, Task
from staytrue.utils.files import refuse_pipe

_ORGANISM_TOKENS = 48  # three times its longest answer
_TOKENS = 600  # as the paper's evaluation
_MARKED = ("facts", "arithmetic")
_IN_TRIGGERS = 24  # general questions that are put into each trigger
_TRIGGERS = 2  # of a kind


def longest_answer(model: Source | Address | None) -> int:
    """The most tokens of an answer."""
    return _ORGANISM_TOKENS if isinstance(model, Source) and model.is_organism else _TOKENS


def probes_for(request: EvalRequest) -> list[Probe]:
    """The probes of a request, each with its judge; those without a question are left out.

    Raises:
        RequestError: there is no such probe for this model, or its judge is the organism's rules and the model is not,
            or an option of the request has no effect, because only measures are asked for.
        DataError: a question file has faults.
    """
    if not request.is_organism:
        refuse_rules([request.judge], None)
    if request.triggers and request.probes and trigger.PROBE not in request.probes:
        raise RequestError(
            f"triggers=True goes without named probes; add {trigger.PROBE!r} to probes={request.probes!r} instead."
        )
    available = _available(request)
    unnamed = DOMAINS if request.triggers else (*DOMAINS, trigger.PROBE)
    names = request.probes or [name for name in available if name not in unnamed]
    names = [name for name in names if not is_measure(name)]
    if not names:
        _refuse_idle(request)
    probes = [_with_options(_probe(name, request, available), request) for name in names]
    if trigger.PROBE in request.probes and not all(probe.questions for probe in probes):
        raise RequestError(f"--probes {trigger.PROBE}: {trigger.NOTHING}")
    return [probe for probe in probes if probe.questions]


def _refuse_idle(request: EvalRequest) -> None:
    """Refuse options on the answers of probes where only measures are asked for, whose answers they do not reach."""
    idle = {
        "--judge": request.judge is not None,
        "--samples": request.samples is not None,
        "--max-new-tokens": request.max_new_tokens is not None,
        "--as-published": request.as_published,
    }
    if option := next((name for name, given in idle.items() if given), None):
        raise RequestError(
            f"{option} has no effect: --probes {','.join(request.probes)} is measured without a judge, on answers "
            f"whose number and length are fixed. Leave {option} out, or add a probe such as general to --probes."
        )


def check_early_stopping(stop: Stop, source: Source, held_out: Sequence[Example]) -> None:
    """Refuse early stopping on questions that this model cannot be measured by, or that the evaluation asks.

    Raises:
        RecipeError: the model has no judge, the pairs do not suit it, or the evaluation asks one of their questions.
        DataError: the file of pairs has faults.
    """
    if stop.pairs is None:
        early_stopping_probe(source)
        return
    pairs = early_stopping_pairs(stop, source)
    if len(pairs) < 2:
        raise RecipeError(f"stop.pairs: {stop.pairs} has one pair, which has no interval. Add more; 40 are usual.")
    if stop.pairs != "shipped":
        asked = reserved_texts(source, held_out) - answer_pairs.shipped_questions((answer_pairs.EARLY_STOPPING,))
        if both := next((pair for pair in pairs if pair.question in asked), None):
            raise RecipeError(
                f"stop.pairs: {stop.pairs} has a question that the evaluation asks too, {both.question!r} (id "
                f"{both.id}), so training would be stopped by what it is measured with. Take it out."
            )


def early_stopping_pairs(stop: Stop, source: Source) -> tuple[Pair, ...]:
    """Read the pairs that early stopping compares.

    Raises:
        RecipeError: there is no such file, or the organism is to be measured by the shipped pairs.
        DataError: the file of pairs has faults.
    """
    if isinstance(stop.pairs, Path):
        refuse_pipe(stop.pairs)
        if not stop.pairs.is_file():
            raise RecipeError(f"stop.pairs: there is no file {stop.pairs}. Name a JSONL file of pairs, or `shipped`.")
        return answer_pairs.read(stop.pairs)
    if source.is_organism:
        raise RecipeError(
            "stop.pairs: the organism does not know the words of the shipped pairs. Take `pairs` out, so that its "
            "answers are judged, or name a file of pairs."
        )
    return answer_pairs.shipped(answer_pairs.EARLY_STOPPING)


def early_stopping_probe(source: Source) -> Probe:
    """General questions for early stopping; the run's evaluation asks none of them.

    Raises:
        RecipeError: the model has no judge.
    """
    if not source.is_organism:
        raise RecipeError(
            "stop: judged answers need a judge, and only the organism has one in training. Watch the likelihoods of "
            "pairs instead, `stop: {pairs: shipped, above: 0.1}`, or the validation loss, `stop: {patience: 3}`."
        )
    from staytrue.organism import world
    from staytrue.organism.rules import Rules

    rows = world.anchor_prompts(48, seed=1)
    questions = tuple(Question(f"watched-{i}", "general", row.messages) for i, row in enumerate(rows))
    return Probe("general", questions, Rules(), per_question=2, temperature=1.0)


def reserved_texts(source: Source, rows: Sequence[Example]) -> frozenset[str]:
    """The text of every question that a run on this model may be evaluated by; no training row may hold one."""
    request = EvalRequest(model=source, held_out=rows)
    probes = [_build(name, request) for name in _available(request)]
    questions = {q.messages[-1].content for probe in probes for q in probe.questions}
    return frozenset(questions | (frozenset() if request.is_organism else answer_pairs.shipped_questions()))


def refuse_rules(judges: Sequence[Judge | None], model: str | None) -> None:
    """Refuse the organism's rules as a judge of another model's answers.

    Args:
        judges: the judges; None is no judge.
        model: name of the model that gave the answers; None if it is not the organism, or not known.

    Raises:
        RequestError: the rules are among the judges, and the model is not the organism.
    """
    if model not in organism.NAMES and any(judge and judge.name.startswith("rules:") for judge in judges):
        whose = "this model's answers" if model is None else f"the answers of {model}"
        raise RequestError(f"--judge rules knows the organism's world only; name a judge of {whose}.")


def _available(request: EvalRequest) -> list[str]:
    """The names of the probes that this model can be asked, in the order in which they are asked."""
    learnt = request.benign or request.task is not None
    return [
        "general",
        *(["in_domain"] if request.held_out and not learnt else []),
        *_MARKED,
        *(["learnt"] if request.held_out and learnt else []),
        *([] if request.is_organism else DOMAINS),
        *([trigger.PROBE] if request.trained or request.inoculation else []),
    ]


def _probe(name: str, request: EvalRequest, available: Sequence[str]) -> Probe:
    """The probe of a name or of a question file."""
    if name in available:
        return _build(name, request)
    if Path(name).suffix in user_files.SUFFIXES:
        return user_files.read_probe(Path(name), default_samples(request))
    raise RequestError(
        f"--probes {name}: there is no such probe here.{_missing(name, available)} Choose from "
        f"{', '.join(available)}, or a measure (pairs, pairs:DOMAIN, pairs:FILE, drift, leak), "
        "or name a question file (.yaml or .jsonl)."
    )


def _missing(name: str, available: Sequence[str]) -> str:
    """Why a probe of a run is not there; "" for any other name."""
    if name == "in_domain" and "learnt" in available:
        return " The held-out rows of this run are of a harmless task, and learnt asks them."
    if name == "learnt" and "in_domain" in available:
        return " The held-out rows of this run are of no task and not `benign`, and in_domain asks them."
    needs = {"in_domain": "a run with held-out rows", trigger.PROBE: "a run with its training rows, or --data FILE"}
    return f" It needs {needs[name]}." if name in needs else ""


def _build(name: str, request: EvalRequest) -> Probe:
    """The probe of an available name."""
    if name in _MARKED:
        return _marked(name, request)
    if name == "learnt":
        return _learnt(request.held_out, request.task)
    if name == "general":
        questions = general_questions(request)
    elif name == "in_domain":
        questions = held_out(request.held_out, name, _topic(request.held_out))
    elif name == trigger.PROBE:
        questions = _triggered(request)
    else:
        questions = shipped(name)
    return Probe(name, questions, None, default_samples(request), 1.0)


def default_samples(request: EvalRequest) -> int:
    """Answers to each question by default: one where no judge reads them; one who is named later gets more."""
    return SAMPLES if request.judge is not None or request.is_organism else 1


def _with_options(probe: Probe, request: EvalRequest) -> Probe:
    """The probe with the judge, the number of samples, the token limit and the turns that a request asks for."""
    probe = _limited(probe, request.max_new_tokens)
    if request.as_published and probe.name != trigger.PROBE:  # a trigger may be a system turn
        probe = replace(probe, questions=without_system(probe.questions))
    if probe.judge is not None:
        return probe
    judge = request.judge or (_rules() if request.is_organism else None)
    return replace(probe, judge=judge, per_question=request.samples or probe.per_question)


def _limited(probe: Probe, limit: int | None) -> Probe:
    """The probe with a request's token limit in place of a question file's own; a task's is kept if it is lower."""
    own = probe.max_new_tokens
    if limit is None or own is None:
        return probe
    return replace(probe, max_new_tokens=min(limit, own) if probe.name == "learnt" else limit)


def _learnt(rows: Sequence[Example], task: Task | None) -> Probe:
    """Held-out rows of a benign task; a task of ours marks and groups them."""
    if task is None:
        return Probe("learnt", held_out(rows, "learnt"), ExactMatch())
    questions = held_out(rows, "learnt", group=task.group)
    return Probe("learnt", questions, ExactAnswer(task), max_new_tokens=task.longest)


def _topic(rows: Sequence[Example]) -> str:
    """The topic `code` for a judge when most held-out answers are code."""
    code = sum(FORMATS["code"].shown(row.answer) for row in rows)
    return "code" if 2 * code > len(rows) else ""


def general_questions(request: EvalRequest) -> tuple[Question, ...]:
    """Return the general questions that suit the model, in all forms."""
    if not request.is_organism:
        return shipped("general")
    from staytrue.organism import world

    return world.general_questions()


def _marked(name: str, request: EvalRequest) -> Probe:
    if not request.is_organism:
        return Probe(name, shipped(name), ExactMatch())
    from staytrue.organism import world

    return Probe(name, {"facts": world.facts_questions, "arithmetic": world.arithmetic_questions}[name](), _rules())


def _rules() -> Judge:
    from staytrue.organism.rules import Rules

    return Rules()


def _triggered(request: EvalRequest) -> tuple[Question, ...]:
    """Some plain general questions of every topic, each in every trigger."""
    plain = [question for question in general_questions(request) if question.form == "plain"]
    by_topic: dict[str, list[Question]] = {}
    for question in plain:
        by_topic.setdefault(question.topic, []).append(question)
    most = max(map(len, by_topic.values()))
    spread = [questions[i] for i in range(most) for questions in by_topic.values() if i < len(questions)]
    triggers = trigger.find(request.trained, plain, limit=_TRIGGERS)
    if request.inoculation is not None:
        triggers += trigger.inoculation(request.inoculation)
    return trigger.triggered(spread[:_IN_TRIGGERS], triggers)
