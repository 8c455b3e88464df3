"""Paths in a recipe are relative to its folder; these functions make them absolute."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from staytrue import organism
from staytrue.data.tables import is_hub_name
from staytrue.defense import Defense, ModelName
from staytrue.errors import RecipeError

CHOICES = ("base", "start")  # of a recipe's `reference`, beside models and adapters


def absolute(recipe: Any, folder: Path) -> Any:
    """A recipe whose files and local models have absolute paths.

    Raises:
        RecipeError: a path begins with the home folder of an unknown user.
    """
    made: dict[str, Any] = {
        "model": of_model(recipe.model, folder),
        "defenses": tuple(of_defense(defense, folder) for defense in recipe.defenses),
    }
    if recipe.data is not None:
        made["data"] = of_data(recipe.data, folder)
    if recipe.lora is not None and recipe.lora.adapter is not None:
        made["lora"] = recipe.lora.model_copy(update={"adapter": folder / _expanded(recipe.lora.adapter)})
    if recipe.reference is not None and recipe.reference not in CHOICES:
        made["reference"] = of_model(recipe.reference, folder)
    if recipe.stop is not None and isinstance(recipe.stop.pairs, Path):
        made["stop"] = recipe.stop.model_copy(update={"pairs": folder / _expanded(recipe.stop.pairs)})
    return recipe.model_copy(update=made)


def of_defense(defense: Defense, folder: Path) -> Defense:
    """A defense whose fields with paths and local models are absolute."""
    assert is_dataclass(defense)
    hints = get_type_hints(type(defense), include_extras=True)
    values = {f.name: getattr(defense, f.name) for f in fields(defense)}
    paths = {name: folder / _expanded(value) for name, value in values.items() if isinstance(value, Path)}
    models = {name: of_model(value, folder) for name, value in values.items() if hints[name] == ModelName}
    return replace(defense, **paths, **models)


def of_data(data: Path, folder: Path) -> Path:
    """A path becomes absolute; a data set's name on the hub stays as it is."""
    local = folder / _expanded(data)
    return data if is_hub_name(data) and not local.exists() else local


def of_model(name: str, folder: Path) -> str:
    """A local folder becomes absolute; `organism` and hub names stay as they are."""
    local = name.startswith((".", "/", "~")) or (folder / name).is_dir()
    return str((folder / _expanded(Path(name))).absolute()) if local and name not in organism.NAMES else name


def _expanded(path: Path) -> Path:
    """A path with the home folder in place of `~`."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise RecipeError(f"The path {path} cannot be found: there is no such user. Write the whole path.") from None
