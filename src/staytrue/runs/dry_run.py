"""`DryRun`: what `train` would do with a recipe, by all that is checked before a weight is loaded. Writes nothing."""

from __future__ import annotations

import math
import random
import tempfile
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from staytrue import registry
from staytrue.config import trainer_args
from staytrue.config.paths import CHOICES
from staytrue.config.recipe import Recipe
from staytrue.data.tokenize import IGNORED, Encoded, encode_prompt
from staytrue.defense import pulled
from staytrue.errors import RecipeError
from staytrue.modeling.skeleton import Skeleton
from staytrue.runs import preflight, training_cost
from staytrue.runs.lora import adapted
from staytrue.runs.recipe_checks import prepare
from staytrue.runs.training_cost import Batches, Memory
from staytrue.training.step_count import too_few_rows
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
        batches: the batches of training.
        memory: of training.
        available: bytes of memory that this machine has.
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
    available: int
    seconds: float | None
    notes: list[str]

    @classmethod
    def of(cls, recipe: Recipe) -> DryRun:
        """Check a recipe as `train` does, count its rows and batches, and estimate memory and time.

        Raises:
            RequestError: what `train` would refuse before it loads a model.
        """
        build, facts = prepare(recipe, None)
        recipe, organism = build.recipe, build.source.is_organism
        with tempfile.TemporaryDirectory() as scratch:
            arguments = _arguments(recipe, Path(scratch), organism=organism)
        skeleton = Skeleton.of(build.source, partial(adapted, recipe.lora), whole=recipe.lora is None)
        batches = _batches(build, arguments)
        settled = trainer_args.filled(recipe.train, recipe.trainer, organism=organism)
        settled["warmup_steps"] = _warmup(recipe, arguments, batches.steps)
        encoded, reference = build.encoded, reads_reference(recipe)
        return cls(
            recipe=recipe.model_copy(update={"train": settled}),
            weights=(sum(w.numel() for w in skeleton.weights), sum(w.numel() for w in skeleton.trained)),
            adapted=skeleton.adapted,
            rows={**facts["rows"], **build.report},
            tokens=None if encoded is None else _tokens(encoded),
            batches=batches,
            memory=training_cost.memory(skeleton, batches, arguments, reference=reference, copy=_copies(recipe)),
            available=training_cost.available(),
            seconds=None
            if encoded is None
            else training_cost.seconds(skeleton, batches, arguments, reference=reference),
            notes=build.notes,
        )

    def to_dict(self) -> dict[str, Any]:
        """The dry run as plain data."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        plain |= {"recipe": self.recipe.to_dict(), "batches": asdict(self.batches), "memory": asdict(self.memory)}
        return plain

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
        return (
            f"{batches.steps:,} of {batches.rows} x {accumulated} rows, rate {train['learning_rate']:g} "
            f"({train['lr_scheduler_type']}, {train['warmup_steps']:g} warm-up steps)"
        )

    def _memory(self) -> str:
        parts = {
            "model": self.memory.weights,
            "reference": self.memory.copy,
            "trained weights": self.memory.trained,
            "activations": self.memory.activations,
            "logits": self.memory.head,
            "program": self.memory.program,
        }
        listed = ", ".join(f"{name} {_size(part)}" for name, part in parts.items() if part)
        text = f"about {_size(self.memory.total)} of this machine's {_size(self.available)} at most: {listed}"
        if self.tokens is None or any("beside" in pulled(defense) for defense in self.recipe.defenses):
            text += "; without generation and rows beside the batch"
        if self.memory.activations is None:
            text += "; and activations, which cannot be counted for this model"
        if self.memory.total > self.available:
            text += ". That is too much: lower train.per_device_train_batch_size or train.max_length, or set "
            text += "train.gradient_checkpointing: true or dtype: bfloat16"
            if training_cost.on_cpu():
                text += ". MALLOC_MMAP_THRESHOLD_=65536 in the environment saves up to half for a third more time"
        return text

    def _time(self) -> str:
        if self.seconds is None:
            return "depends on the length of the answers that the model writes"
        text = f"roughly {duration(self.seconds)} of training on this machine"
        without = ["the defenses' preparation"] if self.recipe.defenses else []
        without += ["validation"] if self.recipe.train.get("eval_strategy", "no") != "no" else []
        return text + (f", without {' and '.join(without)}" if without else "")


def reads_reference(recipe: Recipe) -> bool:
    """Whether a defense reads the untouched model's forward at each step."""
    return any("penalty" in pulled(defense) and defense.reads_reference for defense in recipe.defenses)


