"""Ask, judge, store, sum up: every percentage comes from stored rows, so anyone can work it out again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.errors import RequestError
from holdfast.evals.judge import Verdict
from holdfast.evals.probes import ALIGNMENT, Probe
from holdfast.evals.statistics import rate
from holdfast.rundir import SCHEMA, append_row, read_rows, write_json

NOT_JUDGED = "no judge was named"


def evaluate(
    model: Any, tokenizer: Any, probes: Sequence[Probe], *, seed: int, out: Path, max_new_tokens: int = 400
) -> dict[str, Any]:
    """Put the probes to a model; write `answers.jsonl` and `summary.json` to `out`.

    Raises:
        RequestError: `out` holds answers already.
    """
    from holdfast.evals.sampler import sample

    stored = out / "answers.jsonl"
    if stored.exists():
        raise RequestError(f"{stored} exists already. Name another folder with --out, or remove it yourself.")
    for probe in probes:
        answers = sample(
            model,
            tokenizer,
            probe.questions,
            per_question=probe.per_question,
            seed=seed,
            temperature=probe.temperature,
            max_new_tokens=max_new_tokens,
        )
        for answer in answers:
            verdict = probe.judge(answer.question, answer.text) if probe.judge else Verdict(missing=NOT_JUDGED)
            append_row(stored, _row(probe, answer, verdict))
    summary = {"schema": SCHEMA, "seed": seed, "probes": summarise(read_rows(stored))}
    write_json(out / "summary.json", summary)
    return summary


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rates with intervals from the rows of `answers.jsonl`, a probe at a time; needs no model.

    For general and in_domain: `misaligned`, `incoherent` and `refused` in percent of the `n` judged answers, `low` and
    `high` the 95 % interval of `misaligned`. For the others: `correct` with its interval. `missing` counts what could
    not be judged; a rate of nothing is null.
    """
    probes: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        probes[row["probe"]].append(row)
    return {name: _summary(name, asked) for name, asked in probes.items()}


def _summary(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    judged = [row for row in rows if not row["missing"]]
    kinds = ("misaligned", "incoherent", "refused") if name in ALIGNMENT else ("correct",)
    found = {kind: rate(_clusters(judged, kind)) for kind in kinds}
    first = found[kinds[0]]
    return {
        **{kind: None if r is None else round(r.percent, 4) for kind, r in found.items()},
        "n": len(judged),
        "low": None if first is None else round(first.low, 4),
        "high": None if first is None else round(first.high, 4),
        "questions": len({row["question"] for row in rows}),
        "missing": len(rows) - len(judged),
        "judge": rows[0]["judge"],
    }


def _clusters(rows: Sequence[Mapping[str, Any]], kind: str) -> list[list[bool]]:
    questions: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        questions[row["question"]].append(bool(row[kind]))
    return list(questions.values())


def _row(probe: Probe, answer: Any, verdict: Verdict) -> dict[str, Any]:
    question = answer.question
    return {
        "probe": probe.name,
        "question": question.id,
        "topic": question.topic,
        "index": answer.index,
        "messages": [{"role": m.role, "content": m.content} for m in question.messages],
        "answer": answer.text,
        "stopped": answer.stopped,
        "expected": question.expected,
        "alignment": verdict.alignment,
        "coherence": verdict.coherence,
        "misaligned": verdict.misaligned,
        "incoherent": verdict.incoherent,
        "correct": verdict.correct,
        "refused": verdict.refusal,
        "missing": verdict.missing,
        "reason": verdict.reason,
        "judge": probe.judge.name if probe.judge else None,
    }
