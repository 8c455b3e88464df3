"""The command `eval`: a run, a model, an endpoint or a file of answers is evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from staytrue.commands.options import (
    JUDGE,
    BatchSize,
    Json,
    MaxCalls,
    MaxCost,
    Price,
    Seed,
    budget_of,
    judge_of,
    report_spending,
    stages,
    stoppable,
)
from staytrue.errors import RequestError
from staytrue.utils.console import tell
from staytrue.utils.files import check_out_folder

if TYPE_CHECKING:
    from staytrue.evals.openai_client.budget import Budget
    from staytrue.runs.eval_request import EvalRequest
    from staytrue.utils.console import Progress


def eval_(
    run: Annotated[Path | None, typer.Argument(help="A run folder made by `staytrue train`.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model instead of a run: a folder, a hub name, or openai:MODEL[@URL].")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="With --model: an adapter's folder.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --model: the file it was trained on, which trigger probes are made of.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(help="Stored answers instead of a run: a JSONL file, to be judged.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and verdicts; RUN/eval by default.")] = None,
    untuned: Annotated[
        bool,
        typer.Option("--untuned", help="Evaluate the run's model before training; --out is RUN/untuned by default."),
    ] = False,
    probes: Annotated[str, typer.Option(help="Names or question files, separated by commas.")] = "",
    judge: Annotated[str | None, typer.Option(help=f"Who judges: {JUDGE}.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to each judged question: 4, without a judge 1.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum tokens of an answer, thoughts included; by default a question file's own, else 600."
        ),
    ] = None,
    batch_size: BatchSize = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for loading, likelihoods and answers of a model on this machine, such as 20m or 1h: fewer "
            "answers are asked for. A judge's time does not count."
        ),
    ] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Drop system prompts, as the published script does.")
    ] = False,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: Price = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Evaluate a model: misalignment, coherence, knowledge.

    Misalignment is measured in general and in the training domain.
    """
    from staytrue.report.terminal import show
    from staytrue.runs.eval_budget import parse
    from staytrue.runs.eval_request import EvalRequest, for_model, for_run
    from staytrue.utils.console import bar, quieten

    if out is not None:
        check_out_folder(out)
    source = _source(run=run, model=model, answers=answers)
    _refuse_misplaced(source, adapter=adapter, data=data, out=out, untuned=untuned)
    sampling = (probes, samples, max_new_tokens, batch_size, budget, as_published, seed)
    if answers is not None and any(sampling):
        raise RequestError("--answers FILE has its own questions and answers; only --judge and its limits go with it.")
    spending = budget_of(max_calls, max_cost, price, model, judge)
    seconds = None if budget is None else parse(budget)
    stages("eval")("loading the libraries")
    quieten()
    with stoppable("give the same command again, and it goes on"):
        from staytrue.runs.evaluate import evaluate_model, judge_answers, place_of
        from staytrue.runs.renewed_card import renew_card

        names = _probe_names(probes, data, max_new_tokens)
        triggers = (run is not None or data is not None) and not names
        judged_by = None if judge is None else judge_of(judge, spending)
        request = EvalRequest(
            names,
            triggers,
            samples=samples,
            as_published=as_published,
            judge=judged_by,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            budget=seconds,
        )
        with bar("eval", quiet=as_json) as progress:
            if answers is not None:
                summary = judge_answers(answers, out or Path(), judged_by, progress, tell)
            elif run is not None:
                place = place_of(run, out, untuned=untuned)
                request = for_run(run, request, untuned=untuned)
                summary = evaluate_model(request, place, seed=seed, progress=progress, say=tell)
            else:
                request = for_model(str(model), request, adapter, data)
                summary = _ask_model(request, out or Path(), seed, spending, progress)
        report_spending(judged_by)
    print(json.dumps(summary)) if as_json else show(summary)
    if run is not None:
        renew_card(run, place, summary, untuned=untuned)


def _probe_names(probes: str, data: Path | None, max_new_tokens: int | None) -> tuple[str, ...]:
    """The names in `--probes`; keys of question files that have no effect are reported."""
    from staytrue.evals.questions.user_files import overruled_limits, unused_keys
    from staytrue.evals.results.measures import LEAK, is_measure
    from staytrue.evals.triggers.trigger import PROBE

    names = tuple(name.strip() for name in probes.split(",") if name.strip())
    files = [name for name in names if not is_measure(name)]
    for line in (*unused_keys(files), *overruled_limits(files, max_new_tokens)):
        tell(line)
    if data is not None and names and not {PROBE, LEAK} & set(names):
        raise RequestError(
            f"--data {data} is for the probe {PROBE} and the measure {LEAK}, which --probes leaves out; name one there "
            "too."
        )
    return names


def _source(**sources: Path | str | None) -> str:
    """The name of the one source of answers: "run", "model" or "answers"."""
    names = [name for name, value in sources.items() if value is not None]
    if len(names) > 1:
        called = ["the run" if name == "run" else f"--{name}" for name in names]
        raise RequestError(f"{' and '.join(called)} exclude each other: one thing is evaluated at a time. Keep one.")
    if not names:
        raise RequestError(
            "Name what to evaluate: a run folder, or --model NAME (with --adapter FOLDER), or --answers FILE."
        )
    return names[0]


def _refuse_misplaced(source: str, *, adapter: Path | None, data: Path | None, out: Path | None, untuned: bool) -> None:
    """Refuse options that another source of answers has, and a missing `--out`."""
    if source != "model" and adapter is not None:
        raise RequestError("A run is evaluated with its own adapter; give --adapter with --model.")
    if source != "model" and data is not None:
        raise RequestError("A run folder names the file that it was trained on; give --data with --model.")
    if untuned and source != "run":
        raise RequestError("--untuned goes with a run; a model without --adapter is untuned as it is.")
    if source != "run" and out is None:
        raise RequestError(f"With --{source}, name the folder for answers and verdicts: --out FOLDER.")


def _ask_model(request: EvalRequest, out: Path, seed: int, budget: Budget, progress: Progress | None) -> dict[str, Any]:
    """Evaluate a model that is not a run; calls to an endpoint and their failures are reported."""
    from staytrue.evals.openai_client.address import Address
    from staytrue.runs import judge_factory
    from staytrue.runs.evaluate import evaluate_model

    if not isinstance(request.model, Address):
        return evaluate_model(request, out, seed=seed, progress=progress, say=tell)
    if request.batch_size is not None:
        raise RequestError("--batch-size is for a model in this process; an endpoint sets its own.")
    generate = judge_factory.generator(request.model, budget, tell)
    summary = evaluate_model(request, out, seed=seed, generate=generate, progress=progress, say=tell)
    tell(f"Answering took {generate.spent()}.")
    if generate.failed:
        why = generate.failed[0][2]
        tell(f"{len(generate.failed)} answers could not be had (the first: {why}); the same command asks again.")
    return summary
