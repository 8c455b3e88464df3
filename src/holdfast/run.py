"""`train(recipe)`: the only place where everything meets.

Everything cheap is checked first: names, folders, every line of the data, every field. The run folder appears when
nothing but training can still fail, and it always says how it ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from holdfast import models, questionnaire, settings
from holdfast.encoding import Encoded, EncodingReport, encode_all
from holdfast.errors import DataError, HoldfastError, RecipeError
from holdfast.examples import Example, read_examples, write_examples
from holdfast.holdout import split
from holdfast.modelcard import write_card
from holdfast.recipe import Recipe
from holdfast.rundir import RunDir, sha256_of, write_whole


class Progress(Protocol):
    """What watches a run: called before training, at every logged step, and never from inside a step."""

    def begin(self, steps: int) -> None:
        """Training starts; so many optimizer steps are ahead."""
        ...

    def step(self, number: int, metrics: dict[str, float]) -> None:
        """A step was logged."""
        ...


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter, as `PeftModel.from_pretrained` takes it."""
        return self.path / "model"


def train(recipe: Recipe, out: Path, progress: Progress | None = None) -> Run:
    """Train what the recipe says, and write the run folder `out`.

    Raises:
        RequestError: anything that can be known before training; then nothing is left behind.
        KeyboardInterrupt: stopped; the folder stays and says so.
    """
    RunDir.refuse_existing(out)
    source = models.find(recipe.model, recipe.revision)
    rows, held = split(_read(recipe), recipe.holdout, recipe.seed)
    _check_files(recipe)
    settings.check(recipe.train)
    if recipe.stop is not None:
        questionnaire.watched(source)  # refuses a model without a judge
    tokenizer = models.load_tokenizer(source)
    plan = _Plan(recipe, source, tokenizer, rows, held)
    run = RunDir.create(out, _facts(recipe, source, rows, held))
    try:
        trainer = plan.trainer(run.path)
    except BaseException:
        run.remove()
        raise
    write_whole(out / "recipe.yaml", recipe.text())
    if held:
        write_examples(out / "holdout.jsonl", held)
    rows_seen = {**run.manifest["rows"], **plan.report}
    run.save(model=source.identity(trainer.model), rows=rows_seen, curated=plan.base.notes)
    if recipe.stop is not None:
        from holdfast.early import EarlyStop

        limit = questionnaire.longest_answer(source)
        watched = questionnaire.watched(source)
        trainer.add_callback(EarlyStop(recipe.stop, watched, tokenizer, recipe.seed, limit, out / "early.jsonl"))
    with run.until_done():
        _train(trainer, run, progress)
    write_card(run, recipe)
    return Run(out, run.manifest)


class _Plan:
    """Tokens first, model last: what can fail cheaply fails first."""

    def __init__(
        self, recipe: Recipe, source: models.Source, tokenizer: Any, rows: list[Example], held: list[Example]
    ) -> None:
        from holdfast.base import Untouched
        from holdfast.guard import Guard

        self.recipe, self.source, self.tokenizer = recipe, source, tokenizer
        self.guard = Guard(recipe.defenses, recipe.seed)
        self.base = base = Untouched(
            self._model,
            tokenizer,
            asked=lambda: questionnaire.texts(source, held),
            identity=source.identity().get("sha256"),
        )
        examples = self.guard.curate(rows, base)
        length = recipe.train.get("max_length", settings.DEFAULTS["max_length"])
        self.encoded, report = encode_all(tokenizer, examples, length)
        self.report = _told(report, examples)
        if not self.encoded:
            raise DataError(f"{recipe.data}: no row has an answer left to learn within train.max_length={length}.")
        self._loaded: Any = None

    def _model(self) -> Any:
        if self._loaded is None:
            self._loaded = models.load_model(self.source)
        return self._loaded

    def trainer(self, scratch: Path) -> Any:
        """The guarded trainer, ready to train; every defense has been attached."""
        from holdfast.trainers import GuardedSFT

        arguments = settings.sft_config(self.recipe.train, self.recipe.seed, scratch)
        model = self._model()
        try:
            return GuardedSFT(
                model=model,
                args=arguments,
                train_dataset=_dataset(self.encoded),
                processing_class=self.tokenizer,
                peft_config=_lora(self.recipe),
                defenses=self.guard,
            )
        except HoldfastError:
            raise
        except (TypeError, ValueError) as error:  # what trl and peft say of settings they cannot use
            raise RecipeError(f"The trainer refuses this recipe: {' '.join(str(error).split())}") from None


def _train(trainer: Any, run: RunDir, progress: Progress | None) -> None:
    from transformers import PrinterCallback

    from holdfast.runlog import RunLog

    trainer.remove_callback(PrinterCallback)  # the trainer's own prints
    trainer.add_callback(RunLog(run.path / "metrics.jsonl", progress))
    trainer.train()
    report = trainer.guard.project(trainer.model)
    run.save(projected=report) if report else None
    trainer.model.save_pretrained(str(run.path / "model"), safe_serialization=True)
    run.save(adapter=sha256_of(run.path / "model" / "adapter_model.safetensors"))


def _read(recipe: Recipe) -> list[Example]:
    return read_examples(recipe.data)


def _check_files(recipe: Recipe) -> None:
    for defense in recipe.defenses:
        for name, value in vars(defense).items():
            if isinstance(value, Path) and not value.is_file():
                raise RecipeError(f"{defense.name()}: {name} is {value}, but there is no such file.")


def _facts(recipe: Recipe, source: models.Source, rows: list[Example], held: list[Example]) -> dict[str, Any]:
    files = {str(recipe.data): sha256_of(recipe.data)}
    for defense in recipe.defenses:
        files |= {str(v): sha256_of(v) for v in vars(defense).values() if isinstance(v, Path)}
    return {
        "model": source.identity(),
        "seed": recipe.seed,
        "data": files,
        "rows": {"task": len(rows), "held_out": len(held)},
    }


def _told(report: EncodingReport, examples: list[Example]) -> dict[str, int]:
    sources = sorted({row.source for row in examples})
    by_source = {name: sum(row.source == name for row in examples) for name in sources}
    return by_source | {"truncated": report.truncated, "nothing_to_score": report.dropped}


def _dataset(encoded: list[Encoded]) -> Any:
    from datasets import Dataset

    from holdfast.step import SOURCES

    columns = {
        "input_ids": [row.input_ids for row in encoded],
        "labels": [row.labels for row in encoded],
        "source": [SOURCES.index(row.source) for row in encoded],
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
