"""`train(recipe, out)`: trains the model of a recipe and writes one run folder.

Cheap checks come first: names, folders, every line of the data, every field. The run folder is created when only
training can still fail, and its manifest always records how the run ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from staytrue.config.paths import absolute
from staytrue.config.recipe import Recipe, read, values_hash
from staytrue.errors import RequestError
from staytrue.runs import machine
from staytrue.runs.checkpoints import step_of
from staytrue.runs.recipe_checks import prepare
from staytrue.runs.resume import forget_after, refuse_changed, refuse_unwritable
from staytrue.runs.training_run import TrainingRun, checkpoints_of
from staytrue.utils import processes
from staytrue.utils.console import Progress
from staytrue.utils.files import refuse_existing, remove_leftovers
from staytrue.utils.run_dir import RunDir, locked

_READING = "{}: checking the recipe and reading the rows"


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
    out: Path | str,
    progress: Progress | None = None,
    *,
    reference_cache: Path | str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Run:
    """Train the model of a recipe and write the run folder `out`.

    Under `torchrun` or `accelerate launch` every process calls it. The main one writes the folder, shows the progress
    and says the sentences; all of them return when the run is finished.

    Args:
        recipe: model, data, trainer settings, adapter and defenses.
        out: the run folder; must not exist, or be empty.
        progress: receives the number of steps and the logged metrics.
        reference_cache: folder of reference hidden states, shared by runs on the same rows with the same model. It
            changes results by rounding (see `training.reference.cache`).
        say: called with each part of the work before it begins, before training with each sentence about the rows as
            tokens, which the manifest keeps as `notes`, and after it with what was projected.

    Returns:
        The finished run.

    Raises:
        RequestError: a fault that is found before training; nothing is left behind.
        TrainingError: no trained weight moved, or some are not finite; the manifest's state is "failed". A run that
            fails before its first optimizer step leaves nothing behind, unless a defense has sampled answers.
        KeyboardInterrupt: stopped; the folder stays, and its manifest's state is "stopped". While the first step is
            prepared, it only stays if a defense has sampled answers.
    """
    if not isinstance(recipe, Recipe):
        raise RequestError(
            f"train takes a Recipe, not {type(recipe).__name__}. `staytrue.config.recipe.read(FILE)` reads one, and "
            "`parse(DICT)` there makes one of plain data."
        )
    out, reference_cache = Path(out), None if reference_cache is None else Path(reference_cache)
    recipe = absolute(recipe, Path.cwd())  # a resumed run, or one evaluated elsewhere, reads the same files
    join(recipe, reference_cache)
    if main := processes.is_main():
        refuse_existing(out, allow_empty_folder=True)
    progress, say = _shown(progress, say)
    say(_READING.format(out))
    build, facts = prepare(recipe, reference_cache)
    if main:
        out.mkdir(parents=True, exist_ok=True)
    with _alone_in(out):
        run = RunDir.create(out, facts, writes=main)
        run.save(asked=values_hash(recipe))
        run.write("recipe.yaml", recipe.text())
        TrainingRun(run, build, progress, say).to_the_end()
    return Run(out, processes.from_main(lambda: run.manifest))


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
    if RunDir.open(out).manifest["state"] == "done":
        return Run(out, RunDir.open(out).manifest)
    refuse_unwritable(out)
    if not (out / "recipe.yaml").exists():
        raise RequestError(f"{out} has no recipe.yaml: restore it, or remove the folder and train again.")
    recipe = read(out / "recipe.yaml")
    join(recipe, reference_cache)
    progress, say = _shown(progress, say)
    with _alone_in(out):
        # read again, since another run may have gone on with it until now
        run = RunDir(out, processes.from_main(lambda: RunDir.open(out).manifest), processes.is_main())
        if run.manifest["state"] == "done":
            return Run(out, run.manifest)
        say(_READING.format(out))
        build, facts = prepare(recipe, reference_cache)
        refuse_changed(run, recipe, facts, allow_versions=allow_versions)
        for note in machine.notes(out, run.manifest.get("machine"), facts["machine"]):
            say(note)
        checkpoint = processes.from_main(lambda: checkpoints_of(run).newest(say))
        step = 0 if checkpoint is None else step_of(checkpoint)
        if run.writes:
            remove_leftovers(out)
            forget_after(out, checkpoint)
        say(f"{out} goes on after step {step}." if checkpoint else f"{out} has no whole checkpoint and starts over.")
        run.save(state="running", resumed=[*run.manifest.get("resumed", []), step])
        TrainingRun(run, build, progress, say, resumed=True, checkpoint=checkpoint).to_the_end()
    return Run(out, processes.from_main(lambda: run.manifest))


def join(recipe: Recipe, reference_cache: Path | None) -> None:
    """Connect the processes, if there are several, for the device that the recipe will train on."""
    if processes.count() > 1 and reference_cache is not None:
        raise RequestError("A reference cache is not tested with several processes; leave --reference-cache out.")
    if processes.count() > 1 and recipe.quantize is not None:
        raise RequestError("quantize is not tested with several processes; take it out, or train on one.")
    if processes.divides():
        from staytrue.training.sharded_training import refuse

        sampled, stop = recipe.trainer == "grpo", recipe.stop
        refuse(
            recipe.defenses,
            sampled=sampled,
            reference=recipe.reference,
            probes=stop is not None and stop.patience is None,
        )
    processes.join(cpu=processes.count() > 1 and machine.device(recipe) == "cpu")


@contextmanager
def _alone_in(out: Path) -> Iterator[None]:
    """Lock the run folder, for all processes of this training."""
    if not processes.is_main():
        yield
        return
    with locked(out):
        yield


def _shown(progress: Progress | None, say: Callable[[str], None]) -> tuple[Progress | None, Callable[[str], None]]:
    """What shows the progress and prints lines; in other processes than the main one nothing does."""
    return (progress, say) if processes.is_main() else (None, lambda line: None)
