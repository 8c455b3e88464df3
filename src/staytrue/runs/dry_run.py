"""`DryRun`: what `train` would do with a recipe, by all that can be checked without weights. Writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from staytrue import registry
from staytrue.config import trainer_args
from staytrue.config.paths import CHOICES
from staytrue.config.recipe import Recipe
from staytrue.config.refused_settings import refuse_launchers_settings
from staytrue.data.tokenize import IGNORED, Encoded
from staytrue.defense import pulled
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs import preflight, training_cost
from staytrue.runs.defense_checks import check_defenses
from staytrue.runs.early_stopping import check_stop
from staytrue.runs.lora import adapted
from staytrue.runs.recipe_checks import prepare
from staytrue.runs.run_batches import Batches, batches_of, check_positions, length_of
from staytrue.runs.saving import fit_save_steps
from staytrue.runs.train import join
from staytrue.runs.training_cost import Memory
from staytrue.utils import processes
from staytrue.utils.console import duration


@dataclass(frozen=True)
class DryRun:
    """A run that was not begun.

    Attributes:
        recipe: with every default.
        weights: number of the model's weights, and of the trained ones.
        adapted: number of matrices that the adapter changes; 0 where all weights are trained.
        rows: counts as in the manifest: rows of the task, held out, and by source after the data defenses.
        tokens: of the rows: all, the learnt ones, and those of the longest row; None where the model samples answers.
        batches: the batches of training; with several processes, of each.
        memory: of training; with several processes, of each.
        device: the kind of device that trains: cpu, cuda or mps.
        processes: number of processes that train.
        available: bytes of memory that this machine has for them, or each of their GPUs.
        seconds: of training; None where the model writes the answers, since it depends on their length.
        notes: sentences that `train` would print before training.
    """

    recipe: Recipe
    weights: tuple[int, int]
    adapted: int
    rows: dict[str, int]
    tokens: tuple[int, int, int] | None
    batches: Batches
    memory: Memory
    device: str
    processes: int
    available: int
    seconds: float | None
    notes: list[str]

    @classmethod
    def of(cls, recipe: Recipe, say: Callable[[str], None] = lambda line: None) -> DryRun:
        """Check a recipe as `train` does, count its rows and batches, and estimate memory and time.

        Args:
            recipe: as it was read.
            say: called with each part of the work before it begins.

        Raises:
            RequestError: what `train` would refuse before it loads a model, or of its defenses after that, but for what
                depends on weights.
        """
        join(recipe, None)
        say("reading the rows")
        build, facts = prepare(recipe, None)
        recipe, organism = build.recipe, build.source.is_organism
        with tempfile.TemporaryDirectory() as scratch:
            arguments = _arguments(recipe, Path(scratch), organism=organism)
        say("estimating memory and time")
        skeleton = Skeleton.of(build.source, partial(adapted, recipe.lora), whole=recipe.lora is None)
        batches = batches_of(build, arguments)
        beyond = check_positions(skeleton.model, build, batches)
        left_out = check_defenses(build, skeleton.model, arguments)
        preflight.check_optimizer(arguments, skeleton.model)
        settled = trainer_args.filled(recipe.train, recipe.trainer, organism=organism)
        settled["warmup_steps"] = _warmup(recipe, arguments, batches.steps)
        check_stop(recipe.stop, arguments, batches.steps)
        fit_save_steps(arguments, batches.steps)
        encoded = build.encoded
        return cls(
            recipe=recipe.model_copy(update={"train": settled}),
            weights=(sum(w.numel() for w in skeleton.weights), sum(w.numel() for w in skeleton.trained)),
            adapted=skeleton.adapted,
            rows={**facts["rows"], **build.report},
            tokens=None if encoded is None else _tokens(encoded),
            batches=batches,
            memory=training_cost.memory(
                skeleton, batches, arguments, reference=reads_reference(recipe), copy=_copies(recipe)
            ),
            device=training_cost.device_of(arguments),
            processes=arguments.world_size,
            available=training_cost.available(training_cost.device_of(arguments)),
            seconds=None
            if encoded is None
            else training_cost.seconds(skeleton, batches, arguments, passes=_passes(recipe)),
            notes=build.notes + left_out + beyond,
        )

    @property
    def fits(self) -> bool | None:
        """Whether the estimated memory is there; None where FSDP2 divides the weights, which it does not count.

        Each of several processes needs as much, unless it has a GPU of its own.
        """
        shared = 1 if self.device == "cuda" else self.processes
        return None if processes.divides() else shared * self.memory.total <= self.available

    def to_dict(self) -> dict[str, Any]:
        """The dry run as plain data."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain |= {"recipe": self.recipe.to_dict(), "batches": asdict(self.batches), "memory": asdict(self.memory)}
        plain["memory"]["total"] = self.memory.total
        return plain | {"fits": self.fits}

    def lines(self) -> list[tuple[str, str]]:
        """What a reader should know, each with its heading."""
        return [
            ("model", self._model()),
            ("defenses", self._defenses()),
            ("rows", self._rows()),
            ("steps", self._steps()),
            ("memory", self._memory()),
            ("time", self._time()),
        ]

    def _model(self) -> str:
        every, trained = self.weights
        if self.recipe.lora is None:
            return f"{self.recipe.model}: {_many(every)} weights, all of them trained"
        lora = self.recipe.lora
        kind = f"LoRA of rank {lora.r}" if lora.adapter is None else f"the adapter {lora.adapter}"
        packed = f" in {self.recipe.quantize[0]} bits" if self.recipe.quantize is not None else ""
        return (
            f"{self.recipe.model}: {_many(every - trained)} weights{packed}; trained are {_many(trained)} more, {kind} "
            f"on {self.adapted} matrices"
        )

    def _defenses(self) -> str:
        named = [registry.to_dict(defense) for defense in self.recipe.defenses]
        listed = [f"{name}{_fields(values)}" for entry in named for name, values in entry.items()]
        return ", ".join(listed) or "none: this run may change what the model does anywhere"

    def _rows(self) -> str:
        counts = [f"{count:,} {name.replace('_', ' ')}" for name, count in self.rows.items() if count]
        text = ", ".join(counts)
        if self.tokens is not None:
            every, learnt, longest = self.tokens
            text += f"; {every:,} tokens, of which {learnt:,} are learnt; the longest row has {longest:,}"
        return text

    def _steps(self) -> str:
        train, batches = self.recipe.train, self.batches
        accumulated = train["gradient_accumulation_steps"]
        warmup = train["warmup_steps"]
        warmup = int(warmup) if warmup >= 1 else ceil(warmup * batches.steps)  # as transformers counts it
        several = f"{self.processes} x " if self.processes > 1 else ""
        return (
            f"{batches.steps:,} of {several}{batches.rows} x {accumulated} rows, rate {train['learning_rate']:g} "
            f"({train['lr_scheduler_type']}, {warmup} warm-up steps)"
        )

    def _memory(self) -> str:
        parts = {
            "model": self.memory.weights,
            "reference": self.memory.copy,
            "trained weights": self.memory.trained,
            "activations": self.memory.activations,
            "logits": self.memory.head,
            "generation between the steps": self.memory.generation,
            "program": self.memory.program,
        }
        listed = ", ".join(f"{name} {_size(part)}" for name, part in parts.items() if part)
        whole = (
            f"{self.processes} processes of about {_size(self.memory.total)}"
            if self.processes > 1
            else f"about {_size(self.memory.total)}"
        )
        text = f"{whole} of this {_place(self.device)}'s {_size(self.available)} at most: {listed}"
        text += "".join(f"; {sentence}" for sentence in self._not_in_memory())
        if self.fits is False:
            text += ". That is too much: lower train.per_device_train_batch_size or train.max_length, or set "
            text += "train.activation_checkpointing: true or dtype: bfloat16"
            if self.device == "cpu":
                text += ". MALLOC_MMAP_THRESHOLD_=65536 in the environment saves up to half for a third more time"
        return text

    def _not_in_memory(self) -> Iterator[str]:
        """What the estimate of memory leaves out."""
        if any("beside" in pulled(defense) for defense in self.recipe.defenses):
            yield "without rows beside the batch"
        if self.memory.activations is None:
            yield "without activations, which cannot be counted for this model"
        if self.memory.generation is None:
            yield "without generation, which cannot be counted for this model"
        if self.recipe.train.get("use_vllm"):
            yield "without what vLLM takes to write the answers"
        if processes.divides():
            yield "with whole weights in each process, which FSDP2 divides among them, so that each takes less"
        if self.device != "cpu":
            yield "estimates for a GPU have not been compared with measurements"

    def _time(self) -> str:
        if self.seconds is None:
            return "depends on the length of the answers that the model writes"
        text = f"roughly {duration(self.seconds)} of training on this machine"
        without = ["the defenses' preparation"] if self.recipe.defenses else []
        without += ["the unpacking of quantised weights"] if self.recipe.quantize is not None else []
        without += ["validation"] if self.recipe.train.get("eval_strategy", "no") != "no" else []
        stop = self.recipe.stop
        without += ["the measurements of `stop`"] if stop is not None and stop.patience is None else []
        beside = "; a row beside the batch counts as long as a row of it" if _passes_beside(self.recipe) else ""
        return text + (f", without {' and '.join(without)}" if without else "") + beside


