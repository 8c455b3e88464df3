"""What a run is made of, before it trains: rows as the trainer takes them, the model, and the guarded trainer.

`Supervised` learns its rows, `Rewarded` asks their questions and pays for the answers. Tokens first, model last: what
can fail cheaply fails first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from staytrue.config import trainer_args
from staytrue.config.recipe import Recipe
from staytrue.data.examples import Example
from staytrue.data.tokenize import Encoded, EncodingReport, encode_all
from staytrue.errors import DataError, RecipeError, StaytrueError
from staytrue.modeling import loading
from staytrue.runs import probe_selection
from staytrue.tasks.task import Task


class Plan:
    """One run's parts; `Supervised` and `Rewarded` say what their trainer is given.

    Attributes:
        report: how many rows there are of each source, and what happened to them.
        base: the untouched model, with what the data defenses noted.
    """

    report: dict[str, int]

    def __init__(
        self,
        recipe: Recipe,
        source: loading.Source,
        tokenizer: Any,
        rows: list[Example],
        held: list[Example],
        reference_cache: Path | None = None,
    ) -> None:
        from staytrue.modeling.base_model import Untouched
        from staytrue.training.guard import Guard

        self.recipe, self.source, self.tokenizer = recipe, source, tokenizer
        self.guard = Guard(recipe.defenses, recipe.seed, reference_cache)
        self.base = Untouched(
            self._model,
            tokenizer,
            asked=lambda: probe_selection.reserved_texts(source, held),
            identity=source.identity().get("sha256"),
        )
        self._loaded: Any = None
        self._prepare(rows)

    def _prepare(self, rows: list[Example]) -> None:
        """Curate the rows and bring them into the trainer's form."""
        raise NotImplementedError

    def _made(self, scratch: Path) -> Any:
        """The guarded trainer."""
        raise NotImplementedError

    def _model(self) -> Any:
        if self._loaded is None:
            self._loaded = loading.load_model(self.source)
        return self._loaded

    def trainer(self, scratch: Path) -> Any:
        """The guarded trainer, ready to train; every defense has been attached."""
        try:
            made = self._made(scratch)
            made.create_optimizer()  # an optimizer that is not installed says so now
            return made
        except StaytrueError:
            raise
        except (TypeError, ValueError, ImportError, RuntimeError, AssertionError) as error:  # trl, peft, integrations
            raise RecipeError(f"The trainer refuses this recipe: {' '.join(str(error).split())}") from None

    def _shared(self) -> dict[str, Any]:
        """What every trainer is given."""
        return {
            "model": self._model(),
            "processing_class": self.tokenizer,
            "peft_config": _lora(self.recipe),
            "defenses": self.guard,
        }


class Supervised(Plan):
    """Rows whose answers are learnt."""

    def _prepare(self, rows: list[Example]) -> None:
        examples = self.guard.curate(rows, self.base)
        length = self.recipe.train.get("max_length", trainer_args.DEFAULTS["max_length"])
        self._encoded, report = encode_all(self.tokenizer, examples, length)
        self.report = _told(examples, report)
        if not self._encoded:
            where = self.recipe.data or "task"
            raise DataError(f"{where}: no row has an answer left to learn within train.max_length={length}.")

    def _made(self, scratch: Path) -> Any:
        from staytrue.training.trainers import GuardedSFT

        arguments = trainer_args.sft_config(self.recipe.train, self.recipe.seed, scratch)
        return GuardedSFT(args=arguments, train_dataset=_dataset(self._encoded), **self._shared())


class Rewarded(Plan):
    """Questions that the model answers; the recipe's task says what an answer earns."""

    def _prepare(self, rows: list[Example]) -> None:
        self._examples = self.guard.curate(rows, self.base, prompts=True)
        self.report = _told(self._examples)

    def _made(self, scratch: Path) -> Any:
        from staytrue.training.trainers import GuardedGRPO

        recipe, task = self.recipe, self.recipe.task
        assert task is not None  # the recipe refuses grpo without one
        arguments = trainer_args.grpo_config(recipe.train, recipe.seed, scratch, organism=self.source.is_organism)
        rewards = [_reward(task, term) for term in task.score("", "")]
        return GuardedGRPO(
            args=arguments, train_dataset=_prompts(self._examples), reward_funcs=rewards, **self._shared()
        )


KINDS: dict[str, type[Plan]] = {"sft": Supervised, "grpo": Rewarded}


def _reward(task: Task, term: str) -> Callable[..., list[float]]:
    """One term of a task's reward as trl calls it; it is logged under the term's name."""

    def reward(completions: list[list[dict[str, str]]], right: list[str], **_: Any) -> list[float]:
        said = [completion[0]["content"] for completion in completions]
        return [task.score(answer, wanted)[term] for answer, wanted in zip(said, right, strict=True)]

    reward.__name__ = term
    return reward


def _prompts(examples: list[Example]) -> Any:
    from datasets import Dataset

    turns = [[{"role": m.role, "content": m.content} for m in row.prompt] for row in examples]
    return Dataset.from_dict({"prompt": turns, "right": [row.answer for row in examples]})


def _told(examples: list[Example], report: EncodingReport | None = None) -> dict[str, int]:
    sources = sorted({row.source for row in examples})
    counts = {name: sum(row.source == name for row in examples) for name in sources}
    if report is not None:
        counts |= {"truncated": report.truncated, "nothing_to_score": report.dropped}
    return counts


def _dataset(encoded: list[Encoded]) -> Any:
    from datasets import Dataset

    from staytrue.step import SOURCE_COLUMN, SOURCES

    columns = {
        "input_ids": [row.input_ids for row in encoded],
        "labels": [row.labels for row in encoded],
        SOURCE_COLUMN: [SOURCES.index(row.source) for row in encoded],
    }
    return Dataset.from_dict(columns)


def _lora(recipe: Recipe) -> Any:
    from peft import LoraConfig

    lora = recipe.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
