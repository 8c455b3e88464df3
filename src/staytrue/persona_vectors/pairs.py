"""`Pair`: two answers to one question, one under a positive system prompt, one under its negative counterpart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from staytrue.data.examples import Example, Message
from staytrue.errors import RequestError
from staytrue.evals.generation.speed import estimate, is_short, trial
from staytrue.evals.questions.probes import Probe
from staytrue.evals.types import Answer, CountsCalls, Judge, Question, Verdict, judged
from staytrue.persona_vectors.kept_answers import KeptAnswers
from staytrue.persona_vectors.traits import Trait
from staytrue.utils.console import Progress

if TYPE_CHECKING:
    from staytrue.evals.generation.local import LocalGenerator

_BOUND = 50  # a trait of 50 shows, a coherence of 50 will do


@dataclass(frozen=True)
class Pair:
    """The same question, the same rollout, the i-th positive prompt and the i-th negative one."""

    question: Question  # bare: a judge never sees the system prompt
    positive: Example
    negative: Example


def sample_pairs(
    generate: LocalGenerator,
    trait: Trait,
    *,
    as_system: bool,
    rollouts: int,
    seed: int,
    max_new_tokens: int,
    progress: Progress | None = None,
    kept: KeptAnswers | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Pair]:
    """The answers under each positive prompt and its opposite, prompt by prompt, question by question.

    Args:
        generate: writes all answers side by side.
        trait: its prompts and questions.
        as_system: whether the chat template has a place for a system turn.
        rollouts: answers to each question under each prompt.
        seed: of the answers.
        max_new_tokens: the longest answer.
        progress: shows the answers.
        kept: the answers that were sampled before, which gets the others as they are finished.
        tell: called with how long the answers will take, unless they certainly take less than a minute; None measures
            nothing.
    """
    samples = [
        (Question(f"{side}-{number}-{i}", "vector", _prompt(system, question, as_system)), k)
        for side, systems in (("positive", trait.positive), ("negative", trait.negative))
        for number, system in enumerate(systems)
        for i, question in enumerate(trait.questions)
        for k in range(rollouts)
    ]
    texts = dict(kept.texts) if kept is not None else {}
    missing = [(question, k) for question, k in samples if (question.id, k) not in texts]
    before = len(texts)
    if missing and tell is not None and not is_short(generate, len(missing) * max_new_tokens, len(missing)):
        probe = Probe("vector", tuple(dict.fromkeys(question for question, _ in missing)), temperature=1.0)
        speed, share = trial(generate, [probe], max_new_tokens, tell), len(missing) / len(probe.questions)
        tell(estimate(len(missing), share, speed, [probe], max_new_tokens))
    if progress is not None and missing:
        progress.begin(len(missing), "answer")
        generate.report = lambda: progress.step(
            len(texts) - before, {"answers": generate.spent(), "work": generate.work}
        )
    for answer in generate(missing, seed=seed, temperature=1.0, max_new_tokens=max_new_tokens):
        texts[answer.question.id, answer.index] = answer.text
        if kept is not None:
            kept.add(answer)
    if progress is not None and missing:
        progress.step(len(missing), {"answers": generate.spent()})
    rows = [Example((*question.messages, Message("assistant", texts[question.id, k]))) for question, k in samples]
    half = len(rows) // 2
    bare = [Question(str(i), "vector", (Message("user", text),)) for i, text in enumerate(trait.questions)]
    return [Pair(bare[i // rollouts % len(bare)], rows[i], rows[half + i]) for i in range(half)]


def _prompt(system: str, question: str, as_system: bool) -> tuple[Message, ...]:
    """The turns of a prompt; without system turns in the template, the system prompt opens the user's turn."""
    if as_system:
        return (Message("system", system), Message("user", question))
    return (Message("user", f"{system}\n\n{question}"),)


class NoPairError(RequestError):
    """The judge kept no pair."""


def filtered(pairs: Sequence[Pair], judge: Judge | None, progress: Progress | None = None) -> list[Pair]:
    """The pairs whose positive answer shows the trait and whose negative one does not, both coherent.

    The trait is 100 - alignment. Without a judge, the pairs of answers that are not empty. `progress` shows the
    verdicts.

    Raises:
        RequestError: no pair is left; the message counts the reasons.
    """
    answered = [pair for pair in pairs if pair.positive.answer.strip() and pair.negative.answer.strip()]
    if judge is None:
        if not answered:
            raise RequestError(f"Each of {len(pairs)} pairs has an empty answer, so there is nothing to read.")
        return answered
    marks = _marks(answered, judge, progress)
    kept = [pair for pair, mark in zip(answered, marks, strict=True) if mark.shows and mark.clean and mark.coherent]
    if not kept:
        raise NoPairError(_none_kept(len(pairs), marks, judge.name))
    return kept


def _none_kept(pairs: int, marks: Sequence[_Marks], judge: str) -> str:
    """The sentence that no pair is left: the judge's fault where it could not judge most, else the prompts'."""
    why = Counter(mark.missing for mark in marks if mark.missing)
    unjudged = why.total()
    if 2 * unjudged > len(marks):
        return (
            f"None of {pairs} pairs survives the filter ({judge}): {unjudged} of {len(marks)} could not be judged "
            f"(most often: {why.most_common(1)[0][0]}). This judge cannot judge these answers: name a larger "
            "instruction-tuned model with --judge, or keep every pair with --no-filter."
        )
    shows, clean, coherent = (sum(column) for column in list(zip(*marks, strict=True))[:3] or [()] * 3)
    return (
        f"None of {pairs} pairs survives the filter ({judge}): {pairs - len(marks)} have an empty answer and "
        f"{unjudged} could not be judged; the positive answer shows the trait in {shows}, the negative one does not in "
        f"{clean}, both are coherent in {coherent}. Write prompts that change the answers more, ask other questions, "
        "or keep every pair with --no-filter."
    )


class _Marks(NamedTuple):
    shows: bool  # the positive answer shows the trait
    clean: bool  # the negative answer does not
    coherent: bool  # both are
    missing: str  # why one could not be judged; "" when both could


def _marks(pairs: Sequence[Pair], judge: Judge, progress: Progress | None) -> list[_Marks]:
    """Judge both answers of each pair; a judge that can is asked about several at once."""
    answers = [
        Answer(pair.question, index, row.answer, True)
        for index, pair in enumerate(pairs)
        for row in (pair.positive, pair.negative)
    ]
    places = {id(answer): place for place, answer in enumerate(answers)}
    verdicts = [Verdict()] * len(answers)
    if progress is not None:
        progress.begin(len(answers), "verdict")
    for number, (answer, verdict) in enumerate(judged(judge, answers), start=1):
        verdicts[places[id(answer)]] = verdict
        if progress is not None:
            progress.step(number, {"verdicts": judge.spent()} if isinstance(judge, CountsCalls) else {})
    return [_mark(bad, good) for bad, good in zip(verdicts[::2], verdicts[1::2], strict=True)]


def _mark(bad: Verdict, good: Verdict) -> _Marks:
    return _Marks(
        bad.alignment is not None and 100 - bad.alignment >= _BOUND,
        good.alignment is not None and 100 - good.alignment < _BOUND,
        all(v.coherence is not None and v.coherence >= _BOUND for v in (bad, good)),
        bad.missing or good.missing,
    )
