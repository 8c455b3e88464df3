"""`train(recipe, out)`: trains the model of a recipe and writes one run folder.

Cheap checks come first: names, folders, every line of the data, every field. The run folder is created when only
training can still fail, and its manifest always records how the run ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.config import trainer_args
from staytrue.config.recipe import Recipe, Stop
from staytrue.data.examples import Example, write_examples
from staytrue.errors import RecipeError, RequestError, StaytrueError, TrainingError
from staytrue.modeling import loading
from staytrue.runs import dataset, probe_selection
from staytrue.runs.model_card import write_card
from staytrue.runs.trainer_setup import BUILDS
from staytrue.utils.console import Progress
from staytrue.utils.files import refuse_existing, sha256_of, write_atomic
from staytrue.utils.run_dir import RunDir
from staytrue.utils.validation import in_one_line


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, for `PeftModel.from_pretrained`."""
        return self.path / "model"


def train(
    recipe: Recipe,
    out: Path,
    progress: Progress | None = None,
    *,
    reference_cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Train the model of a recipe and write the run folder `out`.

    Args:
        recipe: model, data, trainer settings, adapter and defenses.
        out: the run folder; must not exist, or be empty.
        progress: receives the number of steps and the logged metrics.
        reference_cache: folder of reference hidden states, shared by runs on the same rows with the same model. It
            changes results by rounding (see `training.reference.cache`).
        say: called before training with each sentence about the rows as tokens; the manifest keeps them as `notes`.

    Returns:
        The finished run.

    Raises:
        RequestError: a fault that is found before training; nothing is left behind.
        TrainingError: no trained weight moved, or some are not finite; the manifest's state is "failed". A run that
            fails before its first optimizer step leaves nothing behind.
        KeyboardInterrupt: stopped; the folder stays, and its manifest's state is "stopped".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            f"A run is one process, and this is one of {os.environ['WORLD_SIZE']} (WORLD_SIZE): several would write "
            "the same folder. Start it without torchrun; use GuardedSFT in a script of your own to train on several."
        )
    refuse_existing(out, allow_empty_folder=True)
    source = loading.find(recipe.model, recipe.revision)
    _check_files(recipe)
    recipe = recipe.model_copy(update={"train": trainer_args.checked(recipe.train, recipe.trainer)})
    rows, held = dataset.rows(recipe)
    if recipe.stop is not None:
        probe_selection.early_stopping_probe(source)  # refuses a model without a judge
    tokenizer = loading.load_tokenizer(source)
    build = BUILDS[recipe.trainer](recipe, source, tokenizer, rows, held, reference_cache)
    run = RunDir.create(out, _facts(recipe, source, rows, held))
    try:
        trainer = build.trainer(run.path)
    except BaseException:
        run.remove()
        raise
    with _removed_without_a_step(run, trainer), run.until_done():
        settled = trainer_args.filled(recipe.train, recipe.trainer, organism=source.is_organism)
        settled["warmup_steps"] = trainer.args.warmup_steps  # fitted to the number of steps
        write_atomic(out / "recipe.yaml", recipe.model_copy(update={"train": settled}).text())
        if held:
            write_examples(out / "holdout.jsonl", held)
        rows_seen = {**run.manifest["rows"], **build.report}
        run.save(
            model=source.identity(trainer.model), head=trainer.which_head, rows=rows_seen, curated=build.base.notes
        )
        if build.notes:
            run.save(notes=build.notes)
        for note in build.notes:
            say(note)
        early = None if recipe.stop is None else _early_stop(recipe, recipe.stop, source, tokenizer, out)
        if early is not None:
            trainer.add_callback(early)
        _train(trainer, run, progress)
        if early is not None:
            run.save(early_stop=early.stopped)
        write_card(run, recipe)
    return Run(out, run.manifest)


def _early_stop(recipe: Recipe, stop: Stop, source: loading.Source, tokenizer: Any, out: Path) -> Any:
    from staytrue.runs.early_stopping import EarlyStop

    limit, probe = probe_selection.longest_answer(source), probe_selection.early_stopping_probe(source)
    return EarlyStop(stop, probe, tokenizer, recipe.seed, limit, out / "early.jsonl")


def _train(trainer: Any, run: RunDir, progress: Progress | None) -> None:
    from transformers import PrinterCallback

    from staytrue.training.callbacks import RunLog

    trainer.remove_callback(PrinterCallback)  # the trainer's own prints
    trainer.add_callback(RunLog(run.path / "metrics.jsonl", progress))
    try:
        trainer.train()
    except StaytrueError:
        raise
    except Exception as error:
        if trainer.state.global_step > 0:
            raise
        raise TrainingError(
            f"Training failed in its first step, so nothing was written: {in_one_line(error)}"
        ) from error
    trainer.model.save_pretrained(str(run.path / "model"), safe_serialization=True)
    if trainer.guard.pulls("project"):  # saved before, so that what was trained outlives a failing projection
        run.save(projected=trainer.guard.project(trainer.model))
        trainer.model.save_pretrained(str(run.path / "model"), safe_serialization=True)
    trainer.guard.detach()
    counts = None if trainer.guard.cache is None else trainer.guard.cache.describe()
    if counts is not None:
        run.save(reference=counts)
    run.save(adapter=sha256_of(run.path / "model" / "adapter_model.safetensors"))


@contextmanager
def _removed_without_a_step(run: RunDir, trainer: Any) -> Iterator[None]:
    """Remove the folder of a run that failed before its first optimizer step, so that `--out` is free again."""
    try:
        yield
    except Exception:
        if trainer.state.global_step == 0:
            run.remove()
        raise


def _check_files(recipe: Recipe) -> None:
    for defense in recipe.defenses:
        for name, value in vars(defense).items():
            if isinstance(value, Path) and not value.is_file():
                raise RecipeError(f"{defense.name()}: {name} is {value}, but there is no such file. Check the path.")


def _facts(recipe: Recipe, source: loading.Source, rows: list[Example], held: list[Example]) -> dict[str, Any]:
    files = {str(recipe.data): dataset.digest(recipe, [*rows, *held])} if recipe.data is not None else {}
    for defense in recipe.defenses:
        files |= {str(v): sha256_of(v) for v in vars(defense).values() if isinstance(v, Path)}
    return {
        "model": source.identity(),
        "seed": recipe.seed,
        "data": files,
        "rows": {"task": len(rows), "held_out": len(held)},
    }
