"""`TrainingRun` trains what was prepared to the end and completes the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.config import trainer_args
from staytrue.config.recipe import Stop, values_hash
from staytrue.data.examples import write_examples
from staytrue.defense import pulled
from staytrue.errors import StaytrueError, TrainingError
from staytrue.modeling.adapter_folder import settings_hash
from staytrue.modeling.sharded import whole_weights
from staytrue.runs import probe_selection
from staytrue.runs.all_weights import save_model
from staytrue.runs.checkpoints import Checkpoints, step_of
from staytrue.runs.model_card import write_card
from staytrue.runs.resume import LOGS
from staytrue.runs.trackers import placed
from staytrue.utils import processes
from staytrue.utils.console import Progress, quoted
from staytrue.utils.files import sha256_of, write_atomic
from staytrue.utils.run_dir import RunDir
from staytrue.utils.validation import in_one_line

if TYPE_CHECKING:
    from staytrue.runs.stop_signals import StopSignal

_HASHED = ("metrics.jsonl", "evidence.jsonl", "evidence.json", "holdout.jsonl")


def checkpoints_of(run: RunDir, keep: int | None = None) -> Checkpoints:
    """The checkpoints of a run; one of another run in their place is not used."""
    return Checkpoints(run.path / "checkpoints", keep, run.manifest.get("id"))


@dataclass
class TrainingRun:
    """One training in its run folder.

    Attributes:
        run: the folder, whose manifest's state is "running".
        build: the parts of the run before training, see `trainer_setup`.
        progress: receives the number of steps and the logged metrics.
        say: called before the model is loaded, with each sentence about the rows as tokens, and about what was
            projected after training.
        resumed: whether the folder is that of an earlier attempt, which is never deleted.
        checkpoint: a whole checkpoint to go on from; None begins at step 0.
    """

    run: RunDir
    build: Any
    progress: Progress | None
    say: Callable[[str], None]
    resumed: bool = False
    checkpoint: Path | None = None

    def to_the_end(self) -> None:
        """Train, save what was trained and complete the folder.

        Raises:
            StaytrueError: training failed; the manifest's state is "failed", or the folder is gone if no step was made
                and no defense has sampled an answer.
            KeyboardInterrupt: stopped; the manifest's state is "stopped", or the folder is gone if the first step was
                still prepared and no defense has sampled an answer.
        """
        trainer = self._trainer()
        with self._removed_without_a_step(trainer), self.run.until_done(), processes.explained():
            self._record(trainer)
            early = self._early_stop(trainer)
            recorder = self._recorder(trainer)
            with placed(trainer, self.run, self._first_step()):
                self._train(trainer)
            with whole_weights(trainer.model, kept=self.run.writes):
                if self.run.writes:
                    self._complete(trainer, recorder, early)
        if self.run.writes and "save_total_limit" not in self.build.recipe.train:
            checkpoints_of(self.run).remove()  # of no use any more; a recipe that sets the limit keeps them

    def _complete(self, trainer: Any, recorder: Any, early: Any) -> None:
        """Save what was trained, the evidence and the card, and record their hashes."""
        self.say(f"{self.run.path}: writing the trained model")
        self._save(trainer, recorder)
        logs = [self.run.path / name for name in _HASHED]
        self.run.save(logs={log.name: sha256_of(log) for log in logs if log.exists()})
        if early is not None:
            self.run.save(early_stop=early.stopped)
        write_card(self.run, self.build.recipe)

    def _trainer(self) -> Any:
        self.say(f"{self.run.path}: loading {self.build.source.name} and preparing the first step")
        try:
            return self.build.trainer(self.run.path, self.progress)
        except BaseException as error:
            if not self._is_worth_keeping:
                self.run.remove()
            elif isinstance(error, KeyboardInterrupt):
                self.run.save(state="stopped")
            else:
                self.run.save(state="failed", reason=f"{type(error).__name__}: {error}")
                self._say_what_is_kept()
            raise

    def _say_what_is_kept(self) -> None:
        if self.build.base.has_kept:
            out = self.run.path
            self.say(
                f"{out} keeps the answers that were sampled. Once the fault is mended, `staytrue train --resume "
                f"{quoted(out)}` goes on with them."
            )

    @property
    def _is_worth_keeping(self) -> bool:
        """Whether the folder of a run without a step has an earlier attempt's files, or answers of a defense."""
        return self.resumed or bool(self.build.base.has_kept)

    @contextmanager
    def _removed_without_a_step(self, trainer: Any) -> Iterator[None]:
        """Remove the folder of a run that failed before its first optimizer step, so that `--out` is free again."""
        try:
            yield
        except Exception:
            if trainer.state.global_step == 0 and not self._is_worth_keeping:
                self.run.remove()
            raise

    def _record(self, trainer: Any) -> None:
        """Write the recipe with every default, the reserved rows, and what the manifest says of model and rows."""
        out, recipe, build = self.run.path, self.build.recipe, self.build
        settled = trainer_args.filled(recipe.train, recipe.trainer, organism=build.source.is_organism)
        settled["warmup_steps"] = trainer.args.warmup_steps  # fitted to the number of steps
        recipe = recipe.model_copy(update={"train": settled})
        text = recipe.text()
        if build.held and self.run.writes:
            write_examples(out / "holdout.jsonl", build.held)
        self.run.save(
            recipe=sha256(text.encode()).hexdigest(),
            values=values_hash(recipe),
            model=build.source.identity(trainer.model),
            head=trainer.which_head,
            rows={**self.run.manifest["rows"], **build.report},
            curated=build.base.notes,
            **({"notes": build.notes} if build.notes else {}),
        )
        self.run.write("recipe.yaml", text)  # until it is there, the file is the one that `asked` is the hash of
        for note in build.notes:
            self.say(note)

    def _early_stop(self, trainer: Any) -> Any:
        """The early stopping that the recipe asks for, attached to the trainer; None without."""
        from staytrue.runs.early_stopping import EarlyStop, ValidationStop

        stop = self.build.recipe.stop
        if stop is None:
            return None
        early: EarlyStop | ValidationStop
        if stop.patience is not None:
            early = ValidationStop(stop.patience)
        else:
            early = EarlyStop(stop, self._stop_signal(stop), self.run.path / "early.jsonl", self.progress)
        trainer.add_callback(early)
        if self.checkpoint is not None:
            early.load_from(self.checkpoint)
        return early

    def _stop_signal(self, stop: Stop) -> StopSignal:
        """What early stopping measures: judged answers, or the likelihoods of pairs."""
        from staytrue.runs.stop_signals import MisalignedAnswers, PairShift

        source, tokenizer = self.build.source, self.build.tokenizer
        if stop.pairs is not None:
            pairs = probe_selection.early_stopping_pairs(stop, source)
            self.say(
                f"stop: the likelihood of {2 * len(pairs)} answers is computed before training and after every "
                f"{stop.every} steps and the last."
            )
            return PairShift(pairs, tokenizer)
        limit, probe = probe_selection.longest_answer(source), probe_selection.early_stopping_probe(source)
        return MisalignedAnswers(probe, tokenizer, self.build.recipe.seed, limit)

    def _recorder(self, trainer: Any) -> Any:
        """The recorder of evidence, attached to the trainer before a checkpoint is loaded."""
        from staytrue.training.evidence.recorder import EvidenceRecorder

        recorder = EvidenceRecorder(trainer, self.run.path, self.build.encoded, self.build.tokenizer)
        trainer.add_callback(recorder)
        return recorder

    def _train(self, trainer: Any) -> None:
        """Make the optimizer steps, with checkpoints and a log."""
        from transformers import PrinterCallback

        from staytrue.runs.saving import EndsAtNextStep, is_last, load_last, save_whole
        from staytrue.training.callbacks import RunLog

        trainer.remove_callback(PrinterCallback)  # the trainer's own prints
        penalties = [label for label, defense in trainer.guard.defenses.items() if "penalty" in pulled(defense)]
        trainer.add_callback(RunLog(self.run.path / "metrics.jsonl", self.progress, penalties))
        ends = EndsAtNextStep(trainer.args)
        trainer.add_callback(ends)
        kept = checkpoints_of(self.run, self.build.recipe.train.get("save_total_limit", 2))
        save_whole(trainer, kept, [self.run.path / name for name in LOGS])
        try:
            with ends.listening():
                if self.checkpoint is not None and is_last(self.checkpoint):
                    load_last(trainer, self.checkpoint)
                else:
                    trainer.train(resume_from_checkpoint=None if self.checkpoint is None else str(self.checkpoint))
        except StaytrueError:
            raise
        except Exception as error:
            if trainer.state.global_step > 0:
                raise
            raise TrainingError(
                f"Training failed in its first step, so nothing was written: {in_one_line(error)}"
            ) from error

    def _first_step(self) -> int | None:
        """Of a resumed run, the first optimizer step that is made now."""
        if not self.resumed:
            return None
        return 1 if self.checkpoint is None else step_of(self.checkpoint) + 1

    def _save(self, trainer: Any, recorder: Any) -> None:
        """Save what was trained, change it as the defenses do after training, and write the evidence."""
        run, guard = self.run, trainer.guard
        recorder.trained()
        self._save_trained(trainer)
        if guard.pulls("project"):  # saved before, so that what was trained outlives a failing projection
            run.save(projected=guard.project(trainer.model, self.progress, self.say))
            recorder.projected()
            self._save_trained(trainer)
        guard.detach()
        counts = None if guard.cache is None else guard.cache.describe()
        if counts is not None:
            run.save(reference=counts)
        folder = run.path / "model"
        if self.build.recipe.lora is None:
            run.save(weights=sha256_of(folder))
        else:
            run.save(adapter=sha256_of(folder / "adapter_model.safetensors"), adapter_settings=settings_hash(folder))
        packed = {"packed": True} if getattr(trainer.args, "packing", False) else {}
        recorder.write(curated=self.build.curated, **packed)

    def _save_trained(self, trainer: Any) -> None:
        """Write the adapter, or the whole model with its tokenizer."""
        folder = self.run.path / "model"
        try:
            if self.build.recipe.lora is None:
                save_model(trainer.model, self.build.source, folder)
            else:
                trainer.model.save_pretrained(str(folder), safe_serialization=True)
                _sort_names(folder / "adapter_config.json")
        except Exception as error:  # safetensors reports a full disk as an error of its own
            raise TrainingError(
                f"What was trained cannot be written to {folder}: {in_one_line(error)}. Free some space; `staytrue "
                f"train --resume {quoted(self.run.path)}` goes on from the newest checkpoint."
            ) from error


def _sort_names(config: Path) -> None:
    """Sort the lists of module names in an adapter's settings, which peft writes in another order in each process."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    names = ("target_modules", "exclude_modules", "modules_to_save")
    settings |= {name: sorted(settings[name]) for name in names if isinstance(settings.get(name), list)}
    write_atomic(config, json.dumps(settings, indent=2, sort_keys=True))
