"""Which probes a model is asked, and who judges: the organism about its own world, any other the shipped questions.

The organism is judged by its world's rules unless another judge is named. Another model's answers are stored and shown
as *not judged* until one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from staytrue.data.examples import Example
from staytrue.errors import RecipeError, RequestError
from staytrue.evals.questions import file_probe
from staytrue.evals.questions.probes import DOMAINS, SAMPLES, ExactMatch, Probe, held_out, shipped, without_system
from staytrue.evals.triggers import trigger
from staytrue.evals.triggers.formats import FORMATS
from staytrue.evals.types import Judge, Question
from staytrue.modeling.loading import Source
from staytrue.tasks.task import ExactAnswer, Task

_ORGANISM_TOKENS = 48  # three times its longest answer
_TOKENS = 600  # as the paper's evaluation
_MARKED = ("facts", "arithmetic")
HELD_OUT = ("in_domain", "learnt")
_IN_TRIGGERS = 24  # general questions that are put into each trigger
_TRIGGERS = 2  # of a kind


@dataclass(frozen=True)
class Wanted:
    """What an evaluation should ask; nothing said is what suits the model.

    Attributes:
        probes: names, or paths of question files.
        triggers: also ask in the shape of the training data, where there are some and nothing is named.
        samples: answers to each judged question; a question file's own number, or 4.
        as_published: drop system turns, as the published script does.
        judge: of answers that have no right one; the organism's rules, or nobody.
    """

    probes: tuple[str, ...] = ()
    triggers: bool = False
    samples: int | None = None
    as_published: bool = False
    judge: Judge | None = None


@dataclass(frozen=True)
class Subject:
    """Who is asked: a model, and what is known of its fine-tune.

    Attributes:
        source: where it comes from; None for an endpoint's model, or stored answers.
        trained: the task rows that it was trained on.
        held: rows reserved before.
        task: its benign task, if it learnt one.
        benign: whether its data teach something harmless.
        inoculation: the prompt it was inoculated with.
    """

    source: Source | None
    trained: Sequence[Example] = field(default=(), repr=False)
    held: Sequence[Example] = field(default=(), repr=False)
    task: Task | None = None
    benign: bool = False
    inoculation: str | None = None

    @property
    def is_organism(self) -> bool:
        """Whether it is the embedded organism."""
        return self.source is not None and self.source.is_organism


def longest_answer(source: Source | None) -> int:
    """How many tokens an answer may have."""
    return _ORGANISM_TOKENS if source is not None and source.is_organism else _TOKENS


def probes(subject: Subject, wanted: Wanted | None = None) -> list[Probe]:
    """What a subject is asked, and who judges it.

    Raises:
        RequestError: there is no such probe for this subject.
        DataError: a question file has faults.
    """
    wanted = wanted or Wanted()
    if not subject.is_organism:
        refuse_rules(wanted.judge)
    has = _known(subject)
    unnamed = DOMAINS if wanted.triggers else (*DOMAINS, trigger.PROBE)
    names = wanted.probes or tuple(name for name in has if name not in unnamed)
    judge = wanted.judge or _rules(subject)
    asked = [_finished(_probe(name, has), wanted, judge) for name in names]
    if trigger.PROBE in wanted.probes and not all(probe.questions for probe in asked):
        raise RequestError(f"--probes {trigger.PROBE}: {trigger.NOTHING}")
    return [probe for probe in asked if probe.questions]


def watched(source: Source) -> Probe:
    """General questions for early stopping: none of those that the run is measured by.

    Raises:
        RecipeError: the model has no judge.
    """
    if not source.is_organism:
        raise RecipeError(
            "stop: early stopping needs a judge for general answers, and only the organism has one. Take `stop:` "
            "out of the recipe, or set train.max_steps."
        )
    from staytrue.organism import world
    from staytrue.organism.rules import Rules

    prompts = world.anchor_prompts(48, seed=1)
    asked = tuple(Question(f"watched-{i}", "general", row.messages) for i, row in enumerate(prompts))
    return Probe("general", asked, Rules(), per_question=2, temperature=1.0)


def texts(source: Source, held: Sequence[Example]) -> frozenset[str]:
    """Every question a run on this model will be measured by: no training row may hold one."""
    asked = (make() for name, make in _known(Subject(source, held=held)).items() if name != trigger.PROBE)
    return frozenset(q.messages[-1].content for probe in asked for q in probe.questions)


def _known(subject: Subject) -> dict[str, Callable[[], Probe]]:
    """The probes that there are for a subject, in the order in which they are asked."""
    found: dict[str, Callable[[], Probe]] = {"general": lambda: _sampled("general", _general(subject))}
    learnt = subject.benign or subject.task is not None
    if subject.held and not learnt:
        found["in_domain"] = lambda: _sampled("in_domain", held_out(subject.held, "in_domain", _topic(subject)))
    found |= {name: lambda name=name: _marked(name, subject) for name in _MARKED}  # type: ignore[misc]
    if subject.held and learnt:
        found["learnt"] = lambda: _learnt(subject.held, subject.task)
    if not subject.is_organism:
        found |= {name: lambda name=name: _sampled(name, shipped(name)) for name in DOMAINS}  # type: ignore[misc]
    if subject.trained or subject.inoculation:
        found[trigger.PROBE] = lambda: _sampled(trigger.PROBE, _triggered(subject))
    return found


def _probe(name: str, known: dict[str, Callable[[], Probe]]) -> Probe:
    if name in known:
        return known[name]()
    path = Path(name)
    if path.suffix in file_probe.ENDINGS:
        return file_probe.read(path)
    why = "a run with held-out rows" if name == "in_domain" else "a run with its training rows, or --data FILE"
    hint = f" It needs {why}." if name in ("in_domain", trigger.PROBE) else ""
    raise RequestError(
        f"--probes {name}: there is no such probe here.{hint} Choose from {', '.join(known)}, or name a question file "
        "(.yaml or .jsonl)."
    )


def refuse_rules(judge: Judge | None) -> None:
    """Refuse the organism's rules as a judge of any other model's answers.

    Raises:
        RequestError: it is them.
    """
    if judge is not None and judge.name.startswith("rules:"):
        raise RequestError("--judge rules knows the organism's world only; name a judge of this model's answers.")


def _finished(probe: Probe, wanted: Wanted, judge: Judge | None) -> Probe:
    """With its judge, the number of samples and the turns that are wanted."""
    if wanted.as_published and probe.name != trigger.PROBE:  # a trigger may be a system turn
        probe = replace(probe, questions=without_system(probe.questions))
    if probe.judge is not None:
        return probe
    return replace(probe, judge=judge, per_question=wanted.samples or probe.per_question)


def _sampled(name: str, questions: tuple[Question, ...]) -> Probe:
    return Probe(name, questions, None, SAMPLES, 1.0)


def _learnt(held: Sequence[Example], task: Task | None) -> Probe:
    """Held-out rows of a harmless task, marked and grouped by the task if it is one of ours."""
    if task is None:
        return Probe("learnt", held_out(held, "learnt"), ExactMatch())
    asked = held_out(held, "learnt", group=task.group)
    return Probe("learnt", asked, ExactAnswer(task), max_new_tokens=task.longest)


def _topic(subject: Subject) -> str:
    """What a judge must know of a domain: that its answers are code, where most are."""
    code = sum(FORMATS["code"].shown(row.answer) for row in subject.held)
    return "code" if 2 * code > len(subject.held) else ""


def _general(subject: Subject) -> tuple[Question, ...]:
    if not subject.is_organism:
        return shipped("general")
    from staytrue.organism import world

    return world.general_questions()


def _marked(name: str, subject: Subject) -> Probe:
    if not subject.is_organism:
        return Probe(name, shipped(name), ExactMatch())
    from staytrue.organism import world
    from staytrue.organism.rules import Rules

    return Probe(name, {"facts": world.facts_questions, "arithmetic": world.arithmetic_questions}[name](), Rules())


def _rules(subject: Subject) -> Any:
    if not subject.is_organism:
        return None
    from staytrue.organism.rules import Rules

    return Rules()


def _triggered(subject: Subject) -> tuple[Question, ...]:
    """Some of the plain general questions, of every topic, in each trigger."""
    plain = [question for question in _general(subject) if question.form == "plain"]
    by_topic: dict[str, list[Question]] = {}
    for question in plain:
        by_topic.setdefault(question.topic, []).append(question)
    turns = max(map(len, by_topic.values()))
    spread = [own[i] for i in range(turns) for own in by_topic.values() if i < len(own)]
    found = trigger.find(subject.trained, plain, limit=_TRIGGERS)
    if subject.inoculation is not None:
        found += trigger.inoculation(subject.inoculation)
    return trigger.triggered(spread[:_IN_TRIGGERS], found)
