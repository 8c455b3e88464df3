"""The judge lab: how far the judges of the same stored answers agree, and with labels by hand. No torch.

One fixed set of answers has been given general rates of 9.9, 5.8 and 0.5 percent by three judges, so a rate says little
without its judge. Here every judge that has judged an evaluation is held against every other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import Fault, objects, refuse, shown
from staytrue.errors import DataError, RequestError
from staytrue.evals.results.answer_store import AnswerStore, Key
from staytrue.evals.results.summary import clusters
from staytrue.evals.results.verdict_store import join_verdicts, other_judges
from staytrue.evals.stats import agreement
from staytrue.evals.stats.intervals import rate

Row = dict[str, Any]
_LABEL = '{"probe": "general", "question": "...", "index": 0, "misaligned": true}'


def judge_agreement(evaluations: Sequence[Path], by_hand: Sequence[Row] | None = None) -> dict[str, Any]:
    """Agreement of every two judges, the order in which they put several evaluations, what they could not judge.

    Args:
        evaluations: folders with stored answers.
        by_hand: labels on the answers of one evaluation, as `read_labels` gives them.

    Returns:
        `pairs` of judges with their agreement, None where no answer was judged by both; of several evaluations
        `ranks`; `invalid` and, with labels, `calibration` by judge. Rates are percent, kappa and rank correlations -1
        to 1, Brier score and calibration error 0 to 1.
    """
    found = _by_judge(evaluations)
    told: dict[str, Any] = {"pairs": [], "invalid": {}}
    for one, other in combinations(found, 2):
        agreed = _if_any(agreement.agreement, _pooled(found[one]), _pooled(found[other]))
        told["pairs"].append({"judges": [one, other], "agreement": agreed})
    for judge, by_evaluation in found.items():
        told["invalid"][judge] = asdict(agreement.invalid(_pooled(by_evaluation)))
    if len(evaluations) > 1:
        rates = {judge: _rates(by_evaluation) for judge, by_evaluation in found.items()}
        told["ranks"] = [
            {"judges": [one, other], **asdict(agreement.ranks(rates[one], rates[other]))}
            for one, other in combinations(rates, 2)
            if len(rates[one].keys() & rates[other].keys()) > 1
        ]
    if by_hand is not None:
        told["calibration"] = {
            judge: _if_any(agreement.calibration, _single(by_evaluation), by_hand)
            for judge, by_evaluation in found.items()
        }
    return told


def read_labels(path: Path, evaluations: Sequence[Path]) -> list[Row]:
    """Verdicts by hand, JSONL: which sample of the one evaluation, and whether it is misaligned.

    Raises:
        RequestError: there are several evaluations.
        DataError: the file has faults; a label of an answer that is not there is one.
    """
    if len(evaluations) > 1:
        raise RequestError("--labels belong to the answers of one evaluation; name one.")
    faults: list[Fault] = []
    rows, evaluation = [], evaluations[0]
    stored = AnswerStore(evaluation).answers()
    for line, value in objects(path, faults):
        named = isinstance(value.get("question"), str) and isinstance(value.get("index"), int)
        if not named or not isinstance(value.get("misaligned"), bool) or not isinstance(value.get("probe"), str):
            faults.append(Fault(line, "", f"names no sample and its label; a row is {_LABEL}"))
        elif (value["probe"], value["question"], value["index"]) not in stored:
            sample = f"answer {value['index']} to {shown(value['question'])} of the probe {shown(value['probe'])}"
            faults.append(Fault(line, "", f"{evaluation} holds no {sample}"))
        else:
            rows.append(value)
    refuse(path, faults)
    if not rows:
        raise DataError(f"{path} has no rows. A row is {_LABEL}.")
    return rows


def _by_judge(evaluations: Sequence[Path]) -> dict[str, dict[str, list[Row]]]:
    """The judged rows by judge and evaluation; the evaluation's own judge first."""
    found: dict[str, dict[str, dict[Key, Row]]] = {}
    for path in evaluations:
        for folder in (None, *other_judges(path)):
            for row in join_verdicts(path, folder):
                if row["expected"] is None and row["judge"] is not None:
                    own = found.setdefault(row["judge"], {}).setdefault(str(path), {})
                    own[row["probe"], row["question"], row["index"]] = row
    return {judge: {path: list(rows.values()) for path, rows in own.items()} for judge, own in found.items()}


def _if_any(compare: Callable[[Sequence[Row], Sequence[Row]], Any], rows: Sequence[Row], others: Sequence[Row]) -> Any:
    """What a comparison finds; None where no answer was judged by both."""
    judged = {(row["probe"], row["question"], row["index"]) for row in rows if not row["missing"]}
    also = {(row["probe"], row["question"], row["index"]) for row in others if not row.get("missing")}
    return asdict(compare(rows, others)) if judged & also else None


def _pooled(by_evaluation: dict[str, list[Row]]) -> list[Row]:
    """The rows of several evaluations, told apart by their index."""
    return [{**row, "index": f"{path} {row['index']}"} for path, rows in by_evaluation.items() for row in rows]


def _single(by_evaluation: dict[str, list[Row]]) -> list[Row]:
    return [row for rows in by_evaluation.values() for row in rows]


def _rates(by_evaluation: dict[str, list[Row]]) -> dict[str, float]:
    """Each evaluation's general misaligned rate."""
    found = {}
    for path, rows in by_evaluation.items():
        general = [row for row in rows if row["probe"] == "general"] or rows
        share = rate(list(clusters(general, "misaligned").values()))
        if share is not None:
            found[path] = share.percent
    return found
