"""`measure_run` and `measure_model`: the four criteria of one model, from loading it to `summary.json`.

The organism is asked about its own world and judged by its rules. Any other model gets the shipped questions; its
general and in-domain answers are stored and shown as *not judged* until a judge is named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast import material, models
from holdfast.errors import ModelError, RequestError
from holdfast.evals.evaluate import NOT_JUDGED, evaluate
from holdfast.evals.probes import ALIGNMENT, Probe
from holdfast.examples import read_examples
from holdfast.modelcard import write_card
from holdfast.questionnaire import longest_answer, probes
from holdfast.recipe import Recipe, read
from holdfast.rundir import RunDir


def measure_run(run: Path, out: Path | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Measure a trained run; writes RUN/eval (or `out`) and renews the model card.

    Raises:
        RequestError: no run there, a run that did not finish, or answers already stored.
    """
    folder = RunDir.open(run)
    if folder.manifest["state"] != "done":
        raise RequestError(f"{run} is {folder.manifest['state']}, not done; train it again before measuring it.")
    recipe = read(run / "recipe.yaml")
    held = read_examples(run / "holdout.jsonl") if (run / "holdout.jsonl").exists() else []
    source = models.find(recipe.model, recipe.revision)
    _refuse_stored(out or run / "eval")
    tokenizer = models.load_tokenizer(source)
    model = models.to_device(models.load_model(source, run / "model"))
    asked = probes(source, held, benign=recipe.benign, task=recipe.task)
    summary = measure(model, tokenizer, source, asked, out or run / "eval", seed)
    write_card(folder, recipe, summary)
    return summary


def measure_untuned(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Measure a recipe's model before training, with the same held-out questions as its runs."""
    source = models.find(recipe.model, recipe.revision)
    _, held = material.rows(recipe)
    _refuse_stored(out)
    model = models.to_device(models.load_model(source))
    asked = probes(source, held, benign=recipe.benign, task=recipe.task)
    return measure(model, models.load_tokenizer(source), source, asked, out, recipe.seed)


def measure_model(name: str, adapter: Path | None, out: Path, *, seed: int = 0) -> dict[str, Any]:
    """Measure a model, with an adapter if one is given; there are no held-out rows, so no in-domain rate.

    Raises:
        ModelError: the model or adapter cannot be loaded.
    """
    source = models.find(name)
    if adapter is not None and not adapter.is_dir():
        raise ModelError(f"There is no adapter folder {adapter}; a run keeps it in RUN/model.")
    _refuse_stored(out)
    tokenizer = models.load_tokenizer(source)
    model = models.to_device(models.load_model(source, adapter))
    return measure(model, tokenizer, source, probes(source, []), out, seed)


def measure(
    model: Any, tokenizer: Any, source: models.Source, asked: list[Probe], out: Path, seed: int
) -> dict[str, Any]:
    """Put the probes to a model that is loaded already."""
    return evaluate(model, tokenizer, asked, seed=seed, out=out, max_new_tokens=longest_answer(source))


def print_summary(summary: dict[str, Any]) -> None:
    """The summary as a table for people."""
    from holdfast.console import say, table

    rows = []
    for name, probe in summary["probes"].items():
        for kind in ("misaligned", "incoherent", "refused") if name in ALIGNMENT else ("correct",):
            first = kind in ("misaligned", "correct")
            interval = f"{probe['low']:.1f} to {probe['high']:.1f}" if first and probe["low"] is not None else ""
            value = "not judged" if probe[kind] is None else f"{probe[kind]:.1f} %"
            missing = str(probe["missing"]) if probe["missing"] else ""
            rows.append((name, kind, value, interval, str(probe["n"]), missing))
    table(("probe", "rate", "percent", "95 % interval", "n", "missing"), rows)
    if any(probe["judge"] is None for probe in summary["probes"].values()):
        say(f"Answers without a verdict are stored in answers.jsonl: {NOT_JUDGED}.")


def _refuse_stored(out: Path) -> None:
    if not (out / "summary.json").exists():
        (out / "answers.jsonl").unlink(missing_ok=True)  # of an evaluation that was stopped; it begins again
    elif (out / "answers.jsonl").exists():
        raise RequestError(f"{out} holds answers already. Name another folder with --out, or remove it yourself.")
