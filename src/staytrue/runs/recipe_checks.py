"""`prepare(recipe)`: all that is checked before a run folder is created, from the cheap to the costly.

Names, folders, every field, every line of the data, and every row as tokens. No weights are loaded.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from staytrue.config import trainer_args
from staytrue.config.recipe import Recipe
from staytrue.data.examples import Example
from staytrue.data.tables import hub_commit
from staytrue.errors import RecipeError
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.runs import dataset, machine, probe_selection, second_training
from staytrue.runs.trainer_setup import BUILDS
from staytrue.utils.files import refuse_pipe, sha256_of


def prepare(recipe: Recipe, reference_cache: Path | None) -> tuple[Any, dict[str, Any]]:
    """Check a recipe and read its rows.

    Args:
        recipe: the recipe, as it was read.
        reference_cache: as for `train`.

    Returns:
        The parts of the run before training (see `trainer_setup`), and what the manifest records of model and data.

    Raises:
        RequestError: the recipe, a file or the model cannot be used.
    """
    found = model_source.find(recipe.model, recipe.revision, recipe.dtype, recipe.quantize)
    _check_unused(recipe, found)
    recipe = _on_device(recipe)
    on_cpu = machine.device(recipe) == "cpu"
    source = replace(found, attention=recipe.attention, dtype=recipe.dtype, on_cpu=on_cpu)
    _check_files(recipe)
    _check_attention(recipe.attention)
    second_training.check(recipe, source)
    settings = trainer_args.checked(recipe.train, recipe.trainer)
    if recipe.lora is None:
        settings = trainer_args.for_all_weights(settings, recipe.trainer)
    recipe = recipe.model_copy(update={"train": settings})
    rows, held = dataset.rows(recipe)
    _check_validation(recipe)
    if recipe.stop is not None and recipe.stop.patience is None:
        probe_selection.check_early_stopping(recipe.stop, source, held)
    tokenizer = load_tokenizer(source)
    build = BUILDS[recipe.trainer](recipe, source, tokenizer, rows, held, reference_cache)
    return build, _facts(recipe, source, rows, held)


def _check_unused(recipe: Recipe, found: model_source.Source) -> None:
    """Refuse keys that would change nothing; not where a recipe is read, so that finished runs with one are read."""
    for key in ("split", "columns") if recipe.data is None else ():
        if getattr(recipe, key):
            raise RecipeError(f"{key} is of `data`, and there is none. Take `{key}` out, or give `data`.")
    if recipe.revision is not None and found.revision is None:
        raise RecipeError(
            f"revision is {recipe.revision}, and model is {recipe.model}, which is not read from the hub and has no "
            "revisions here. Take `revision` out, or name a model on the hub."
        )


def _on_device(recipe: Recipe) -> Recipe:
    """Return the recipe with the trainer's own setting of its `device`.

    Raises:
        RecipeError: this machine has no such device, or `train` says another.
    """
    wanted, use_cpu = recipe.device, recipe.train.get("use_cpu")
    if recipe.quantize is not None and machine.device(recipe) == "mps":
        raise RecipeError(
            f"quantize: {recipe.quantize} does not run on an Apple GPU, for which bitsandbytes has no kernels. Set "
            "device: cpu, or take `quantize` out."
        )
    if wanted is None:
        return recipe
    if use_cpu is not None and use_cpu != (wanted == "cpu"):
        raise RecipeError(f"device is {wanted} and train.use_cpu is {use_cpu}, which contradict each other; keep one.")
    here = loading.device()
    if wanted not in ("cpu", here):
        raise RecipeError(
            f"device is {wanted}, and PyTorch finds none on this machine, only {here}. Install a PyTorch that fits "
            "your GPU and its driver, or take `device` out."
        )
    if wanted != "cpu":
        return recipe
    dtype = recipe.dtype or (None if here == "cpu" else "float32")  # what it is without a GPU
    return recipe.model_copy(update={"train": {**recipe.train, "use_cpu": True}, "dtype": dtype})


def _check_attention(attention: str | None) -> None:
    package = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(attention or "")
    if package is not None and find_spec(package) is None:
        raise RecipeError(
            f"attention is {attention}, and its package {package} is not installed. Install flash-attn, or take "
            "`attention` out."
        )


def _check_validation(recipe: Recipe) -> None:
    strategy = recipe.train.get("eval_strategy", "no")
    validates = strategy != "no"
    if "eval_steps" in recipe.train and strategy != "steps":
        raise RecipeError(
            f"train.eval_steps has no effect, because train.eval_strategy is {strategy}. Set eval_strategy to steps, "
            "or take eval_steps out."
        )
    if validates and not recipe.holdout:
        raise RecipeError(
            f"train.eval_strategy is {recipe.train['eval_strategy']}, and no rows are reserved to validate on. Set "
            "holdout to a share of the rows, such as 0.1."
        )
    if recipe.stop is not None and recipe.stop.patience is not None and not validates:
        if recipe.trainer == "grpo":
            raise RecipeError(
                "stop.patience watches the validation loss, and with trainer grpo there is none. Watch the answers of "
                "the organism, `stop: {every: 10, above: 5}`, or of another model the likelihoods of pairs, `stop: "
                "{pairs: shipped, above: 0.1}`."
            )
        raise RecipeError(
            "stop.patience watches the validation loss, and none is computed. Set train.eval_strategy to steps or "
            "epoch, train.eval_steps, and holdout."
        )


def _check_files(recipe: Recipe) -> None:
    for defense in recipe.defenses:
        for name, value in vars(defense).items():
            if not isinstance(value, Path):
                continue
            refuse_pipe(value)
            if value.is_dir():
                raise RecipeError(
                    f"{defense.name()}: {name} is {value}, which is a folder, and a file is read. Name a file."
                )
            if not value.is_file():
                raise RecipeError(f"{defense.name()}: {name} is {value}, but there is no such file. Check the path.")


def _facts(recipe: Recipe, source: model_source.Source, rows: list[Example], held: list[Example]) -> dict[str, Any]:
    files = {str(recipe.data): dataset.digest(recipe, [*rows, *held])} if recipe.data is not None else {}
    commit = None if recipe.data is None else hub_commit(recipe.data, recipe.split)
    for defense in recipe.defenses:
        files |= {str(v): sha256_of(v) for v in vars(defense).values() if isinstance(v, Path)}
    if recipe.stop is not None and isinstance(recipe.stop.pairs, Path):
        files[str(recipe.stop.pairs)] = sha256_of(recipe.stop.pairs)
    return {
        "model": source.identity(),
        "seed": recipe.seed,
        "data": files,
        **({"start": start} if (start := second_training.hashes(recipe, source)) else {}),
        **({} if commit is None else {"data_commit": commit}),
        "machine": machine.describe(recipe),
        "rows": {"task": len(rows), "held_out": len(held)},
    }
