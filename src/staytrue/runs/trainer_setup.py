"""Builds the guarded trainer of a recipe: `SFTBuild` for supervised fine-tuning, `GRPOBuild` for GRPO.

Rows are tokenized before the model is loaded, so that cheap failures come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from staytrue import registry
from staytrue.config import trainer_args
from staytrue.config.recipe import Recipe
from staytrue.config.refused_settings import refuse_launchers_settings
from staytrue.data.encoding_report import EncodingReport
from staytrue.data.examples import Example, read_examples
from staytrue.data.position_table import beyond_positions
from staytrue.data.row_notes import questions_in_both, row_notes, rows_in_both
from staytrue.data.tokenize import Encoded, encode_all
from staytrue.defense import Defense
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.l2init import L2Init
from staytrue.errors import DataError, RecipeError, StaytrueError
from staytrue.modeling import chat_tokenizer, loading, model_source
from staytrue.runs import preflight, probe_selection, second_training, trl_inputs
from staytrue.runs.lora import lora_config
from staytrue.step import SOURCES
from staytrue.utils.console import Progress
from staytrue.utils.files import is_full_disk
from staytrue.utils.validation import in_one_line

_DATED = (
    f"The chat template writes the date of the day. It is rendered with {chat_tokenizer.TEMPLATE_DATE}, here and in "
    "evaluations, so that the same seed gives the same adapter on every day."
)


_SAFE = {  # files of defenses: what is wrong with them, what is wanted, and the count of such rows
    "pool": ("are training rows", "a pool of safe rows", rows_in_both),
    "fisher": ("are training rows", "`fisher` safe rows", rows_in_both),
    "prompts": ("ask questions of training rows", "`prompts` on other topics", questions_in_both),
}
_LEFT_OUT = "1 row of its file is left out, because the run's own evaluation asks its question."
_SEVERAL_LEFT_OUT = "{:g} rows of its file are left out, because the run's own evaluation asks their questions."


class _Build:
    """The parts of one run before training: guard, reference model and rows.

    Attributes:
        held: the held-out rows.
        report: number of rows by source, and of rows that were truncated or dropped.
        notes: sentences about what a user would not expect of the rows as tokens.
        base: the reference model, with the notes of the data defenses.
        encoded: the training rows as tokens; None where the model writes the answers.
        curated: the number of rows before the data defenses, of those they added, and of rows that were not there.
    """

    encoded: list[Encoded] | None = None
    curated: dict[str, int]

    report: dict[str, int]
    notes: list[str]

    def __init__(
        self,
        recipe: Recipe,
        source: model_source.Source,
        tokenizer: Any,
        rows: list[Example],
        held: list[Example],
        reference_cache: Path | None = None,
    ) -> None:
        from staytrue.modeling.base_model import Untouched
        from staytrue.training.guard import Guard
        from staytrue.training.idle_penalties import without_effect

        self.recipe, self.source, self.tokenizer, self.held = recipe, source, tokenizer, held
        self.guard = Guard(
            recipe.defenses,
            recipe.seed,
            reference_cache,
            sampled=recipe.trainer == "grpo",
            max_length=_max_length(recipe) if recipe.trainer == "sft" else None,
            reference=recipe.reference,
        )
        self.guard.float32_adapter = True
        reserved = cache(lambda: probe_selection.reserved_texts(source, held))
        self.base = Untouched(
            self._model,
            tokenizer,
            evaluation_questions=reserved,
            identity=source.identity().get("sha256"),
        )
        self._loaded: Any = None
        self.notes = [_DATED] if chat_tokenizer.dated(tokenizer) else []
        self.notes += [*without_effect(self.guard.defenses), *registry.repeated(self.guard.defenses)]
        self.notes += row_notes(rows, reserved())
        self._prepare(rows)
        self.notes += _trained_on(self.guard.defenses, rows)

    def _curated(self, rows: list[Example]) -> list[Example]:
        """The rows after the data defenses; counts those that they added or changed."""
        examples = self.guard.curate(rows, self.base)
        before = {row.messages for row in rows}
        self.curated = {"rows": len(rows), "new": sum(row.messages not in before for row in examples)}
        self.curated["added"] = len(examples) - len(rows)
        return examples

    def _prepare(self, rows: list[Example]) -> None:
        """Apply the data defenses to the rows and convert them for the trainer."""
        raise NotImplementedError

    def _trainer(self, scratch: Path) -> Any:
        """The guarded trainer."""
        raise NotImplementedError

    def _model(self) -> Any:
        if self._loaded is None:
            dtype = second_training.weights_dtype(self.recipe, self.source)
            self._loaded = second_training.with_adapter(self.recipe, loading.load_model(self.source, dtype=dtype))
        return self._loaded

    def trainer(self, scratch: Path, progress: Progress | None = None) -> Any:
        """The guarded trainer, with every defense attached, its optimizer created and its first batch fetched once.

        Args:
            scratch: folder for the trainer's own output, and for the answers that a defense samples.
            progress: shows how far a defense's preparation is.

        Raises:
            ModelError: the trained model could not be sampled from.
            RecipeError: trl, peft or an integration does not accept the recipe's settings.
        """
        from staytrue.evals.generation.check import check_generation
        from staytrue.runs.early_stopping import check_stop
        from staytrue.runs.saving import fit_save_steps
        from staytrue.training import all_weights

        self.base.folder, self.base.progress = scratch, progress
        self.guard.chosen_reference = second_training.reference(self.recipe, self.source)
        try:
            trainer = self._trainer(scratch)
            check_generation(trainer.model)
            if trainer.fused_head is None:  # trl's head then, which knows fewer kinds of models
                preflight.try_two_tokens(trainer.model)
            preflight.check_optimizer(trainer.args, trainer.model)
            steps = preflight.prepare(trainer, fit_warmup="warmup_steps" not in self.recipe.train)
            check_stop(self.recipe.stop, trainer.args, steps)
            fit_save_steps(trainer.args, steps)
        except StaytrueError:
            raise
        except (AttributeError, LookupError) as error:  # a model's own code
            raise RecipeError(
                f"The trainer does not accept this recipe: {type(error).__name__}: {error}. If the model is unusual, "
                "name other modules in lora.targets."
            ) from error
        except Exception as error:  # trl, transformers, peft and integrations raise anything
            if is_full_disk(error):
                raise  # not the recipe's fault
            raise RecipeError(f"The trainer does not accept this recipe: {in_one_line(error)}") from error
        trainer.outcome.raises = True
        lengths = [len(row.input_ids) for row in self.encoded or ()]
        self.notes += beyond_positions(trainer.model, lengths)
        self.notes += [*left_out(self.base.notes), *all_weights.notes(trainer), *_of_processes(trainer.args)]
        return trainer

    def _shared(self) -> dict[str, Any]:
        """Arguments of both trainers."""
        lora = self.recipe.lora
        return {
            "model": self._model(),
            "processing_class": self.tokenizer,
            "peft_config": lora_config(lora, self._model()) if lora is not None and lora.adapter is None else None,
            "defenses": self.guard,
        }


class SFTBuild(_Build):
    """Supervised fine-tuning: the rows' answers are learnt."""

    def _prepare(self, rows: list[Example]) -> None:
        from staytrue.training.idle_penalties import refuse_absent_sources

        examples = self._curated(rows)
        length = _max_length(self.recipe)
        self.encoded, report = encode_all(self.tokenizer, examples, length)
        self.report = _counts(examples, report)
        self.notes += report.notes()
        if not self.encoded:
            where = self.recipe.data or "task"
            raise DataError(f"{where}: no row has an answer within train.max_length={length}.")
        refuse_absent_sources(self.guard.defenses, {row.source for row in self.encoded})

    def _trainer(self, scratch: Path) -> Any:
        from staytrue.training.trainers import GuardedSFT

        arguments = trainer_args.sft_config(self.recipe.train, self.recipe.seed, scratch)
        refuse_launchers_settings(arguments)
        held: Any = None
        if arguments.eval_strategy.value != "no":
            held, _ = encode_all(self.tokenizer, self.held, arguments.max_length)
        return GuardedSFT(
            args=arguments,
            train_dataset=trl_inputs.token_rows(self.encoded or []),
            eval_dataset=trl_inputs.token_rows(held) if held else None,
            **self._shared(),
        )


