"""Export of an evaluation as Inspect logs, one file a probe. Imports no inspect_ai.

The format is `EvalLog`, schema version 2, as inspect_ai 0.3.285 writes and reads it
(https://inspect.aisi.org.uk/eval-logs.html), so `inspect view` and `read_eval_log` open the files. Rates are in
Inspect's unit, 0 to 1, with `low` and `high` for the 95 % interval. Our summary, in percent, is in the results'
metadata. An answer that could not be judged has the value NaN, which is Inspect's *not scored*.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from staytrue.evals.results.summary import MARKED, SCORED
from staytrue.utils.files import write_atomic
from staytrue.utils.run_dir import versions

SCORER = "verdict"
SCALES = ("alignment", "coherence")  # 0 to 100
_VERSION = 2
_MEAN = [{"name": "inspect_ai/mean", "options": {}}]

Row = Mapping[str, Any]


def export(
    rows: Sequence[Row], summary: Mapping[str, Any], metadata: Mapping[str, Any], out: Path, *, evaluated_at: datetime
) -> list[Path]:
    """Write a log for each probe; the same evaluation gives the same files.

    Args:
        rows: answers joined with their verdicts.
        summary: what `summary.json` holds of the same rows.
        metadata: what `eval.json` holds.
        out: the folder; logs of the same evaluation in it are replaced.
        evaluated_at: time of the evaluation, with a time zone; Inspect finds and sorts logs by it.

    Returns:
        The paths of the logs.
    """
    probes: dict[str, list[Row]] = {}
    for row in rows:
        probes.setdefault(row["probe"], []).append(row)
    created = evaluated_at.astimezone(UTC).isoformat(timespec="seconds")
    paths = []
    for probe, answers in probes.items():
        log = _log(probe, answers, summary["probes"][probe], metadata, created)
        name = re.sub(r"[^A-Za-z0-9.]+", "-", log["eval"]["task"])  # Inspect splits a file's name at underscores
        path = out / f"{created.replace(':', '-')}_{name}_{log['eval']['eval_id']}.json"
        write_atomic(path, json.dumps(log, ensure_ascii=False, indent=1) + "\n")
        paths.append(path)
    return paths


def score(row: Row) -> dict[str, Any]:
    """Convert a row's verdict to the fields of Inspect's `Score`: value, explanation, reason and metadata."""
    about = {"metadata": {"judge": row["judge"]}}
    if row["missing"]:
        why = "scoring_failed" if row["judge"] is None else "grader_failed"
        return {"value": float("nan"), "explanation": row["missing"], "reason": why} | about
    kinds = SCORED if row["correct"] is None else MARKED
    value = {kind: row[kind] for kind in kinds}
    if kinds is SCORED:
        value |= {scale: float("nan") if row[scale] is None else row[scale] for scale in SCALES}
    return {
        "value": value,
        "explanation": row["reason"] or None,
        "reason": "refusal" if row["refused"] else None,
    } | about


def _log(probe: str, rows: Sequence[Row], summary: Row, metadata: Mapping[str, Any], created: str) -> dict[str, Any]:
    ids = list(dict.fromkeys(row["question"] for row in rows))
    sampling = metadata["probes"].get(probe, {})
    kinds = MARKED if rows[0]["expected"] is not None else (*SCORED, *SCALES)
    model = metadata["model"]["name"] if "model" in metadata else "stored answers"
    about = {key: value for key, value in metadata.items() if key != "probes"}
    run = _id(created, json.dumps(metadata, sort_keys=True))
    return {
        "version": _VERSION,
        "status": "success",
        "eval": {
            "eval_id": _id(run, probe, str(summary["judge"])),
            "run_id": run,
            "created": created,
            "task": f"staytrue_{probe}",
            "task_id": _id(probe, sampling.get("sha256", "")),
            "task_version": 0,
            "dataset": {"name": probe, "samples": len(ids), "sample_ids": ids, "shuffled": False},
            "model": model,
            "config": {"epochs": max(row["index"] for row in rows) + 1},
            "packages": {"staytrue": versions()["staytrue"]},
            "metadata": {"judge": summary["judge"], "asked": about},
            "scorers": [{"name": SCORER, "options": {}, "metrics": dict.fromkeys(kinds, _MEAN)}],
        },
        "plan": {
            "name": "plan",
            "steps": [{"solver": "generate", "params": {}, "params_passed": {}}],
            "config": {"temperature": sampling.get("temperature"), "max_tokens": sampling.get("max_new_tokens")},
        },
        "results": _results(rows, summary, kinds),
        "stats": {"started_at": created, "completed_at": created},  # the duration is not stored; the viewer needs both
        "samples": [_sample(row, model) for row in rows],
    }


def _results(rows: Sequence[Row], summary: Row, kinds: Sequence[str]) -> dict[str, Any]:
    """Return the summary's rates as Inspect's metrics, and the mean of each scale."""
    scores = []
    for kind in kinds:
        if kind in SCALES:
            values = [row[kind] for row in rows if row[kind] is not None and not row["missing"]]
            n, metrics = len(values), {"mean": sum(values) / len(values)} if values else {}
        else:
            rates = {"mean": summary[kind]} | ({k: summary[k] for k in ("low", "high")} if kind == kinds[0] else {})
            n, metrics = summary["n"], {name: value / 100 for name, value in rates.items() if value is not None}
        named = {name: {"name": name, "value": value, "params": {}} for name, value in metrics.items()}
        counts = {"scored_samples": n, "unscored_samples": len(rows) - n}
        scores.append({"name": kind, "scorer": SCORER, **counts, "params": {}, "metrics": named})
    return {
        "total_samples": len(rows),
        "completed_samples": len(rows),
        "scores": scores,
        "headline": {"scorer": SCORER, "score": kinds[0], "metric": "mean"},
        "metadata": {"staytrue": dict(summary)},
    }


def _sample(row: Row, model: str) -> dict[str, Any]:
    turns = [{"role": m["role"], "content": m["content"], "source": "input"} for m in row["messages"]]
    answer = {"role": "assistant", "content": row["answer"], "source": "generate", "model": model}
    stopped = "content_filter" if row.get("filtered") else "stop" if row["stopped"] else "max_tokens"
    return {
        "id": row["question"],
        "epoch": row["index"] + 1,
        "input": turns,
        "target": row["expected"] or "",
        "messages": [*turns, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": stopped}],
            "completion": row["answer"],
        },
        "scores": {SCORER: {"answer": row["answer"]} | score(row)},
        "metadata": {"group": row.get("group") or row["question"], "form": row["form"], "topic": row["topic"]},
    }


def _id(*parts: str) -> str:
    """Return an identifier of 22 hex digits, as long as Inspect's own."""
    return sha256("\0".join(parts).encode()).hexdigest()[:22]
