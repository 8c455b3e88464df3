"""`train(recipe, out)`: trains the model of a recipe and writes one run folder.

Cheap checks come first: names, folders, every line of the data, every field. The run folder is created when only
training can still fail, and its manifest always records how the run ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.config.recipe import Recipe, read
from staytrue.errors import RequestError
from staytrue.runs import machine
from staytrue.runs.checkpoints import step_of
from staytrue.runs.recipe_checks import prepare
from staytrue.runs.resume import forget_after, refuse_changed, refuse_unwritable
from staytrue.runs.training_run import TrainingRun, checkpoints_of
from staytrue.utils.console import Progress
from staytrue.utils.files import refuse_existing, write_atomic
from staytrue.utils.run_dir import RunDir, locked


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, for `PeftModel.from_pretrained`; of the whole model with `lora: none`."""
        return self.path / "model"

    @property
    def is_whole(self) -> bool:
        """Whether all weights were trained, so that the folder holds a whole model."""
        return "weights" in self.manifest


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
    build, facts = prepare(recipe, reference_cache)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        run = RunDir.create(out, facts)
        write_atomic(out / "recipe.yaml", recipe.text())
        TrainingRun(run, build, progress, say).to_the_end()
    return Run(out, run.manifest)


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
    if RunDir.open(out).manifest["state"] == "done":
        return Run(out, RunDir.open(out).manifest)
    refuse_unwritable(out)
    with locked(out):
        run = RunDir.open(out)  # again, since another process may have gone on with it until now
        if run.manifest["state"] == "done":
            return Run(out, run.manifest)
        if not (out / "recipe.yaml").exists():
            raise RequestError(f"{out} has no recipe.yaml: restore it, or remove the folder and train again.")
        recipe = read(out / "recipe.yaml")
        build, facts = prepare(recipe, reference_cache)
        refuse_changed(run, recipe, facts, allow_versions=allow_versions)
        for note in machine.notes(out, run.manifest.get("machine"), facts["machine"]):
            say(note)
        checkpoint = checkpoints_of(run).newest(say)
        step = 0 if checkpoint is None else step_of(checkpoint)
        forget_after(out, checkpoint)
        say(f"{out} goes on after step {step}." if checkpoint else f"{out} has no whole checkpoint and starts over.")
        run.save(state="running", resumed=[*run.manifest.get("resumed", []), step])
        TrainingRun(run, build, progress, say, resumed=True, checkpoint=checkpoint).to_the_end()
    return Run(out, run.manifest)


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError(
            f"A run is one process, and this is one of {os.environ['WORLD_SIZE']} (WORLD_SIZE): several would write "
            "the same folder. Start it without torchrun; use GuardedSFT in a script of your own to train on several."
        )