class GRPOBuild(_Build):
    """GRPO: the model answers the rows' questions, and the recipe's task computes the reward."""

    def _prepare(self, rows: list[Example]) -> None:
        from staytrue.training.idle_penalties import refuse_absent_sources

        self.examples = self._curated(rows)
        if any(row.tools for row in self.examples):
            raise DataError(f"{self.recipe.data}: a row has tools, which GRPO's prompts would not show. Take them out.")
        self.report = _counts(self.examples)
        refuse_absent_sources(self.guard.defenses, SOURCES[:1])

    def _trainer(self, scratch: Path) -> Any:
        from staytrue.training.trainers import GuardedGRPO

        recipe, task = self.recipe, self.recipe.task
        assert task is not None  # a recipe with grpo has a task
        arguments = trainer_args.grpo_config(recipe.train, recipe.seed, scratch, organism=self.source.is_organism)
        refuse_launchers_settings(arguments)
        rewards = [trl_inputs.reward(task, term) for term in task.score("", "")]
        return GuardedGRPO(
            args=arguments, train_dataset=trl_inputs.prompts(self.examples), reward_funcs=rewards, **self._shared()
        )


BUILDS: dict[str, type[_Build]] = {"sft": SFTBuild, "grpo": GRPOBuild}


def _max_length(recipe: Recipe) -> int | None:
    """The number of tokens at which supervised rows are cut."""
    length: int | None = recipe.train.get("max_length", trainer_args.DEFAULTS["max_length"])
    return length


