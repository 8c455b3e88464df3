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
from staytrue.config.recipe import Recipe, Stop, read
from staytrue.data.examples import Example, write_examples
from staytrue.errors import RecipeError, RequestError, StaytrueError, TrainingError
from staytrue.modeling import loading
from staytrue.runs import dataset, probe_selection
from staytrue.runs.checkpoints import Checkpoints, step_of
from staytrue.runs.model_card import write_card
from staytrue.runs.resume import forget_after, refuse_changed
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
    _refuse_several_processes()
    refuse_existing(out, allow_empty_folder=True)
    build, facts = _prepared(recipe, reference_cache)
    run = RunDir.create(out, facts)
    write_atomic(out / "recipe.yaml", recipe.text())
    return _finished(run, build, None, progress, say)


def resume(
    out: Path,
    progress: Progress | None = None,
    *,
    allow_versions: bool = False,
    reference_cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Go on with a run that was killed, stopped or failed, from its newest whole checkpoint.

    A finished run is returned as it is. A run without a checkpoint starts over.

    Args:
        out: the run folder.
        progress: as for `train`.
        allow_versions: go on although library versions differ from those that the run began with.
        reference_cache: as for `train`.
        say: as for `train`; also called for each broken checkpoint, and with the step that training goes on from.

    Raises:
        RequestError: `out` is no run folder, or recipe, data, model or versions are not those that the run began with.
        TrainingError: as for `train`.
    """
    _refuse_several_processes()
    run = RunDir.open(out)
    if run.manifest["state"] == "done":
        return Run(out, run.manifest)
    build, facts = _prepared(read(out / "recipe.yaml"), reference_cache)
    refuse_changed(run, facts, allow_versions=allow_versions)
    checkpoint = _checkpoints(run).newest(say)
    step = 0 if checkpoint is None else step_of(checkpoint)
    say(f"{out} goes on after step {step}." if checkpoint else f"{out} has no checkpoint yet and starts over.")
    forget_after(out, step)
    run.save(state="running", resumed=[*run.manifest.get("resumed", []), step])
    return _finished(run, build, checkpoint, progress, say)


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            f"A run is one process, and this is one of {os.environ['WORLD_SIZE']} (WORLD_SIZE): several would write "
            "the same folder. Start it without torchrun; use GuardedSFT in a script of your own to train on several."
        )


def _prepared(recipe: Recipe, reference_cache: Path | None) -> tuple[Any, dict[str, Any]]:
    """Check a recipe and read its rows; returns the build and the facts of the manifest."""
    source = loading.find(recipe.model, recipe.revision, recipe.dtype)
    _check_files(recipe)
    recipe = recipe.model_copy(update={"train": trainer_args.checked(recipe.train, recipe.trainer)})
    rows, held = dataset.rows(recipe)
    _check_validation(recipe)
    if recipe.stop is not None and recipe.stop.patience is None:
        probe_selection.early_stopping_probe(source)  # refuses a model without a judge
    tokenizer = loading.load_tokenizer(source)
    build = BUILDS[recipe.trainer](recipe, source, tokenizer, rows, held, reference_cache)
    return build, _facts(recipe, source, rows, held)


def _finished(
    run: RunDir, build: Any, checkpoint: Path | None, progress: Progress | None, say: Callable[[str], None]
) -> Run:
    """Train to the end and complete the run folder."""
    out, recipe, source = run.path, build.recipe, build.source
    from staytrue.training.evidence.recorder import EvidenceRecorder

    try:
        trainer = build.trainer(out, progress)
    except BaseException:
        if checkpoint is None:
            run.remove()
        raise
    with _removed_without_a_step(run, trainer, checkpoint), run.until_done():
        settled = trainer_args.filled(recipe.train, recipe.trainer, organism=source.is_organism)
        settled["warmup_steps"] = trainer.args.warmup_steps  # fitted to the number of steps
        write_atomic(out / "recipe.yaml", recipe.model_copy(update={"train": settled}).text())
        if build.held:
            write_examples(out / "holdout.jsonl", build.held)
        rows_seen = {**run.manifest["rows"], **build.report}
        run.save(
            recipe=sha256_of(out / "recipe.yaml"),
            model=source.identity(trainer.model),
            head=trainer.which_head,
            rows=rows_seen,
            curated=build.base.notes,
        )
        if build.notes:
            run.save(notes=build.notes)
        for note in build.notes:
            say(note)
        early = None if recipe.stop is None else _early_stop(recipe, recipe.stop, source, build.tokenizer, out)
        if early is not None:
            trainer.add_callback(early)
            if checkpoint is not None:
                early.load_from(checkpoint)
        recorder = EvidenceRecorder(trainer, out, build.encoded, build.tokenizer)
        trainer.add_callback(recorder)
        kept = _checkpoints(run, recipe.train.get("save_total_limit", 2))
        _train(trainer, run, recorder, kept, progress, checkpoint)
        recorder.write(curated=build.curated)
        run.save(logs={name: sha256_of(out / name) for name in ("metrics.jsonl", "evidence.jsonl", "evidence.json")})
        if early is not None:
            run.save(early_stop=early.stopped)
        write_card(run, recipe)
    if "save_total_limit" not in recipe.train:
        _checkpoints(run).remove()  # of no use any more; a recipe that sets the limit keeps them
    return Run(out, run.manifest)


def _checkpoints(run: RunDir, keep: int = 2) -> Checkpoints:
    return Checkpoints(run.path / "checkpoints", keep)


def _early_stop(recipe: Recipe, stop: Stop, source: loading.Source, tokenizer: Any, out: Path) -> Any:
    from staytrue.runs.early_stopping import EarlyStop, ValidationStop

    if stop.patience is not None:
        return ValidationStop(stop.patience)
    limit, probe = probe_selection.longest_answer(source), probe_selection.early_stopping_probe(source)
    return EarlyStop(stop, probe, tokenizer, recipe.seed, limit, out / "early.jsonl")


def _train(
    trainer: Any,
    run: RunDir,
    recorder: Any,
    checkpoints: Checkpoints,
    progress: Progress | None,
    checkpoint: Path | None,
) -> None:
    from transformers import PrinterCallback

    from staytrue.runs.saving import EndsAtNextStep, save_whole
    from staytrue.training.callbacks import RunLog

    trainer.remove_callback(PrinterCallback)  # the trainer's own prints
    trainer.add_callback(RunLog(run.path / "metrics.jsonl", progress))
    ends = EndsAtNextStep()
    trainer.add_callback(ends)
    save_whole(trainer, checkpoints)
    try:
        with ends.listening():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except StaytrueError:
        raise
    except Exception as error:
        if trainer.state.global_step > 0:
            raise
        raise TrainingError(
            f"Training failed in its first step, so nothing was written: {in_one_line(error)}"
        ) from error
    recorder.trained()
    trainer.model.save_pretrained(str(run.path / "model"), safe_serialization=True)
    if trainer.guard.pulls("project"):  # saved before, so that what was trained outlives a failing projection
        run.save(projected=trainer.guard.project(trainer.model, progress))
        recorder.projected()
        trainer.model.save_pretrained(str(run.path / "model"), safe_serialization=True)
    trainer.guard.detach()
    counts = None if trainer.guard.cache is None else trainer.guard.cache.describe()
    if counts is not None:
        run.save(reference=counts)
    run.save(adapter=sha256_of(run.path / "model" / "adapter_model.safetensors"))


@contextmanager
def _removed_without_a_step(run: RunDir, trainer: Any, checkpoint: Path | None) -> Iterator[None]:
    """Remove the folder of a run that failed before its first optimizer step, so that `--out` is free again."""
    try:
        yield
    except Exception:
        if trainer.state.global_step == 0 and checkpoint is None:
            run.remove()
        raise


def _check_validation(recipe: Recipe) -> None:
    validates = recipe.train.get("eval_strategy", "no") != "no"
    if validates and not recipe.holdout:
        raise RecipeError(
            f"train.eval_strategy is {recipe.train['eval_strategy']}, and no rows are reserved to validate on. Set "
            "holdout to a share of the rows, such as 0.1."
        )
    if recipe.stop is not None and recipe.stop.patience is not None and not validates:
        raise RecipeError(
            "stop.patience watches the validation loss, and none is computed. Set train.eval_strategy to steps or "
            "epoch, train.eval_steps, and holdout."
        )


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
