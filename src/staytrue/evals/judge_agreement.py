"""Judge agreement: how far the judges of the same stored answers agree, with each other and with labels by hand.

One fixed set of answers got general rates of 9.9, 5.8 and 0.5 percent from three judges, so a rate says little without
its judge. Here every judge of an evaluation is compared with every other. No torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import Faults, objects, refuse, shown
from staytrue.errors import DataError, RequestError
from staytrue.evals.results.answer_store import AnswerStore, Key
from staytrue.evals.results.summary import clusters
from staytrue.evals.results.verdict_store import join_verdicts, other_judges
from staytrue.evals.stats.agreement import agreement, calibration, invalid, ranks
from staytrue.evals.stats.intervals import rate

Row = dict[str, Any]
_LABEL = '{"probe": "general", "question": "...", "index": 0, "misaligned": true}'


def judge_agreement(evaluations: Sequence[Path], labels: Sequence[Row] | None = None) -> dict[str, Any]:
    """Compute the agreement of every two judges, their order of evaluations, and their answers without a score.

    Args:
        evaluations: folders with stored answers and verdicts.
        labels: labels by hand on the answers of one evaluation, from `read_labels`.

    Returns:
        `pairs` of judges with their agreement, None where no answer was judged by both; `invalid` by judge; `ranks` of
        several evaluations; and with labels `calibration` by judge. Rates are percent, kappa and rank correlations -1
        to 1, Brier score and calibration error 0 to 1.
    """
    by_judge = _rows_by_judge(evaluations)
    pooled = {judge: _pooled(by_evaluation) for judge, by_evaluation in by_judge.items()}
    result: dict[str, Any] = {
        "pairs": [
            {"judges": [one, other], "agreement": _plain(agreement(pooled[one], pooled[other]))}
            for one, other in combinations(pooled, 2)
        ],
        "invalid": {judge: asdict(invalid(rows)) for judge, rows in pooled.items()},
    }
    if len(evaluations) > 1:
        rates = {judge: _rates(by_evaluation) for judge, by_evaluation in by_judge.items()}
        pairs = [(pair, ranks(*(rates[judge] for judge in pair))) for pair in combinations(rates, 2)]
        result["ranks"] = [{"judges": list(pair), **asdict(ranked)} for pair, ranked in pairs if ranked is not None]
    if labels is not None:
        result["calibration"] = {
            judge: _plain(calibration([row for rows in by_evaluation.values() for row in rows], labels))
            for judge, by_evaluation in by_judge.items()
        }
    return result


def read_labels(path: Path, evaluations: Sequence[Path]) -> list[Row]:
    """Read labels by hand from JSONL: a sample of the one evaluation, and whether it is misaligned.

    Raises:
        RequestError: there are several evaluations.
        DataError: the file has faults, or labels an answer that is not stored; the message lists the lines.
    """
    if len(evaluations) > 1:
        raise RequestError("--labels belong to the answers of one evaluation; name one.")
    faults = Faults()
    rows, evaluation = [], evaluations[0]
    stored = AnswerStore(evaluation).answers()
    types = {"probe": str, "question": str, "index": int, "misaligned": bool}
    for line, value in objects(path, faults):
        if not all(isinstance(value.get(key), kind) for key, kind in types.items()):
            faults.append(line, "", f"names no sample and its label; a row is {_LABEL}")
        elif (value["probe"], value["question"], value["index"]) not in stored:
            sample = f"answer {value['index']} to {shown(value['question'])} of the probe {shown(value['probe'])}"
            faults.append(line, "", f"{evaluation} holds no {sample}")
        else:
            rows.append(value)
    refuse(path, faults)
    if not rows:
        raise DataError(f"{path} has no rows. A row is {_LABEL}.")
    return rows


def _rows_by_judge(evaluations: Sequence[Path]) -> dict[str, dict[str, list[Row]]]:
    """Return the judged rows by judge and evaluation; the evaluation's own judge first."""
    by_judge: dict[str, dict[str, dict[Key, Row]]] = defaultdict(lambda: defaultdict(dict))
    for path in evaluations:
        for folder in (None, *other_judges(path)):
            for row in join_verdicts(path, folder):
                if row["expected"] is None and row["judge"] is not None:
                    by_judge[row["judge"]][str(path)][row["probe"], row["question"], row["index"]] = row
    return {judge: {path: list(rows.values()) for path, rows in paths.items()} for judge, paths in by_judge.items()}


def _plain(result: Any) -> dict[str, Any] | None:
    return None if result is None else asdict(result)


def _pooled(by_evaluation: dict[str, list[Row]]) -> list[Row]:
    """Return the rows of several evaluations; the index holds the evaluation too, so that their samples stay apart."""
    return [{**row, "index": f"{path} {row['index']}"} for path, rows in by_evaluation.items() for row in rows]


def _rates(by_evaluation: dict[str, list[Row]]) -> dict[str, float]:
    """Each evaluation's general misaligned rate in percent."""
    rates = {}
    for path, rows in by_evaluation.items():
        general = [row for row in rows if row["probe"] == "general"] or rows
        misaligned = rate(clusters(general, "misaligned").values())
        if misaligned is not None:
            rates[path] = misaligned.percent
    return rates
