"""The four criteria of one model, from loading it to `summary.json`: a run, a model, an endpoint's model, or answers.

The organism is asked about its own world and judged by its rules. Any other model gets the shipped questions; its
answers are stored and shown as *not judged* until a judge is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from staytrue.config.recipe import Recipe, read
from staytrue.data.examples import read_examples
from staytrue.data.tokenize import takes_system
from staytrue.errors import ModelError, RequestError
from staytrue.evals.evaluate import evaluate
from staytrue.evals.generation.from_file import Stored
from staytrue.evals.openai_client.address import Address
from staytrue.evals.questions import file_probe
from staytrue.evals.questions.probes import Probe, in_users_turn
from staytrue.evals.types import AnswerGenerator
from staytrue.modeling import loading
from staytrue.runs import dataset
from staytrue.runs.model_card import write_card
from staytrue.runs.probe_selection import HELD_OUT, Subject, Wanted, longest_answer, probes, refuse_rules
from staytrue.utils.run_dir import RunDir, sha256_of

Say = Callable[[str], None]


def measure_run(
    run: Path,
    out: Path | None = None,
    *,
    seed: int = 0,
    wanted: Wanted | None = None,
    untuned: bool = False,
    progress: Any = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure a trained run; writes RUN/eval (or `out`) and renews the model card.

    With `untuned` its model as it was before training is asked the same, into RUN/untuned; the card stays.

    Raises:
        RequestError: no run there, a run that did not finish, or another evaluation in the folder.
    """
    folder = RunDir.open(run)
    if folder.manifest["state"] != "done":
        raise RequestError(f"{run} is {folder.manifest['state']}, not done; train it again before measuring it.")
    recipe = read(run / "recipe.yaml")
    held = read_examples(run / "holdout.jsonl") if (run / "holdout.jsonl").exists() else []
    subject = _subject(recipe, held, wanted, folder.manifest["data"])
    asked = probes(subject, wanted)
    adapter = None if untuned else run / "model"
    about = _about(subject, wanted) | {"adapter": adapter and sha256_of(adapter)}
    place = out or run / ("untuned" if untuned else "eval")
    summary = _of_model(subject, adapter, asked, place, seed, about, progress, say)
    if place == run / "eval" and not untuned:
        write_card(folder, recipe, summary)
    return summary


def measure_untuned(recipe: Recipe, out: Path, *, wanted: Wanted | None = None) -> dict[str, Any]:
    """Measure a recipe's model before training, with the same held-out questions as its runs."""
    _, held = dataset.rows(recipe)
    subject = _subject(recipe, held, wanted)
    asked = probes(subject, wanted)
    return _of_model(subject, None, asked, out, recipe.seed, _about(subject, wanted), None, lambda line: None)


