"""From probes to rates: a model answers, judges judge, and a summary is computed from the stored rows alone.

A stopped evaluation goes on from what is stored. No sample is generated or judged twice, except that a failed call to a
judge is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.missing_answers import answer_missing
from staytrue.evals.questions.probes import Probe, probe_sha256
from staytrue.evals.questions.shipped_questions import version
from staytrue.evals.results.answer_store import AnswerStore, eval_command, missing_samples
from staytrue.evals.results.measures import read_measures, summaries
from staytrue.evals.results.summary import summarise
from staytrue.evals.results.verdict_store import (
    append_verdict,
    join_verdicts,
    judge_folder,
    read_verdicts,
    record_server,
)
from staytrue.evals.types import (
    Answer,
    AnswerGenerator,
    ChecksItself,
    CountsCalls,
    Judge,
    NamesServer,
    Verdict,
    judged,
)
from staytrue.utils.console import Progress
from staytrue.utils.files import write_json
from staytrue.utils.run_dir import SCHEMA

NOT_JUDGED = "no judge was named"


def evaluate(
    generate: AnswerGenerator,
    probes: Sequence[Probe],
    *,
    seed: int | None,
    out: Path,
    max_new_tokens: int = 400,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Ask a model probes; write `eval.json`, `answers.jsonl`, `verdicts.jsonl` and `summary.json` to `out`.

    Args:
        generate: gives the answers.
        probes: the questions, and the judge of each probe.
        seed: of every sample, together with its probe, question and index; None for answers that existed before.
        out: a new folder, or one in which the same evaluation was stopped.
        max_new_tokens: most tokens of an answer.
        about: what else must be equal for answers to share a folder: the model's identity.
        progress: shows how many answers and verdicts there are.
        say: called with a sentence when a server names another model than in an earlier sitting, or when the token
            limit cuts answers off before they begin.

    Returns:
        What `summary.json` holds; rates are percent, 0 to 100.

    Raises:
        RequestError: `out` holds another evaluation, or another judge's verdicts.
    """
    store = AnswerStore(out)
    with store.lock():
        # refused before anything is generated or paid for
        metadata = refuse_other_evaluation(out, probes, seed=seed, max_new_tokens=max_new_tokens, about=about)
        store.begin(metadata)
        try_judges(out, probes)
        answer_missing(generate, store, probes, seed or 0, max_new_tokens, progress, say)
        _judge_probes(store, out, {probe.name: probe.judge for probe in probes}, progress)
        return write_summary(out, out)


