"""The commands `rescore`, `compare` and `export`: they read stored answers, and generate none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from staytrue.commands.options import (
    JUDGE,
    Json,
    MaxCalls,
    MaxCost,
    Price,
    budget_of,
    judge_of,
    report_spending,
    stoppable,
)
from staytrue.errors import RequestError
from staytrue.utils.console import tell

if TYPE_CHECKING:
    from staytrue.evals.openai_client.budget import Budget
    from staytrue.evals.types import Judge


def rescore(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders of `staytrue eval`, runs, or whole studies.")],
    judge: Annotated[list[str], typer.Option(help=f"Who judges: {JUDGE}. Repeatable.")],
    labels: Annotated[Path | None, typer.Option(help="JSONL of labels by hand, to compare the judges with.")] = None,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: Price = None,
    as_json: Json = False,
) -> None:
    """Judge stored answers again, and compare the judges.

    The judges are compared with each other and with labels by hand.
    """
    from staytrue.evals.answer_and_judge import rescore as rescore_answers
    from staytrue.evals.judge_agreement import judge_agreement, read_labels
    from staytrue.report.terminal import show_judge_agreement, show_judges
    from staytrue.utils.console import bar, quieten

    folders = list(dict.fromkeys(folder for path in evaluations for folder in _evaluations(path)))
    quieten()
    with stoppable("give the same command again, and it goes on"):
        judges = _judges(judge, budget_of(max_calls, max_cost, price, *judge), folders)
        hand_labels = None if labels is None else read_labels(labels, folders)  # before anything is paid for
        with bar("rescore", quiet=as_json) as progress:
            summaries = {str(folder): rescore_answers(folder, judges, progress) for folder in folders}
        for one in judges:
            report_spending(one)
        agreement = judge_agreement(folders, hand_labels)
    if as_json:
        print(json.dumps({"evaluations": summaries, **agreement}))
        return
    show_judges(summaries)
    show_judge_agreement(agreement)


def _evaluations(named: Path) -> list[Path]:
    """The evaluations of a study, or the one of a run."""
    from staytrue.evals.results.answer_store import evaluation_folder
    from staytrue.report.comparison import evaluations

    if not (named / "results.json").exists():
        return [evaluation_folder(named)]
    return [folder for folder, *_ in evaluations([named]).places]


def _judges(names: Sequence[str], budget: Budget, folders: Sequence[Path]) -> list[Judge]:
    """The judges of these names; `rules` is refused for answers of another model than the organism."""
    from staytrue.evals.results.answer_store import AnswerStore
    from staytrue.runs.probe_selection import refuse_rules

    judges = [judge_of(name, budget) for name in names]
    for folder in folders:
        refuse_rules(judges, AnswerStore(folder).model_name())
    return judges


def compare(
    folders: Annotated[list[Path], typer.Argument(help="A study's folder, or several evaluations or runs.")],
    against: Annotated[
        str, typer.Option(help="The defense, or run, to compare with, as tables name it, or its folder.")
    ] = "none",
    probe: Annotated[str, typer.Option(help="Which probe's answers, or which measure.")] = "general",
    judge: Annotated[
        str | None, typer.Option(help="Use this judge's verdicts, by the name that `rescore` shows.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare defenses on the same questions and seeds.

    p values are corrected for the number of comparisons.
    """
    from staytrue.evals.results.measures import LEAK, is_measure
    from staytrue.report import comparison, measure_comparison

    if is_measure(probe) and judge is not None:
        raise RequestError(f"--probe {probe} is measured without a judge; leave --judge out.")
    if is_measure(probe) and probe != LEAK:
        compared = measure_comparison.compare_measures(folders, against, probe)
        show = measure_comparison.show
    else:
        compared, show = comparison.compare_runs(folders, against, probe, judge), comparison.show
    if not as_json:
        show(compared)
        return
    print(json.dumps(compared.lines))
    for note in compared.notes:
        tell(note)


def export(
    evaluation: Annotated[Path, typer.Argument(help="A folder of answers made by `staytrue eval`, or a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the logs, one a probe.")],
    judge: Annotated[
        str | None, typer.Option(help="Use this judge's verdicts, by the name that `rescore` shows.")
    ] = None,
) -> None:
    """Write an evaluation as Inspect logs."""
    from staytrue.evals.answer_and_judge import nothing_to_judge, sample_counts
    from staytrue.evals.inspect import export
    from staytrue.evals.inspect.log_folder import refuse_other_files
    from staytrue.evals.results.answer_store import AnswerStore, eval_command, evaluation_folder
    from staytrue.evals.results.summary import summarise
    from staytrue.evals.results.verdict_store import join_verdicts
    from staytrue.utils.console import say

    refuse_other_files(out)
    folder = evaluation_folder(evaluation)
    AnswerStore(folder).model_name()  # a damaged one is refused before anything is written
    metadata, rows = AnswerStore(folder).metadata("made"), join_verdicts(folder, judge)
    if not rows:
        why = nothing_to_judge(AnswerStore(folder))
        raise RequestError(f"{folder} has no answer to export: {why}; {eval_command(folder, 'general')} makes answers.")
    summary = {"probes": summarise(rows, sample_counts(metadata))}
    for path in export.export(rows, summary, metadata, out, evaluated_at=datetime.fromisoformat(metadata["made"])):
        say(str(path))