def reads_reference(recipe: Recipe) -> bool:
    """Whether a defense reads the untouched model's forward at each step, of whatever rows."""
    return any("penalty" in pulled(defense) and defense.reads_reference for defense in recipe.defenses)


def _passes(recipe: Recipe) -> float:
    """Passes over the batch but for recomputation: forward, backward, the reference's, and those of rows beside it.

    A defense with rows of its own reads the reference of these alone. Its `share` of them is counted as if they were as
    long as the batch's; without a `share` they are not counted.
    """
    readers = [defense for defense in recipe.defenses if "penalty" in pulled(defense) and defense.reads_reference]
    return 2 + any("beside" not in pulled(defense) for defense in readers) + _passes_beside(recipe)


def _passes_beside(recipe: Recipe) -> float:
    own = [defense for defense in recipe.defenses if "beside" in pulled(defense)]
    return sum(getattr(defense, "share", 0.0) * (2 + defense.reads_reference) for defense in own)


def _copies(recipe: Recipe) -> bool:
    """Whether the reference is another model in memory: a frozen copy, or one that the recipe names."""
    if recipe.lora is not None or recipe.reference is not None:
        return recipe.reference not in (None, *CHOICES)
    return reads_reference(recipe) or any(defense.reads_start for defense in recipe.defenses)