def refuse_other_evaluation(
    out: Path, probes: Sequence[Probe], *, seed: int | None, max_new_tokens: int, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Refuse a folder whose answers could not stand beside these; the arguments are those of `evaluate`.

    Returns:
        What `eval.json` will hold of this evaluation.

    Raises:
        RequestError: `out` holds another evaluation, or another judge's verdicts.
    """
    store = AnswerStore(out)
    metadata = {**(about or {}), "seed": seed, "probes": _probes_metadata(probes, max_new_tokens)}
    store.merge(metadata)
    for probe in probes:
        _refuse_second_judge(store, out, probe.name, probe.judge, marked=_is_marked(probe))
    return metadata


def try_judges(out: Path, probes: Sequence[Probe]) -> None:
    """Try each judge of answers that are still to be sampled, before the model is loaded or paid for them.

    Args:
        out: the evaluation's folder, which may not exist yet.
        probes: the questions, and the judge of each probe.

    Raises:
        RequestError: a judge cannot judge, such as for a wrong key.
    """
    known = (out / "eval.json").exists()  # answers of an unknown model are refused later, and not read here
    stored = AnswerStore(out).answers() if known else {}
    judges = {id(probe.judge): probe.judge for probe in probes if missing_samples(probe.samples(), stored)}
    _try(judges.values())


def _try(judges: Iterable[Judge | None]) -> None:
    for judge in judges:
        if isinstance(judge, ChecksItself):
            judge.check()


def rescore(evaluation: Path, judges: Sequence[Judge], progress: Progress | None = None) -> dict[str, dict[str, Any]]:
    """Have other judges judge the stored answers of an evaluation; nothing is generated again.

    Answers with one right answer keep their marks. Verdicts and summaries go to `judges/NAME/`. A judge that was
    stopped goes on, and one that has finished makes no call. The others are tried first, as in `evaluate`.

    Args:
        evaluation: its folder.
        judges: each judges all answers.
        progress: as for `evaluate`.

    Returns:
        Each judge's summary, by the judge's name.

    Raises:
        RequestError: there is no evaluation, or no answer for a judge; a judge cannot judge; or two have one name.
    """
    store = AnswerStore(evaluation)
    store.metadata()
    probes = list(dict.fromkeys(a.question.probe for a in store.answers().values() if a.question.expected is None))
    if not probes:
        raise RequestError(
            f"{evaluation} has no answer for a judge: {nothing_to_judge(store)}; {eval_command(evaluation, 'general')} "
            "makes answers."
        )
    if repeated := _first_repeated([judge.name for judge in judges]):
        raise RequestError(f"--judge {repeated} is given twice.")
    folders = [(judge, judge_folder(evaluation, judge.name)) for judge in judges]
    _try(judge for judge, folder in folders if any(_unjudged(store, folder, probe, judge) for probe in probes))
    summaries = {}
    for judge, folder in folders:
        with store.lock():
            _judge_probes(store, folder, dict.fromkeys(probes, judge), progress)
        summaries[judge.name] = write_summary(evaluation, folder, judge.name)
    return summaries


def nothing_to_judge(store: AnswerStore) -> str:
    """Return why an evaluation has no answer for a judge, as a part of a sentence."""
    if store.answers():
        return "its questions have one right answer each and are marked by exact match"
    if measures := read_measures(store.path):
        return f"it has measures alone ({', '.join(measures)}), which no judge reads"
    return "it was stopped before the first one"


def sample_counts(metadata: Mapping[str, Any]) -> dict[str, int]:
    """How many answers each probe should have, by the metadata in `eval.json`; without a number it is left out."""
    return {name: probe["samples"] for name, probe in metadata["probes"].items() if "samples" in probe}


def _judge_probes(
    store: AnswerStore, folder: Path, judges: Mapping[str, Judge | None], progress: Progress | None = None
) -> None:
    """Add the missing and failed verdicts on the stored answers of probes to a folder.

    Progress is shown for judges that count their calls or are slow, over the answers of all their probes together.

    Raises:
        RequestError: the folder holds another judge's verdicts.
    """
    slow = {name: judge for name, judge in judges.items() if isinstance(judge, CountsCalls) or _is_slow(judge)}
    many = {name: len(_unjudged(store, folder, name, judge)) for name, judge in slow.items()}
    if progress is not None and any(many.values()):
        progress.begin(sum(many.values()), "verdict")
    done = 0
    for name, judge in judges.items():
        _judge_probe(store, folder, name, judge, progress if name in slow else None, done)
        done += many.get(name, 0)


def _is_slow(judge: Judge | None) -> bool:
    return getattr(judge, "slow", False)


def _judge_probe(
    store: AnswerStore, folder: Path, probe: str, judge: Judge | None, progress: Progress | None, done: int
) -> None:
    """Add a judge's missing and failed verdicts on a probe's stored answers to a folder.

    An answer that a server's filter removed, or that the token limit cut off before it began, is missing, and no judge
    reads it.

    Args:
        store: the stored answers.
        folder: for the verdicts.
        probe: its name.
        judge: None stores the answers as not judged.
        progress: notified of each verdict.
        done: verdicts on other probes' answers, before these.

    Raises:
        RequestError: the folder holds another judge's verdicts.
    """
    stored = {key: answer for key, answer in store.answers().items() if key[0] == probe}
    _refuse_second_judge(store, folder, probe, judge, any(a.question.expected is not None for a in stored.values()))
    have = read_verdicts(folder)
    for key, answer in stored.items():
        if answer.missing and key not in have:
            append_verdict(folder, answer, Verdict(missing=answer.missing), None)
    answers = _unjudged(store, folder, probe, judge)
    if judge is None:
        for answer in answers:
            append_verdict(folder, answer, Verdict(missing=NOT_JUDGED), None)
        return
    try:
        for number, (answer, verdict) in enumerate(judged(judge, answers), start=done + 1):
            append_verdict(folder, answer, verdict, judge.name)
            if progress is not None:
                progress.step(number, {"verdicts": judge.spent()} if isinstance(judge, CountsCalls) else {})
    finally:
        if answers and isinstance(judge, NamesServer):
            record_server(folder / "judge.json", judge.describe())


def _unjudged(store: AnswerStore, folder: Path, probe: str, judge: Judge | None) -> list[Answer]:
    """The answers to a probe that a judge has still to judge; without a judge, those without a row."""
    name = None if judge is None else judge.name
    have = read_verdicts(folder).items()
    done = {key for key, row in have if judge is None or (not row["failed"] and row["judge"] == name)}
    stored = store.answers().items()
    return [answer for key, answer in stored if key[0] == probe and key not in done and not answer.missing]


def _refuse_second_judge(store: AnswerStore, folder: Path, probe: str, judge: Judge | None, marked: bool) -> None:
    """Refuse a second judge in one folder: on the probe's answers, or on any judged ones if the probe is judged too."""
    have = read_verdicts(folder)
    if judge is None or not have:
        return
    judged_keys = set() if marked else {k for k, a in store.answers().items() if a.question.expected is None}
    for key, row in have.items():
        if (key[0] == probe or key in judged_keys) and row["judge"] not in (None, judge.name):
            raise RequestError(
                f"{folder} holds verdicts of {row['judge']} on {key[0]!r}, and {probe!r} would be judged by "
                f"{judge.name}. `staytrue rescore` judges the same answers by another judge, beside them."
            )


def _is_marked(probe: Probe) -> bool:
    return any(question.expected is not None for question in probe.questions)


def write_summary(evaluation: Path, folder: Path, judge: str | None = None) -> dict[str, Any]:
    """Write `summary.json` to a judge's folder, from the stored rows alone."""
    metadata = AnswerStore(evaluation).metadata()
    probes = summarise(join_verdicts(evaluation, judge), sample_counts(metadata))
    summary: dict[str, Any] = {"schema": SCHEMA, "seed": metadata.get("seed"), "probes": probes}
    if measures := summaries(evaluation):
        summary["measures"] = measures
    write_json(folder / "summary.json", summary)
    return summary


def _probes_metadata(probes: Sequence[Probe], max_new_tokens: int) -> dict[str, Any]:
    """The entry of each probe in `eval.json`."""
    if repeated := _first_repeated([probe.name for probe in probes]):
        raise RequestError(f"Two probes are called {repeated!r}; rename one of the question files.")
    return {probe.name: _probe_metadata(probe, max_new_tokens) for probe in probes}


def _probe_metadata(probe: Probe, max_new_tokens: int) -> dict[str, Any]:
    """The questions and how answers are sampled; how answers of a file were sampled is not known."""
    metadata: dict[str, Any] = {"sha256": probe_sha256(probe.questions), "questions": len(probe.questions)}
    if (shipped := version(probe)) is not None:
        metadata["version"] = shipped
    metadata["samples"] = len(probe.samples())
    if probe.of_each:
        return metadata
    sampling = {"temperature": probe.temperature, "max_new_tokens": probe.max_new_tokens or max_new_tokens}
    return metadata | {"per_question": probe.per_question} | sampling


def _first_repeated(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
