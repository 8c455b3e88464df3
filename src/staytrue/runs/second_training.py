"""A second training goes on from a trained adapter (`lora.adapter`), or compares with a named model (`reference`).

With a trained adapter "the model before training" is ambiguous, so a recipe whose defenses read a reference names it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from staytrue.config.paths import CHOICES
from staytrue.config.recipe import Recipe
from staytrue.defense import pulled
from staytrue.errors import RecipeError, RequestError
from staytrue.modeling import loading
from staytrue.modeling.adapter_folder import check_adapter_folder
from staytrue.utils.files import sha256_of
from staytrue.utils.run_dir import RunDir


def adapter_folder(path: Path) -> Path:
    """Return the folder of an adapter: `path`, or `model/` of the finished run `path`.

    Raises:
        RequestError: the run is not finished.
        ModelError: there is no adapter of LoRA.
    """
    if (path / "manifest.json").exists():
        state = RunDir.open(path).manifest["state"]
        if state != "done":
            raise RequestError(f"{path} is {state}, not done. Finish it with `staytrue train --resume {path}`.")
        path = path / "model"
    check_adapter_folder(path)
    return path


def check(recipe: Recipe, source: loading.Source) -> None:
    """Check what a second training begins with; nothing is loaded.

    Raises:
        RecipeError: the reference has to be named, or there is no such reference.
        RequestError: the adapter is of another model, or of a run that is not finished.
        ModelError: a folder is neither a model nor an adapter.
    """
    start = None if recipe.lora is None else recipe.lora.adapter
    if start is not None:
        adapter_folder(start)
        _refuse_other_model(start, source)
    penalties = [defense for defense in recipe.defenses if "penalty" in pulled(defense)]
    if start is not None and recipe.reference is None and any(d.reads_reference or d.reads_start for d in penalties):
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
        adapter_folder(Path(str(recipe.reference)))
    elif recipe.reference not in (None, *CHOICES):
        loading.find(str(recipe.reference), None, recipe.dtype)


def hashes(recipe: Recipe) -> dict[str, str]:
    """Hash the folders that training begins with, by path."""
    start = None if recipe.lora is None else recipe.lora.adapter
    folders = {} if start is None else {start: adapter_folder(start)}
    if recipe.reference not in (None, *CHOICES):
        other = Path(str(recipe.reference))
        if other.is_dir():
            folders[other] = adapter_folder(other) if _is_adapter(recipe.reference) else other
    return {str(folder): sha256_of(folder) for folder in folders.values()}


def with_adapter(recipe: Recipe, model: Any) -> Any:
    """Return the loaded model with the adapter that training goes on from; as it is without one."""
    if recipe.lora is None or recipe.lora.adapter is None:
        return model
    return loading.with_adapters(model, {"default": adapter_folder(recipe.lora.adapter)}, trained=True)


def reference(recipe: Recipe, source: loading.Source) -> Any:
    """Return the choice of a reference for `training.guard`: a word, a loaded model, or None."""
    named = recipe.reference
    if named is None or named in CHOICES:
        return named
    if _is_adapter(named):
        return loading.with_unpacked_weights(source, adapter_folder(Path(named))).merge_and_unload()
    return loading.load_model(replace(loading.find(named), dtype=source.dtype, quantize=source.quantize))


def _is_adapter(named: str | None) -> bool:
    """Whether a name is the folder of an adapter, or of a run that trained one."""
    folder = Path(str(named))
    return any((folder / part / "adapter_config.json").exists() for part in ("", "model"))


def _refuse_other_model(start: Path, source: loading.Source) -> None:
    """Refuse an adapter of a run that was trained on another model."""
    if not (start / "manifest.json").exists():
        return
    trained, now = RunDir.open(start).manifest["model"], source.identity()
    if trained.get("sha256") != now.get("sha256"):
        raise RequestError(
            f"{start} was trained on {trained['name']} (SHA-256 {trained.get('sha256')}), and this recipe's model is "
            f"{source.name} ({now.get('sha256')}). Name the model that it was trained on."
        )