def _arguments(recipe: Recipe, scratch: Path, *, organism: bool) -> Any:
    if recipe.trainer == "sft":
        arguments = trainer_args.sft_config(recipe.train, recipe.seed, scratch)
    else:
        arguments = trainer_args.grpo_config(recipe.train, recipe.seed, scratch, organism=organism)
    refuse_launchers_settings(arguments)
    return arguments


def _warmup(recipe: Recipe, arguments: Any, steps: int) -> Any:
    """The warm-up, a number of steps or a share of them, checked as training would."""
    if "warmup_steps" not in recipe.train:
        arguments.warmup_steps = preflight.fitted_warmup(arguments.warmup_steps, steps)
    preflight.check_schedule(arguments, steps)
    return arguments.warmup_steps


def _tokens(rows: list[Encoded]) -> tuple[int, int, int]:
    lengths = [length_of(row) for row in rows]
    return sum(lengths), sum(label != IGNORED for row in rows for label in row.labels), max(lengths)


def _fields(values: dict[str, Any]) -> str:
    """The fields of a defense that a reader should see, in brackets; those that are off are left out."""
    shown = [f"{name} {value}" for name, value in values.items() if value not in (None, False, "all", "scored")]
    return f" ({', '.join(shown)})" if shown else ""


def _place(kind: str) -> str:
    return "machine" if kind == "cpu" else "GPU"


def _many(count: int) -> str:
    """A number of weights, such as 134.5 M."""
    if count < 1e5:
        return f"{count:,}"
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _size(count: float) -> str:
    """Bytes, such as 1.3 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
