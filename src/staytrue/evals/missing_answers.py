"""`answer_missing`: the answers of an evaluation that are not stored yet are generated, and stored one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from staytrue.evals.questions.probes import Probe
from staytrue.evals.results.answer_store import AnswerStore, missing_samples
from staytrue.evals.results.summary import is_many
from staytrue.evals.results.verdict_store import record_server
from staytrue.evals.types import (
    CALLED_TOOLS,
    CUT_OFF,
    Answer,
    AnswerGenerator,
    CountsCalls,
    NamesServer,
    Samples,
    WritesTogether,
)
from staytrue.utils.console import Progress


def answer_missing(
    generate: AnswerGenerator,
    store: AnswerStore,
    probes: Sequence[Probe],
    seed: int,
    max_new_tokens: int,
    progress: Progress | None,
    say: Callable[[str], None],
) -> None:
    """Generate and store the missing samples, and record the server's identity if there is one.

    Nothing is shown, and no model loaded, where none is missing.

    Args:
        generate: gives the answers.
        store: holds the answers that exist, and gets the others.
        probes: the questions.
        seed: of every sample.
        max_new_tokens: most tokens of an answer, where a probe names none.
        progress: shows how many answers there are.
        say: called with a sentence when a server names another model than before, and about answers without text or
            without an end.
    """
    stored = store.answers()
    missing = [
        Samples(missing_samples(probe.samples(), stored), probe.temperature, probe.max_new_tokens or max_new_tokens)
        for probe in probes
    ]
    limits = {question: part.limit for part in missing for question, _ in part.samples}
    if not limits:
        return
    done = 0
    absent: Counter[tuple[str, int]] = Counter()  # answers that are missing, by their reason and the token limit
    cut: Counter[int] = Counter()  # of those that no exact match marks, by the token limit
    judged: Counter[int] = Counter()  # all of these
    if progress is not None:
        progress.begin(sum(len(part.samples) for part in missing), "answer")
        if isinstance(generate, WritesTogether):
            generate.report = lambda: progress.step(done, _spent(generate) | {"work": generate.work})
    try:
        for answer in _written(generate, missing, seed):
            store.append(answer)
            done += 1
            limit = limits[answer.question]
            absent[answer.missing, limit] += 1
            judged[limit] += answer.question.expected is None
            cut[limit] += answer.question.expected is None and answer.cut
            if progress is not None and not isinstance(generate, WritesTogether):
                progress.step(done, _spent(generate))
        if progress is not None:
            progress.step(done, _spent(generate))
    finally:
        _say_missing(absent, say)
        _say_cut(cut, judged, say, isinstance(generate, NamesServer))
        if done and isinstance(generate, NamesServer):
            _record_server(generate, store, say)


def _written(generate: AnswerGenerator, parts: Sequence[Samples], seed: int) -> Iterator[Answer]:
    """The answers of all samples, written side by side where the generator can."""
    if isinstance(generate, WritesTogether):
        yield from generate.together(parts, seed=seed)
        return
    for part in parts:
        yield from generate(part.samples, seed=seed, temperature=part.temperature, max_new_tokens=part.limit)


def _record_server(generate: NamesServer, store: AnswerStore, say: Callable[[str], None]) -> None:
    """Record which server answered, and say if it is another than in an earlier sitting."""
    new = record_server(store.path / "answered.json", generate.describe())
    if new:
        say(
            f"{store.path} goes on, but the server now reports {', '.join(new)}, which it did not report before. If "
            "another model is served under the name, evaluate it into another folder."
        )


def _spent(generate: AnswerGenerator) -> dict[str, float | str]:
    """Calls or tokens so far, for generators that count them."""
    return {"answers": generate.spent()} if isinstance(generate, CountsCalls) else {}


def _say_missing(absent: Mapping[tuple[str, int], int], say: Callable[[str], None]) -> None:
    """Say how many answers are missing because of the token limit and because of tool calls."""
    for (reason, limit), count in absent.items():
        if reason == CUT_OFF:
            say(
                f"{count} answers are missing because the limit of {limit} tokens was reached before they began; a "
                "reasoning model may still have been thinking. Raise the limit with --max-new-tokens, and name "
                "another folder."
            )
        elif reason == CALLED_TOOLS:
            say(
                f"{count} answers are missing because the model called tools instead of answering. Serve it without "
                "tools of the server's own, and name another folder."
            )


def _say_cut(cut: Mapping[int, int], judged: Mapping[int, int], say: Callable[[str], None], server: bool) -> None:
    """Say how many answers break off, where so many do that rates are of beginnings rather than of answers."""
    for limit, count in cut.items():
        if is_many(count, judged[limit]):
            say(
                f"{count} of {judged[limit]} answers were cut at {limit} tokens{' or by the server' * server}; "
                "only what was written is judged. Raise the limit with --max-new-tokens, and name another folder."
            )