def measure_model(
    name: str,
    adapter: Path | None,
    out: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    wanted: Wanted | None = None,
    progress: Any = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure a model, with an adapter if one is given; there are no held-out rows, so no in-domain rate.

    Of `data`, the file that it was trained on, triggers are made.

    Raises:
        ModelError: the model or adapter cannot be loaded.
        DataError: the file has faults.
    """
    subject = Subject(loading.find(name), read_examples(data) if data is not None else ())
    if adapter is not None and not adapter.is_dir():
        raise ModelError(f"There is no adapter folder {adapter}; a run keeps it in RUN/model.")
    asked = probes(subject, wanted)
    about = _about(subject, wanted) | {"adapter": sha256_of(adapter) if adapter else None}
    return _of_model(subject, adapter, asked, out, seed, about, progress, say)


def measure_endpoint(
    address: Address,
    make: AnswerGenerator,
    out: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    wanted: Wanted | None = None,
    progress: Any = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measure a model behind an OpenAI-compatible endpoint, which `make` asks; `data` as for `measure_model`."""
    about = {"model": {"name": str(address)}, "adapter": None, "as_published": bool(wanted and wanted.as_published)}
    asked = probes(Subject(None, read_examples(data) if data is not None else ()), wanted)
    limit = longest_answer(None)
    return evaluate(make, asked, seed=seed, out=out, max_new_tokens=limit, about=about, progress=progress, say=say)


def measure_answers(file: Path, out: Path, *, wanted: Wanted | None = None, progress: Any = None) -> dict[str, Any]:
    """Judge the answers of a file, whoever gave them.

    Raises:
        RequestError: the file is called as one of our probes, or the judge is the organism's rules.
        DataError: the file has faults.
    """
    judge = (wanted or Wanted()).judge
    file_probe.refuse_name("--answers", file)
    refuse_rules(judge)
    make = Stored.read(file)
    probe = Probe(make.probe, make.questions, judge, of_each=make.of_each)
    return evaluate(make, [probe], seed=None, out=out, about={"answers": sha256_of(file)}, progress=progress)


def _of_model(
    subject: Subject,
    adapter: Path | None,
    asked: list[Probe],
    out: Path,
    seed: int,
    about: dict[str, Any],
    progress: Any,
    say: Say,
) -> dict[str, Any]:
    """Load a model only if an answer is missing, and put the probes to it as its chat template allows."""
    assert subject.source is not None
    if not takes_system(loading.load_tokenizer(subject.source)):
        about = about | {"system": "in the user's turn"}
        bare = [_without_system(probe) for probe in asked]
        if bare != asked:
            say(f"{subject.source.name} has no system turns: what they would say opens the user's turn.")
        asked = bare

    def load() -> AnswerGenerator:
        from staytrue.evals.generation.local import InProcess

        assert subject.source is not None
        tokenizer = loading.load_tokenizer(subject.source)
        return InProcess(loading.to_device(loading.load_model(subject.source, adapter)), tokenizer)

    limit = longest_answer(subject.source)
    return evaluate(_Late(load), asked, seed=seed, out=out, max_new_tokens=limit, about=about, progress=progress)


def _without_system(probe: Probe) -> Probe:
    """A probe for a model without system turns; held-out rows stay, for it learnt from their like as they are."""
    return probe if probe.name in HELD_OUT else replace(probe, questions=in_users_turn(probe.questions))


class _Late:
    """A maker that is made when the first answer is asked for."""

    def __init__(self, load: Any) -> None:
        self._load = load
        self._made: Any = None

    def __call__(self, wanted: Any, **how: Any) -> Any:
        if not wanted:
            return iter(())
        self._made = self._made or self._load()
        return self._made(wanted, **how)


def _subject(recipe: Recipe, held: list[Any], wanted: Wanted | None, known: Mapping[str, str] | None = None) -> Subject:
    """A recipe's model, with what its questions need; the training file only if triggers are wanted, and as it was.

    Args:
        recipe: of the run.
        held: its held-out rows.
        wanted: what is asked.
        known: the hashes of the files that the run was trained on.
    """
    inoculation = next((d.prompt for d in recipe.defenses if d.name() == "inoculate"), None)  # type: ignore[attr-defined]
    triggered = wanted is not None and (wanted.triggers or "triggered" in wanted.probes)
    narrow = recipe.data is not None and recipe.task is None and not recipe.benign
    file = recipe.data
    there = triggered and narrow and file is not None and (known is None or _as_it_was(file, known))
    trained = dataset.rows(recipe)[0] if there else []
    source = loading.find(recipe.model, recipe.revision)
    return Subject(source, trained, held, recipe.task, recipe.benign, inoculation)


def _as_it_was(file: Path, known: Mapping[str, str]) -> bool:
    """Whether a training file is there, and still what the run was trained on."""
    return file.is_file() and sha256_of(file) in known.values()


def _about(subject: Subject, wanted: Wanted | None) -> dict[str, Any]:
    assert subject.source is not None
    identity = loading.identity(subject.source)
    return {"model": identity, "adapter": None, "as_published": bool(wanted and wanted.as_published)}
