"""The untuned model's own answers to general questions, sampled once and kept in the user's cache.

`drift` and `leak` compare every fine-tune of a model with the same answers. Delete the folder
`$XDG_CACHE_HOME/staytrue/untuned` (by default in `~/.cache`) to have them sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from staytrue.evals.questions.probes import probe_sha256
from staytrue.evals.results.answer_store import AnswerStore, missing_samples
from staytrue.evals.types import Answer, AnswerGenerator, Question
from staytrue.runs.untuned_cache import place_of

SEED = 0  # the same for every run


def untuned_answers(
    identity: Mapping[str, Any],
    questions: Sequence[Question],
    generate: AnswerGenerator,
    max_new_tokens: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Answer]:
    """Return one answer to each question, sampled at temperature 1 by the untuned model.

    Args:
        identity: the model, with the hash of its folder or its commit.
        questions: general questions.
        generate: answers as the untuned model does: with the adapter switched off.
        max_new_tokens: most tokens of an answer.
        say: called with a sentence before answers are sampled.

    Raises:
        RequestError: another process is sampling them.
    """
    store = AnswerStore(_folder(identity, questions, max_new_tokens))
    wanted = [(question, 0) for question in questions]
    if missing_samples(wanted, store.answers()):
        with store.lock(" and give the same command again: all runs of a model share the untuned model's answers"):
            missing = missing_samples(wanted, store.answers())  # another process may have ended meanwhile
            say(f"The untuned model answers {len(missing)} general questions, once for all its runs: {store.path}.")
            for answer in generate(missing, seed=SEED, temperature=1.0, max_new_tokens=max_new_tokens):
                store.append(answer)
    stored = store.answers()
    return [stored[question.probe, question.id, 0] for question in questions]


def unanswered(identity: Mapping[str, Any], questions: Sequence[Question], max_new_tokens: int) -> int:
    """Count the questions whose answers `untuned_answers` would have to sample."""
    store = AnswerStore(_folder(identity, questions, max_new_tokens))
    return len(missing_samples([(question, 0) for question in questions], store.answers()))


def _folder(identity: Mapping[str, Any], questions: Sequence[Question], max_new_tokens: int) -> Path:
    return place_of(identity, probe_sha256(questions), SEED, max_new_tokens)
