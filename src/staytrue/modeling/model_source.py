"""`Source`: which model is meant, found by its name, checked and identified before anything of it is loaded.

It is a local folder, a name on the hub, or the embedded organism. `find` is cheap, and imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from staytrue import organism
from staytrue.errors import ModelError
from staytrue.modeling import fetch, model_folder, quantized
from staytrue.utils.files import sha256_of


@dataclass(frozen=True)
class Source:
    """The source of a model: a checked local folder or a hub name."""

    name: str  # as in the recipe
    place: str  # the argument of `from_pretrained`
    revision: str | None = None
    dtype: str | None = None  # of the weights: "float32" or "bfloat16"; None leaves it to `precision`
    attention: str | None = None  # transformers' name of its implementation; None leaves it to transformers
    quantize: str | None = None  # "4bit" or "8bit": the weights are quantised as they are loaded
    on_cpu: bool = False  # quantised weights stay on the CPU, even with a GPU, where bitsandbytes would put them

    @property
    def is_organism(self) -> bool:
        """Whether it is the embedded model, whose answers are judged by rules."""
        return self.name in organism.NAMES

    def identity(self, model: Any = None) -> dict[str, str | None]:
        """Return the model as a manifest names it: name, the folder's hash or the hub's commit, and its precision."""
        folder = Path(self.place)
        if folder.is_dir():
            return {"name": self.name, "sha256": _sha256_of(folder), **self._loaded_as()}
        return self._on_hub(getattr(model, "config", None))

    def _on_hub(self, config: Any) -> dict[str, str | None]:
        commit = getattr(config, "_commit_hash", None)
        return {"name": self.name, "revision": self.revision, "commit": commit, **self._loaded_as()}

    def _loaded_as(self) -> dict[str, str]:
        chosen = {"dtype": self.dtype, "quantize": self.quantize}
        return {key: value for key, value in chosen.items() if value is not None}


def _sha256_of(folder: Path) -> str:
    """The hash of a model folder, computed once in a process: of a large model it takes many seconds."""
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    state = tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in files)
    return _sha256_in_state(folder, state)


@lru_cache(maxsize=16)
def _sha256_in_state(folder: Path, state: tuple[tuple[str, int, int, int], ...]) -> str:
    return sha256_of(folder)


def identity(source: Source) -> dict[str, str | None]:
    """Identify a model without loading it: name, and the folder's hash or the hub's commit."""
    if Path(source.place).is_dir():
        return source.identity()
    from transformers import AutoConfig

    try:
        check_hub(source)
        config = AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.name} cannot be read from the hub: {str(error).splitlines()[0]}") from None
    return source._on_hub(config)


def is_loaded_from(name: str, config: Any) -> bool:
    """Whether a model's configuration was read from a folder or, in the newest revision, from a name on the hub.

    Args:
        name: the folder, or the name.
        config: transformers' configuration of the model.

    Raises:
        ModelError: the hub does not tell the name's newest revision.
    """
    if Path(name).is_dir():
        return Path(name).resolve() == Path(config.name_or_path).resolve()
    return name == config.name_or_path and identity(find(name))["commit"] == getattr(config, "_commit_hash", None)


def find(name: str, revision: str | None = None, dtype: str | None = None, quantize: str | None = None) -> Source:
    """Check a model's name without loading it; torch is not imported.

    Args:
        name: `organism`, `smollm2`, a folder, or a hub name.
        revision: commit or branch of a hub name.
        dtype: precision of the weights, "float32" or "bfloat16".
        quantize: "4bit" or "8bit", to quantise the weights as they are loaded.

    Raises:
        ModelError: the folder does not exist or is not a safetensors model; the sentence names the file. Or
            bitsandbytes is not installed, or the model is quantised already.
    """
    source = replace(_find(name, revision), dtype=dtype, quantize=quantize)
    if quantize is not None:
        quantized.require_package(quantize)
        _refuse_quantized(source)
    return source


def _refuse_quantized(source: Source) -> None:
    settings = Path(source.place) / "config.json"
    if settings.is_file() and "quantization_config" in model_folder.read_settings(settings):
        raise ModelError(f"{source.name} is quantised already, as its config.json says. Take `quantize` out.")


def _find(name: str, revision: str | None) -> Source:
    if name in organism.NAMES:
        return Source(name, str(organism.folder(name)))
    try:
        folder = Path(name).expanduser()
    except RuntimeError:
        raise ModelError(f"The folder {name} cannot be found: there is no such user. Write the whole path.") from None
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        if folder.name == fetch.NAME and not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} has no config.json, so it is not a transformers model. For the fetched model, "
                f"{fetch.NAME}, rename this folder: it comes first."
            )
        model_folder.check_model_folder(folder)
        return Source(name, str(folder))
    if name == fetch.NAME:
        return Source(name, str(fetch.folder()))
    return Source(name, name, revision)


def check_hub(source: Source) -> None:
    """Check the small files of a model on the hub before a loader reads them; a folder was checked when it was found.

    `auto_map` passes: transformers has its own code for the model, or refuses to run the hub's.
    """
    if Path(source.place).is_dir():
        return
    from huggingface_hub.errors import LocalEntryNotFoundError
    from transformers.utils.hub import cached_file

    for name in (*model_folder.SETTINGS, "adapter_config.json"):
        try:
            cached = cached_file(source.place, name, revision=source.revision)
        except (OSError, ValueError) as error:  # there is no such file, as the loader will say, or no way to it
            if name == model_folder.SETTINGS[0] and isinstance(error.__cause__, LocalEntryNotFoundError):
                raise ModelError(
                    f"{source.name} is no folder and not in the hub's cache, and the hub cannot be reached. Check the "
                    "name, or the connection; the path of a folder beside the recipe begins with ./"
                ) from None
            continue
        if name == "adapter_config.json":
            raise ModelError(f"{source.name} is an adapter, not a model. Name the model that it was trained on.")
        file = Path(str(cached))
        model_folder.check_keys(file, model_folder.read_settings(file), but=model_folder.FROM_HUB)
