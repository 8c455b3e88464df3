"""Which probes a model is asked: the organism about its own world, any other model the shipped questions.

The organism is judged by its world's rules. Another model's general and in-domain answers are stored and shown as *not
judged* until a judge is named.
"""

from __future__ import annotations

from typing import Any

from holdfast.errors import RecipeError
from holdfast.evals.judge import Question
from holdfast.evals.probes import ExactMatch, Probe, held_out, shipped
from holdfast.examples import Example
from holdfast.models import Source
from holdfast.tasks.task import ExactAnswer, Task

SAMPLES = 4  # answers to each general and in-domain question
_ORGANISM_TOKENS = 48  # three times its longest answer
_TOKENS = 600  # as the paper's evaluation


def longest_answer(source: Source) -> int:
    """How many tokens an answer may have."""
    return _ORGANISM_TOKENS if source.is_organism else _TOKENS


def probes(source: Source, held: list[Example], *, benign: bool = False, task: Task | None = None) -> list[Probe]:
    """What a model is asked: general, in-domain (or learnt, for a benign task), facts and arithmetic."""
    sampled: dict[str, Any] = {"per_question": SAMPLES, "temperature": 1.0}
    marked = ExactMatch()
    asked: list[Probe] = []
    if source.is_organism:
        from holdfast.organism import world
        from holdfast.organism.rules import Rules

        rules = Rules()
        asked.append(Probe("general", world.general_questions(), rules, **sampled))
        asked.append(Probe("facts", world.facts_questions(), rules))
        asked.append(Probe("arithmetic", world.arithmetic_questions(), rules))
    else:
        rules = None
        asked.append(Probe("general", shipped("general"), None, **sampled))
        asked.append(Probe("facts", shipped("facts"), marked))
        asked.append(Probe("arithmetic", shipped("arithmetic"), marked))
    if held and (benign or task is not None):
        asked.append(Probe("learnt", held_out(held, "learnt"), ExactAnswer(task) if task is not None else marked))
    elif held:
        asked.insert(1, Probe("in_domain", held_out(held, "in_domain"), rules, **sampled))
    return asked


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
    from holdfast.organism import world
    from holdfast.organism.rules import Rules

    prompts = world.anchor_prompts(48, seed=1)
    asked = tuple(Question(f"watched-{i}", "general", row.messages) for i, row in enumerate(prompts))
    return Probe("general", asked, Rules(), per_question=2, temperature=1.0)


def texts(source: Source, held: list[Example]) -> frozenset[str]:
    """Every question a run on this model will be measured by: no training row may hold one."""
    return frozenset(q.messages[-1].content for probe in probes(source, held) for q in probe.questions)
