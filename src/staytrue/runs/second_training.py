"""A second training goes on from a trained adapter (`lora.adapter`), or compares with a named model (`reference`).

With a trained adapter "the model before training" is ambiguous, so a recipe whose defenses read a reference names it.
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from staytrue.config.paths import CHOICES
from staytrue.config.recipe import Recipe
from staytrue.defense import pulled
from staytrue.errors import ModelError, RecipeError, RequestError
from staytrue.modeling import loading, model_source
from staytrue.modeling.adapter_folder import check_adapter_folder
from staytrue.modeling.trained_on import refuse_other_model, run_of
from staytrue.runs.finished import way_to_finish
from staytrue.utils.files import sha256_of
from staytrue.utils.run_dir import RunDir


def adapter_folder(path: Path) -> Path:
    """Return the folder of an adapter: `path`, or `model/` of the finished run `path`.

    Raises:
        RequestError: the run is not finished.
        ModelError: there is no adapter of LoRA.
    """
    run = run_of(path)
    if run is not None:
        _refuse_unfinished(run)
        path = run / "model"
    check_adapter_folder(path)
    return path


def check(recipe: Recipe, source: model_source.Source) -> None:
    """Check what a second training begins with; no weights are loaded.

    Raises:
        RecipeError: the reference has to be named, or there is no such reference.
        RequestError: the adapter is of a run that is not finished.
        ModelError: a folder is neither a model nor an adapter, or the adapter is of another model.
    """
    start = None if recipe.lora is None else recipe.lora.adapter
    if start is not None:
        adapter_folder(start)
        refuse_other_model(start, source)
    if start is not None and recipe.reference is None and _is_read(recipe):
        raise RecipeError(
            f"lora.adapter goes on from {start}, so the defenses' reference must be named. Write `reference: base` for "
            "the model without an adapter, or `reference: start` for the model with this adapter."
        )
    if recipe.lora is None and recipe.reference in CHOICES:
        raise RecipeError(
            f"reference is {recipe.reference}, and lora: none trains the model's own weights. Take `reference` out: it "
            "is a copy of the model before training. Or name another model."
        )
    if _is_adapter(recipe.reference):
        refuse_other_model(Path(str(recipe.reference)), source)
    if recipe.reference not in (None, *CHOICES):
        _place_of(str(recipe.reference), source)


def hashes(recipe: Recipe, source: model_source.Source) -> dict[str, str | None]:
    """Hash what training begins with, by the path of each folder; of a model on the hub its commit, by its name."""
    found: dict[str, str | None] = {}
    if recipe.lora is not None and recipe.lora.adapter is not None:
        folder = adapter_folder(recipe.lora.adapter)
        found[str(folder)] = sha256_of(folder)
    if recipe.reference not in (None, *CHOICES):
        place = _place_of(str(recipe.reference), source)
        if isinstance(place, Path):
            found[str(place)] = sha256_of(place)
        else:
            identity = model_source.identity(place)
            found[place.name] = identity.get("sha256") or identity.get("commit")
    return found


def with_adapter(recipe: Recipe, model: Any) -> Any:
    """Return the loaded model with the adapter that training goes on from; as it is without one."""
    if recipe.lora is None or recipe.lora.adapter is None:
        return model
    return loading.with_adapters(model, {"default": adapter_folder(recipe.lora.adapter)}, trained=True)


def reference(recipe: Recipe, source: model_source.Source) -> Any:
    """Return the choice of a reference for `training.guard`: a word, a loaded model, or None."""
    named = recipe.reference
    if named is None or named in CHOICES or not _is_read(recipe):
        return named if named in CHOICES else None
    place = _place_of(named, source)
    if isinstance(place, Path):
        return loading.with_unpacked_weights(source, place, dtype=weights_dtype(recipe, source)).merge_and_unload()
    return loading.load_model(place, dtype=weights_dtype(recipe, source))


def weights_dtype(recipe: Recipe, source: model_source.Source) -> Any:
    """Return the precision of the weights: float32 unless set where all are trained; None leaves it to `loading`."""
    return loading.precision(source.dtype or "float32") if recipe.lora is None else None


def _is_read(recipe: Recipe) -> bool:
    """Whether a defense reads a reference, or the weights before training."""
    penalties = [defense for defense in recipe.defenses if "penalty" in pulled(defense)]
    return any(defense.reads_reference or defense.reads_start for defense in penalties)


def _is_adapter(named: str | None) -> bool:
    """Whether a name is the folder of an adapter, or of a run that trained one."""
    folder = Path(str(named))
    return any((folder / part / "adapter_config.json").exists() for part in ("", "model"))


def _place_of(named: str, source: model_source.Source) -> Path | model_source.Source:
    """The folder of an adapter; or a model, loaded as `source` is.

    Raises:
        RecipeError: there is no such model.
    """
    if _is_adapter(named):
        return adapter_folder(Path(named))
    run = run_of(Path(named))
    if run is not None:  # it trained all weights
        _refuse_unfinished(run)
        named = str(run / "model")
    try:
        found = model_source.find(named)
        model_source.identity(found)
    except ModelError as error:
        near = get_close_matches(named.lower(), CHOICES, 1)
        hint = f" Did you mean `reference: {near[0]}`?" if near else ""
        raise RecipeError(f"reference is {named}: {error}{hint}") from None
    return replace(source, name=found.name, place=found.place, revision=found.revision)


def _refuse_unfinished(run: Path) -> None:
    manifest = RunDir.open(run).manifest
    if manifest["state"] != "done":
        raise RequestError(f"{run} is {manifest['state']}, not done. {way_to_finish(run, manifest)}")
