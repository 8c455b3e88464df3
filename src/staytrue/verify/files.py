"""Are the files of a run those that it wrote, and its data those that it read? By their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from staytrue.config.recipe import read, values_hash
from staytrue.errors import ModelError, RequestError
from staytrue.modeling.adapter_folder import settings_hash
from staytrue.utils.files import sha256_of

_RECIPE = "recipe.yaml"
_SETTINGS = "model/adapter_config.json"


def faults(path: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """The evidence that a file of the run was changed, or is missing."""
    if manifest.get("state") != "done":
        yield f"the run is not finished (state {manifest.get('state')})"
    if not manifest.get("model"):
        yield "manifest.json does not name the model"
    for name, expected in _written(manifest).items():
        if not (path / name).exists():
            yield f"{name} is missing"
        elif expected is None:
            yield f"manifest.json has no hash of {name}"
        elif sha256_of(path / name) != expected and not (name == _RECIPE and recipe_is_same(path, manifest)):
            yield f"{name} was changed after the run"
    if not adapter_settings_are_same(path, manifest):
        yield f"{_SETTINGS} {'was changed after the run' if (path / _SETTINGS).exists() else 'is missing'}"
    for name, expected in _read(manifest).items():
        if _is_here(name, manifest) and sha256_of(Path(name)) != expected:
            yield f"{name} is no longer what the run read"


def _written(manifest: dict[str, Any]) -> dict[str, str | None]:
    """The files that a run wrote, with their hashes; None where the manifest lacks one."""
    logs = dict.fromkeys(("metrics.jsonl", "evidence.jsonl", "evidence.json")) | manifest.get("logs", {})
    if "weights" in manifest:
        return {_RECIPE: manifest.get("recipe"), **logs, "model": manifest["weights"]}
    return {_RECIPE: manifest.get("recipe"), **logs, "model/adapter_model.safetensors": manifest.get("adapter")}


def recipe_is_same(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether a run's recipe is the one that was trained, but for comments and the order of its keys."""
    if sha256_of(path / _RECIPE) == manifest.get("recipe"):
        return True
    try:
        return bool(values_hash(read(path / _RECIPE)) == manifest.get("values"))
    except RequestError:
        return False


def adapter_settings_are_same(path: Path, manifest: dict[str, Any]) -> bool:
    """Whether the adapter's configuration is the trained one, but for its base's name; older manifests have no hash."""
    if "adapter_settings" not in manifest:
        return True
    try:
        return bool(settings_hash(path / "model") == manifest["adapter_settings"])
    except (ModelError, OSError):
        return False


def not_compared(manifest: dict[str, Any]) -> list[str]:
    """The data and models that a run read and that are not on this machine, so that they cannot be compared."""
    return [name for name in _read(manifest) if not _is_here(name, manifest)]


def _read(manifest: dict[str, Any]) -> dict[str, str]:
    return {**manifest.get("data", {}), **manifest.get("start", {})}


def _is_here(name: str, manifest: dict[str, Any]) -> bool:
    """Whether a file, or the folder of an adapter or a model, is here; a data set's folder is not compared."""
    return Path(name).exists() if name in manifest.get("start", {}) else Path(name).is_file()
