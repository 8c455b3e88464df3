"""Ask, judge, sum up: every percentage comes from stored rows, so anyone can work it out again.

A stopped evaluation goes on from what is stored, and no sample is made or judged twice; only a verdict whose call
failed is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.questions.probes import Probe, probe_sha256, version
from staytrue.evals.results.answer_store import AnswerStore, missing
from staytrue.evals.results.summary import summarise
from staytrue.evals.results.verdict_store import append_verdict, join_verdicts, read_verdicts, record_server
from staytrue.evals.types import AnswerGenerator, Judge, Verdict, judged
from staytrue.utils.run_dir import SCHEMA, write_json

NOT_JUDGED = "no judge was named"
FILTERED = "the server's filter cut it off"


def evaluate(
    make: AnswerGenerator,
    probes: Sequence[Probe],
    *,
    seed: int | None,
    out: Path,
    max_new_tokens: int = 400,
    about: Mapping[str, Any] | None = None,
    progress: Any = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Put the probes to a model; write `eval.json`, `answers.jsonl`, `verdicts.jsonl` and `summary.json` to `out`.

    Args:
        make: what answers.
        probes: what is asked, and who judges each.
        seed: of every sample, with its probe, question and index; None of answers that were there before.
        out: a new folder, or one in which the same evaluation was stopped.
        max_new_tokens: of an answer.
        about: what else must be the same for answers to stand in one folder: the model's identity.
        progress: told how many samples are ahead, and how many are there; and the cost, of what has `spent`.
        say: told that a server answers as another model than in an earlier sitting.

    Raises:
        RequestError: `out` holds another evaluation, or another judge's verdicts.
    """
    store = AnswerStore(out)
    with store.alone():
        asked = {**(about or {}), "seed": seed, "probes": _asked(probes, max_new_tokens)}
        store.allow(asked)
        for probe in probes:  # before anything is made, or paid for
            _one_judge(store, out, probe.name, probe.judge, marked=_is_marked(probe))
        store.begin(asked)
        _answer(make, store, probes, seed or 0, max_new_tokens, progress, say)
        for probe in probes:
            judge_probe(store, out, probe.name, probe.judge, progress)
        return sum_up(out, out)


def _answer(
    make: AnswerGenerator,
    store: AnswerStore,
    probes: Sequence[Probe],
    seed: int,
    max_new_tokens: int,
    progress: Any,
    say: Callable[[str], None],
) -> None:
    """Every sample that is not there yet; and who gave them, of a maker that can tell."""
    ahead = {probe.name: missing(probe.samples(), store.answers()) for probe in probes}
    if progress is not None:
        progress.begin(sum(map(len, ahead.values())))
    done, spent = 0, getattr(make, "spent", None)
    try:
        for probe in probes:
            limit = probe.max_new_tokens or max_new_tokens
            for answer in make(ahead[probe.name], seed=seed, temperature=probe.temperature, max_new_tokens=limit):
                store.keep(answer)
                done += 1
                if progress is not None:
                    progress.step(done, {"answers": spent()} if spent else {})
    finally:
        if done and hasattr(make, "told"):
            new = record_server(store.path / "answered.json", make.told())
            if new:
                say(
                    f"{store.path} goes on, but the server now says it is {', '.join(new)}, which it did not say "
                    "before. If another model is served under the name, evaluate it into another folder."
                )


def judge_probe(store: AnswerStore, folder: Path, probe: str, judge: Judge | None, progress: Any = None) -> None:
    """The verdicts of a judge on a probe's stored answers, as far as they are missing or failed, into a folder.

    The progress is told of judges that take time, which say what they have `spent`. What a server's filter took is
    missing, and nobody is asked.

    Raises:
        RequestError: another judge's verdicts stand there.
    """
    stored = {key: answer for key, answer in store.answers().items() if key[0] == probe}
    _one_judge(store, folder, probe, judge, any(answer.question.expected is not None for answer in stored.values()))
    have = {key: row for key, row in read_verdicts(folder).items() if key[0] == probe}
    name = None if judge is None else judge.name
    done = {key for key, row in have.items() if judge is None or (not row["failed"] and row["judge"] == name)}
    for key, answer in stored.items():
        if answer.filtered and key not in have:
            append_verdict(folder, answer, Verdict(missing=FILTERED), None)
    answers = [answer for key, answer in stored.items() if key not in done and not answer.filtered]
    if judge is None:
        for answer in answers:
            append_verdict(folder, answer, Verdict(missing=NOT_JUDGED), None)
        return
    spent = getattr(judge, "spent", None) if progress is not None else None
    if spent and answers:
        progress.begin(len(answers))
    try:
        for number, (answer, verdict) in enumerate(judged(judge, answers), start=1):
            append_verdict(folder, answer, verdict, judge.name)
            if spent:
                progress.step(number, {"verdicts": spent()})
    finally:
        if answers and hasattr(judge, "told"):
            record_server(folder / "judge.json", judge.told())


def _one_judge(store: AnswerStore, folder: Path, probe: str, judge: Judge | None, marked: bool) -> None:
    """Refuse a second judge in one folder: on the probe's answers; on any judged one, if its own are not marked."""
    have = read_verdicts(folder)
    if judge is None or not have:
        return
    judged_ones = set() if marked else {k for k, a in store.answers().items() if a.question.expected is None}
    for key, row in have.items():
        if (key[0] == probe or key in judged_ones) and row["judge"] not in (None, judge.name):
            raise RequestError(
                f"{folder} holds verdicts of {row['judge']} on {key[0]!r}, and {probe!r} would be judged by "
                f"{judge.name}. `staytrue rescore` judges the same answers by another judge, beside them."
            )


def _is_marked(probe: Probe) -> bool:
    return any(question.expected is not None for question in probe.questions)


def sum_up(path: Path, folder: Path, judge: str | None = None) -> dict[str, Any]:
    """Write `summary.json` to a judge's folder, from the stored rows alone."""
    asked = AnswerStore(path).asked()
    summary = {"schema": SCHEMA, "seed": asked["seed"], "probes": summarise(join_verdicts(path, judge), samples(asked))}
    write_json(folder / "summary.json", summary)
    return summary


def samples(asked: Mapping[str, Any]) -> dict[str, int]:
    """How many answers each probe was to have, from what `eval.json` says."""
    return {name: probe["samples"] for name, probe in asked["probes"].items()}


def _asked(probes: Sequence[Probe], max_new_tokens: int) -> dict[str, Any]:
    named = [probe.name for probe in probes]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"Two probes are called {twice!r}; rename one of the question files.")
    return {probe.name: _about(probe, max_new_tokens) for probe in probes}


def _about(probe: Probe, max_new_tokens: int) -> dict[str, Any]:
    """What is asked, and how it is sampled; of answers that were there before, nobody knows how."""
    asked: dict[str, Any] = {"sha256": probe_sha256(probe.questions), "questions": len(probe.questions)}
    shipped = version(probe)
    if shipped is not None:
        asked["version"] = shipped
    asked["samples"] = len(probe.samples())
    if probe.of_each:
        return asked
    drawn = {"temperature": probe.temperature, "max_new_tokens": probe.max_new_tokens or max_new_tokens}
    return asked | {"per_question": probe.per_question} | drawn
