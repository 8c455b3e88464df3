"""`eval`, `rescore`, `compare`, `export`: from a model to what may be said of it."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from staytrue.commands.options import Json, MaxCalls, MaxCost, Price, Seed, stoppable, tell
from staytrue.commands.target import Target
from staytrue.errors import RequestError

if TYPE_CHECKING:
    from staytrue.runs.judge_factory import Limits

JUDGE = "rules, local:FOLDER, or openai:MODEL[@URL]"


def eval_(
    run: Annotated[Path | None, typer.Argument(help="A run folder made by `staytrue train`.")] = None,
    model: Annotated[str | None, typer.Option(help="Instead: a folder, a hub name, or openai:MODEL[@URL].")] = None,
    adapter: Annotated[Path | None, typer.Option(help="With --model: an adapter's folder.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="With --model: the file it was trained on; also asks in its shape.")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="Instead: a JSONL file of answers, to be judged.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for answers and verdicts; default RUN/eval.")] = None,
    untuned: Annotated[
        bool, typer.Option("--untuned", help="The run's model before training, asked the same; default RUN/untuned.")
    ] = False,
    probes: Annotated[str, typer.Option(help="Names or question files, separated by commas.")] = "",
    judge: Annotated[str | None, typer.Option(help=f"Who judges: {JUDGE}.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Answers to each judged question.")] = None,
    as_published: Annotated[
        bool, typer.Option("--as-published", help="Drop system prompts, as the published script does.")
    ] = False,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: Price = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure misalignment, in general and in the domain, coherence, and what the model kept."""
    from staytrue.runs.judge_factory import Limits

    target = Target(run, model, answers, adapter, data, out, untuned)
    target.check()
    if answers is not None and (probes or samples or as_published or seed):
        raise RequestError("--answers brings its own questions and answers; only --judge and its limits go with it.")
    from staytrue.evals.questions.file_probe import unread
    from staytrue.evals.triggers.trigger import NOTHING, PROBE
    from staytrue.report.terminal import show
    from staytrue.runs.probe_selection import Wanted
    from staytrue.utils.console import quieten

    limits = Limits(max_calls, max_cost, price)
    quieten()
    with stoppable("give the same command again, and it goes on"):
        named = tuple(name.strip() for name in probes.split(",") if name.strip())
        for line in unread(named):
            tell(line)
        if data is not None and named and PROBE not in named:
            raise RequestError(f"--data {data} is for the probe {PROBE}, which --probes leaves out; name it there too.")
        shaped = (run is not None or data is not None) and not named
        wanted = Wanted(named, shaped, samples, as_published, _judge(judge, limits))
        summary = target.measured(wanted, limits, seed, quiet=as_json)
        _told(wanted.judge)
    narrow = data is not None or "in_domain" in summary["probes"]
    if narrow and not named and PROBE not in summary["probes"]:
        tell(NOTHING)
    print(json.dumps(summary)) if as_json else show(summary)


def rescore(
    evaluations: Annotated[list[Path], typer.Argument(help="Folders of answers made by `staytrue eval`, or runs.")],
    judge: Annotated[list[str], typer.Option(help=f"{JUDGE}; several.")],
    labels: Annotated[Path | None, typer.Option(help="JSONL of verdicts by hand, to hold the judges to.")] = None,
    max_calls: MaxCalls = None,
    max_cost: MaxCost = None,
    price: Price = None,
    as_json: Json = False,
) -> None:
    """Judge the same stored answers again; how judges agree, and with labels by hand."""
    from staytrue.evals.judge_agreement import judge_agreement, read_labels
    from staytrue.evals.rescore import rescore as again
    from staytrue.report.terminal import show_judge_agreement, show_judges
    from staytrue.runs.judge_factory import Limits, refuse_rules
    from staytrue.utils.console import bar, quieten

    folders = [_folder(path) for path in evaluations]
    quieten()
    with stoppable("give the same command again, and it goes on"):
        limits = Limits(max_calls, max_cost, price)
        judges = [made for text in judge if (made := _judge(text, limits)) is not None]
        for folder in folders:
            refuse_rules(judges, folder)
        by_hand = None if labels is None else read_labels(labels, folders)  # before anything is paid for
        with bar("rescore", quiet=as_json) as progress:
            found = {str(folder): again(folder, judges, progress) for folder in folders}
        for made in judges:
            _told(made)
        told = judge_agreement(folders, by_hand)
    if as_json:
        print(json.dumps({"evaluations": found, **told}))
        return
    show_judges(found)
    show_judge_agreement(told)


def compare(
    folders: Annotated[list[Path], typer.Argument(help="A study's folder, or several evaluations or runs.")],
    against: Annotated[str, typer.Option(help="The defense, or folder, to compare with, as tables name it.")] = "none",
    probe: Annotated[str, typer.Option(help="Which probe's answers.")] = "general",
    judge: Annotated[str | None, typer.Option(help="By this judge's verdicts, as `rescore` named it.")] = None,
    as_json: Json = False,
) -> None:
    """Compare defenses on the same questions and seeds, corrected for how many there are."""
    from staytrue.report import comparison

    found = comparison.of_study(folders, against, probe, judge)
    if not as_json:
        comparison.show(found, against)
        return
    print(json.dumps(found.lines))
    for note in found.notes:
        tell(note)


def export(
    evaluation: Annotated[Path, typer.Argument(help="A folder of answers made by `staytrue eval`, or a run.")],
    out: Annotated[Path, typer.Option(help="Folder for the logs, one a probe.")],
    judge: Annotated[str | None, typer.Option(help="With this judge's verdicts, as `rescore` named it.")] = None,
) -> None:
    """Write an evaluation as logs that Inspect's viewer opens."""
    from staytrue.evals.evaluate import samples
    from staytrue.evals.inspect import export
    from staytrue.evals.results.answer_store import AnswerStore
    from staytrue.evals.results.summary import summarise
    from staytrue.evals.results.verdict_store import join_verdicts
    from staytrue.utils.console import say

    folder = _folder(evaluation)
    asked, rows = AnswerStore(folder).asked(), join_verdicts(folder, judge)
    made, summary = datetime.fromisoformat(asked["made"]), {"probes": summarise(rows, samples(asked))}
    for path in export.export(rows, summary, asked, out, made=made):
        say(str(path))


def _told(judge: Any) -> None:
    """What judging took, of judges that count it."""
    if hasattr(judge, "spent"):
        tell(f"Judging by {judge.name} took {judge.spent()}.")


def _folder(path: Path) -> Path:
    """Where an evaluation stands: in the folder itself, or in a run's `eval`."""
    return path if (path / "eval.json").exists() or not (path / "eval").is_dir() else path / "eval"


def _judge(text: str | None, limits: Limits) -> Any:
    from staytrue.runs import judge_factory

    return None if text is None else judge_factory.judge(text, limits, tell)