def _copies(recipe: Recipe) -> bool:
    """Whether the reference is another model in memory: a frozen copy, or one that the recipe names."""
    if recipe.lora is not None or recipe.reference is not None:
        return recipe.reference not in (None, *CHOICES)
    return reads_reference(recipe) or any(defense.reads_start for defense in recipe.defenses)


def _arguments(recipe: Recipe, scratch: Path, *, organism: bool) -> Any:
    if recipe.trainer == "sft":
        return trainer_args.sft_config(recipe.train, recipe.seed, scratch)
    return trainer_args.grpo_config(recipe.train, recipe.seed, scratch, organism=organism)


def _warmup(recipe: Recipe, arguments: Any, steps: int) -> Any:
    """The number of warm-up steps, checked as training would."""
    if "warmup_steps" not in recipe.train:
        arguments.warmup_steps = preflight.fitted_warmup(arguments.warmup_steps, steps)
    preflight.check_schedule(arguments, steps)
    return arguments.warmup_steps


def _batches(build: Any, arguments: Any) -> Batches:
    """The batches of the whole run."""
    rows = arguments.per_device_train_batch_size
    if build.encoded is None:
        return _batches_of_answers(build, arguments)
    lengths = [_length(row) for row in build.encoded]
    if arguments.packing:
        lengths = [min(arguments.max_length, sum(lengths))] * math.ceil(sum(lengths) / arguments.max_length)
    random.Random(0).shuffle(lengths)
    groups = [lengths[i : i + rows] for i in range(0, len(lengths), rows)]
    if arguments.dataloader_drop_last:
        groups = [group for group in groups if len(group) == rows]
    if not groups:
        raise RecipeError(too_few_rows(len(lengths), arguments))
    steps = preflight.optimizer_steps(arguments, len(groups))
    number = _micro_batches(steps, len(groups), arguments.gradient_accumulation_steps)
    joined = arguments.padding_free and not arguments.packing
    tokens = sum(sum(group) if joined else len(group) * max(group) for group in groups) * number // len(groups)
    return Batches(min(rows, len(lengths)), max(lengths), number, tokens, steps)


def _batches_of_answers(build: Any, arguments: Any) -> Batches:
    """The batches of GRPO, if every answer has the most tokens that it may have."""
    prompts = [len(encode_prompt(build.tokenizer, row.prompt)) for row in build.examples]
    at_once = arguments.generation_batch_size // arguments.num_generations
    rows = arguments.per_device_train_batch_size
    if len(prompts) < at_once:
        raise RecipeError(too_few_rows(len(prompts), arguments))
    micro_batches = len(prompts) // at_once * at_once * arguments.num_generations * arguments.num_iterations // rows
    steps = preflight.optimizer_steps(arguments, micro_batches)
    longest = max(prompts) + arguments.max_completion_length
    number = _micro_batches(steps, micro_batches, arguments.gradient_accumulation_steps)
    return Batches(rows, longest, number, number * rows * longest, steps)


def _micro_batches(steps: int, epoch: int, accumulated: int) -> int:
    """Batches of a run whose epochs have so many; the last step of an epoch has what is left."""
    epochs, rest = divmod(steps, math.ceil(epoch / accumulated))
    return epochs * epoch + min(rest * accumulated, epoch)


def _tokens(rows: list[Encoded]) -> tuple[int, int, int]:
    lengths = [_length(row) for row in rows]
    return sum(lengths), sum(label != IGNORED for row in rows for label in row.labels), max(lengths)


def _length(row: Encoded) -> int:
    return len(row.input_ids)


def _fields(values: dict[str, Any]) -> str:
    """The fields of a defense that a reader should see, in brackets; those that are off are left out."""
    shown = [f"{name} {value}" for name, value in values.items() if value not in (None, False, "all", "scored")]
    return f" ({', '.join(shown)})" if shown else ""


def _many(count: int) -> str:
    """A number of weights, such as 134.5 M."""
    if count < 1e5:
        return f"{count:,}"
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _size(count: float) -> str:
    """Bytes, such as 1.3 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
