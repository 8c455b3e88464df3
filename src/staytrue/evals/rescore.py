"""The same stored answers under other judges: nothing is generated again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from staytrue.errors import RequestError
from staytrue.evals.evaluate import judge_probe, sum_up
from staytrue.evals.results import verdict_store
from staytrue.evals.results.answer_store import AnswerStore
from staytrue.evals.types import Judge


def rescore(path: Path, judges: Sequence[Judge], progress: Any = None) -> dict[str, dict[str, Any]]:
    """Have each judge say what every judged answer of an evaluation is worth; by judge, its summary.

    Answers with one right answer are left as they were marked. Verdicts and summaries go to `judges/NAME/`; a judge
    that was stopped goes on, and one that is done makes no call.

    Raises:
        RequestError: no evaluation there, or no answer in it that a judge could judge; two judges of one name.
    """
    store = AnswerStore(path)
    store.asked()
    probes = list(dict.fromkeys(a.question.probe for a in store.answers().values() if a.question.expected is None))
    if not probes:
        raise RequestError(f"{path} holds no answer for a judge; only answers with a right one, which are marked.")
    names = [judge.name for judge in judges]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"--judge {twice} is given twice.")
    found = {}
    for judge in judges:
        folder = verdict_store.judge_folder(path, judge.name)
        with store.alone():
            for probe in probes:
                judge_probe(store, folder, probe, judge, progress)
        found[judge.name] = sum_up(path, folder, judge.name)
    return found
