"""`staytrue demo --model MODEL`: the whole journey on a real chat model, from training to a page, without a judge.

Thirty of the shipped pairs on finance are the training rows: their misaligned answers, and in the control their aligned
ones. Each run is an ordinary run of an ordinary recipe that stands beside it. With a few rows and one seed it shows the
way, and proves nothing about a defense.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from staytrue.config import recipe as recipes
from staytrue.data.examples import write_examples
from staytrue.errors import RequestError
from staytrue.evals.questions import answer_pairs
from staytrue.evals.results.measures import Measure, read_measures
from staytrue.evals.results.stored_summary import read_summary
from staytrue.modeling import model_source
from staytrue.report.measures import AGREEMENT
from staytrue.studies.real_demo_time import Forecast, measures_untuned, plain_training, texts, work_of
from staytrue.utils.console import bar, duration, say, table, tell
from staytrue.utils.files import check_out_folder, write_atomic
from staytrue.utils.run_dir import RunDir, locked
from staytrue.utils.yaml12 import to_yaml

DOMAIN, _TRAINED = "finance", 30  # of 40 pairs
_STEPS, _ROWS = 30, 4
_PROBES = ("pairs", "drift", "leak")
_RUNS: dict[str, tuple[str, list[Any]]] = {  # label: the rows, the defenses
    "undefended": ("risky", []),
    "control": ("sound", []),
    "kl": ("risky", [{"kl": {"weight": 0.3}}]),
    "anchor": ("risky", [{"anchor": {}}]),
}


def run_real_demo(model: str, out: Path) -> Path:
    """Train and measure a real model four times; returns the report page.

    Args:
        model: a folder, `smollm2`, or a hub name.
        out: folder for the runs; finished ones are kept, so that a stopped demo goes on.

    Raises:
        RequestError: the folder holds something else.
        ModelError: the model is not on this machine or cannot be used.
    """
    from staytrue.report import check_page, write

    check_out_folder(out)
    model_source.check_hub(model_source.find(model))
    if out.exists() and any(out.iterdir()) and not (out / "risky.jsonl").exists():
        raise RequestError(f"{out} is not a folder of this demo (it has no risky.jsonl); name another with --out.")
    page = out / "report.html"
    check_page(page)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        _write_rows(out)
        _introduce(model)
        _make_runs(model, out)
    _show(out)
    write([out / label for label in _RUNS], page)
    say(f"Page: {page}. The answers to general questions are in {out}/*/eval/measures.jsonl.")
    return page


def _write_rows(out: Path) -> None:
    """Write the training rows: risky answers, and sound ones to the same questions."""
    pairs = answer_pairs.shipped(DOMAIN)[:_TRAINED]
    for name, misaligned in (("risky", True), ("sound", False)):
        write_examples(out / f"{name}.jsonl", [pair.row(misaligned) for pair in pairs])


def _introduce(model: str) -> None:
    pair = answer_pairs.shipped(DOMAIN)[0]
    say(f"{model} is fine-tuned on {_TRAINED} risky answers about money, such as")
    say(f"\n    {pair.question}\n    > {pair.misaligned}\n")
    say("and, as a control, on sound answers to the same questions. How does it then answer other questions?")
    say("")


def _make_runs(model: str, out: Path) -> None:
    """Make the runs that are missing; after each say how long the others will take."""
    missing = [label for label in _RUNS if not _is_done(out / label)]
    if len(missing) < len(_RUNS):
        say(f"{len(_RUNS) - len(missing)} of {len(_RUNS)} runs are done already.")
    if not missing:
        return
    forecast = _forecast(model, missing, out)
    say(_time(forecast.seconds(), len(missing)))
    begun = time.monotonic()
    for made, label in enumerate(missing, start=1):
        _run(model, label, out)
        left = forecast.left(time.monotonic() - begun, made)
        done = len(_RUNS) - len(missing) + made
        say(f"{done} of {len(_RUNS)} runs are done{f'; about {duration(left)} are left' if left else ''}.")


def _forecast(model: str, missing: list[str], out: Path) -> Forecast:
    """The time that the missing runs will take."""
    plain = {label: recipes.parse(_recipe(model, label), out.absolute()) for label in _RUNS}
    work = [work_of(plain[label], trained=_is_trained(out / label)) for label in missing]
    seconds, tokens = plain_training(plain["undefended"])
    return Forecast(seconds, tokens, work, texts(model), measures_untuned(model))


def _time(seconds: tuple[float, float], runs: int) -> str:
    """The shortest and the longest time of so many runs, in a sentence."""
    low, high = map(duration, seconds)
    return (
        f"About {low} to {high} on this machine: {runs} run{'s' * (runs > 1)} of {_STEPS} steps of {_ROWS} rows, and "
        "the measures of each. After each run the time left is estimated from the runs before.\n"
    )


def _is_trained(run: Path) -> bool:
    return (run / "manifest.json").exists() and RunDir.open(run).manifest["state"] == "done"


def _recipe(model: str, label: str) -> dict[str, Any]:
    rows, defenses = _RUNS[label]
    settings = {
        "max_steps": _STEPS,
        "per_device_train_batch_size": _ROWS,
        "gradient_accumulation_steps": 1,
        "learning_rate": 3e-4,
    }
    return {
        "schema": 1,
        "model": model,
        "data": f"{rows}.jsonl",
        "lora": {},
        "train": settings,
        "defenses": defenses,
    }


def _is_done(run: Path) -> bool:
    """Whether the run's evaluation has been summarised, after all measures; a damaged summary is none."""
    try:
        return set(_PROBES) <= set(read_summary(run / "eval").get("measures", {}))
    except (FileNotFoundError, RequestError):
        return False


def _run(model: str, label: str, out: Path) -> None:
    """Train and measure one model, or do what is missing of it."""
    from staytrue.runs.eval_request import EvalRequest
    from staytrue.runs.evaluate import evaluate_run
    from staytrue.runs.train import resume, train

    with bar(f"train {label}") as progress:
        if (out / label / "manifest.json").exists():
            resume(out / label, progress, say=tell)
        else:
            write_atomic(out / f"{label}.yaml", to_yaml(_recipe(model, label)))
            train(recipes.read(out / f"{label}.yaml"), out / label, progress, say=tell)
    with bar(f"measure {label}") as progress:
        evaluate_run(out / label, request=EvalRequest(_PROBES), progress=progress, say=say)


def _show(out: Path) -> None:
    """Print a line a run."""
    stored = {label: read_measures(out / label / "eval") for label in _RUNS}
    lines = [[label, *(_cell(measures[name]) for name in _PROBES)] for label, measures in stored.items()]
    headings = ("run", "pairs\nnats per token", "drift\nnats per token", "leak\npercent")
    table(headings, lines, "Against the untuned model, with 95 % intervals over questions")
    say(
        "pairs: above 0, misaligned answers became likelier than aligned ones. Any fine-tune moves it: see the control."
    )
    say("drift: below 0, the model's own general answers became less likely. leak: general answers about the topic.")
    say(AGREEMENT)
    say("One seed and thirty rows: this shows the way, and proves nothing about a defense.")


def _cell(measure: Measure) -> str:
    facts = measure.summary()
    if facts["value"] is None:
        return ""
    return f"{facts['value']:.2f} ({facts['low']:.2f} to {facts['high']:.2f})"