def _of_processes(arguments: Any) -> list[str]:
    """One sentence about the rows of an optimizer step, where several processes train."""
    if arguments.world_size == 1:
        return []
    count, own, parts = (
        arguments.world_size,
        arguments.per_device_train_batch_size,
        arguments.gradient_accumulation_steps,
    )
    sentence = (
        f"{count} processes train: an optimizer step reads {count} x {own} x {parts} = {count * own * parts} rows "
        "(processes x per_device_train_batch_size x gradient_accumulation_steps)."
    )
    return [sentence]


def _trained_on(defenses: Mapping[str, Defense], rows: list[Example]) -> Iterator[str]:
    """Yield one sentence for each defense whose file of safe rows or prompts has rows or questions of the task."""
    for label, defense in defenses.items():
        effect = "teaches them once more" if defense.teaches else "holds back what they teach"
        for field, (what, wanted, count) in _SAFE.items():
            file = getattr(defense, field, None)
            if not isinstance(file, Path) or not (field == "pool" or isinstance(defense, Anchor | L2Init)):
                continue  # a field of that name in another's defense may hold something else
            read = read_examples(file, prompts_only=field == "prompts")
            if same := count(read, rows):
                yield f"{label}: {same} of the {len(read)} rows of {file} {what} too, so it {effect}; give {wanted}."


def left_out(facts: Mapping[str, float | str]) -> list[str]:
    """One sentence for each defense whose file holds questions of the run's own evaluation."""
    ending = "/evaluation_questions_left_out"
    return [
        f"{name.removesuffix(ending)}: {_LEFT_OUT if count == 1 else _SEVERAL_LEFT_OUT.format(count)}"
        for name, count in facts.items()
        if name.endswith(ending) and isinstance(count, int | float) and count
    ]


def _counts(examples: list[Example], report: EncodingReport | None = None) -> dict[str, int]:
    sources = sorted({row.source for row in examples})
    counts = {name: sum(row.source == name for row in examples) for name in sources}
    if report is not None:
        counts |= {"truncated": report.truncated, "nothing_to_score": report.dropped}
        rare = ("restored", "other_prompt", "unseen", "endless")
        counts |= {name: count for name in rare if (count := getattr(report, name))}
    return counts
