"""Checks a model's folder before any library loads from it: its links, its configuration and its weights. No torch.

A folder from elsewhere can name code to run, files outside, or sizes that fill the memory. What staytrue never needs is
refused by name, whatever the installed libraries would do with it.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from staytrue.data.jsonl import json_value, shown
from staytrue.errors import ModelError
from staytrue.modeling.safetensors_header import FLOATS, read_header

_LARGEST_CONFIG = 1 << 24  # bytes
_CODE = {"auto_map", "custom_pipelines", "custom_generate", "code_revision", "trust_remote_code"}
_KERNELS = {
    f"{underscore}{part}_implementation{internal}"
    for underscore in ("", "_")
    for part in ("attn", "experts")
    for internal in ("", "_internal")
}
_OWN_FILE = re.compile(r"\w+\.\w+")  # a file of the folder and a class in it
FROM_HUB = frozenset({"auto_map"})  # its files cannot be edited, and transformers uses its own code or refuses
_VOCABULARIES = ("tokenizer.json", "tekken.json", "vocab*", "*.model*", "*.tiktoken")  # of tokenizers, new and old
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json")


def check_model_folder(folder: Path) -> None:
    """Check the folder of a model with its tokenizer.

    Raises:
        ModelError: the folder is not a safetensors model, or names code or files that staytrue refuses; the sentence
            names file and key.
    """
    if not folder.is_dir():
        raise ModelError(
            f"There is no model folder {folder}. Give a folder with config.json, or a hub name like org/name."
        )
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is not a transformers model. Is it an adapter or a parent folder?"
        )
    check_weights_folder(folder)
    if "model_type" not in read_settings(config):
        raise ModelError(f"{config} names no model_type, so transformers cannot load it. Copy the model again.")
    if not any(file.is_file() for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        raise ModelError(f"{folder} has no tokenizer.json. Save the tokenizer beside the model.")


def check_weights_folder(folder: Path, *, but: frozenset[str] = frozenset()) -> None:
    """Check a folder of which the weights are read, with or without a tokenizer; the keys `but` pass.

    Raises:
        ModelError: as `check_model_folder`.
    """
    check_links(folder)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), which transformers would load from where that file "
            "points. Give the adapter apart from its model, or merge the two."
        )
    for name in SETTINGS:
        if (folder / name).is_file():
            settings = read_settings(folder / name)
            check_keys(folder / name, without_unused_code(settings) if name == "config.json" else settings, but=but)
            if "auto_map" not in but:
                _refuse_map_that_is_off(folder / name, settings)
    quantized = (folder / "config.json").is_file() and "quantization_config" in read_settings(folder / "config.json")
    for file in _weight_files(folder):
        for name, (dtype, _) in read_header(file).items():
            if dtype not in FLOATS and name.endswith((".weight", ".bias")) and not quantized:
                raise ModelError(f"{file}: the matrix {shown(name)} has the dtype {dtype}, but weights are floats.")


def check_links(folder: Path) -> None:
    """Refuse links that lead out of a folder, and entries that are neither files nor folders.

    Raises:
        ModelError: the sentence names the entry.
    """
    inside = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":  # of the hub's cache, which keeps the files in `blobs`
        inside.append(folder.resolve().parents[1] / "blobs")
    for entry in _entries(folder):
        try:
            target = entry.resolve()
        except (OSError, RuntimeError):
            raise ModelError(f"{entry} is a link in a circle. Copy the model again.") from None
        if not any(target.is_relative_to(place) for place in inside):
            raise ModelError(
                f"{entry} is a link out of its folder, to {target}. Copy the file that you want read into the folder."
            )
        if not target.exists():
            raise ModelError(f"{entry} is a link to {target}, which does not exist. Copy the model again.")
        if not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
            raise ModelError(f"{entry} is neither a file nor a folder. Take it out.")


def read_settings(file: Path) -> dict[str, Any]:
    """Read a JSON file of settings.

    Raises:
        ModelError: it is too large, no JSON, repeats a key, or is not an object.
    """
    if file.stat().st_size > _LARGEST_CONFIG:
        raise ModelError(f"{file} has more than {_LARGEST_CONFIG:,} bytes, so it is no configuration. Copy it again.")
    try:
        settings = json_value(file.read_bytes().decode("utf-8"))
    except RecursionError:
        raise ModelError(f"{file} is nested too deeply for a configuration. Copy the model again.") from None
    except ValueError as error:
        raise ModelError(f"{file} is not JSON ({error}). Copy the model again.") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{file} is {shown(settings)}, not an object. Copy the model again.")
    return settings


def check_keys(file: Path, settings: dict[str, Any], *, but: frozenset[str] = frozenset()) -> None:
    """Refuse settings that name code, kernels from the hub or weights elsewhere, at any depth; `but` is let pass.

    Raises:
        ModelError: the sentence names the key.
    """
    for pointer, key, value in _settings(settings):
        if key in but or value in (None, False):
            continue
        if key in _CODE:
            raise ModelError(
                f"{file} has the key `{pointer}` ({shown(value)}), which names code, and staytrue never runs remote "
                "code. Use a model of a kind that transformers supports by itself."
            )
        if key in _KERNELS and (key.endswith("_internal") or _names_kernel(value)):
            raise ModelError(
                f"{file} has the key `{pointer}` ({shown(value)}), by which transformers may load a kernel's code "
                "from the hub. Take the key out."
            )
        if key == "transformers_weights":
            raise ModelError(
                f"{file} has the key `{pointer}` ({shown(value)}), which names weights elsewhere. Save the model with "
                "transformers' own file names, and take the key out."
            )


def _refuse_map_that_is_off(file: Path, settings: dict[str, Any]) -> None:
    """Refuse an `auto_map` of `null` or `false`, in which transformers looks for names all the same."""
    if "auto_map" in settings and settings["auto_map"] in (None, False) and file.name != "generation_config.json":
        raise ModelError(
            f"{file} has the key `auto_map` ({json.dumps(settings['auto_map'])}), which names nothing, and "
            "transformers fails where it looks for names in it. Take the key out."
        )


def without_unused_code(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model without an `auto_map` that no loader follows.

    Models that were published before transformers had code for their kind, such as Phi-3, still name their own files
    there. For a kind that it knows, transformers uses its own code; the folder's would need `trust_remote_code`, which
    staytrue never sets. An `auto_map` further down, or one that names another repository, stays.
    """
    names = config.get("auto_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and _OWN_FILE.fullmatch(n) for n in names.values()):
        return config
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = str(config.get("model_type")) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return {key: value for key, value in config.items() if key != "auto_map"} if known else config


def _settings(value: Any, pointer: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every key of nested settings, with its dotted path and its value."""
    if isinstance(value, dict):
        for key, entry in value.items():
            path = f"{pointer}.{key}" if pointer else key
            yield path, key, entry
            yield from _settings(entry, path)
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            yield from _settings(entry, f"{pointer}.{i}")


def _names_kernel(value: Any) -> bool:
    """Whether a name of an implementation is that of a repository, such as `org/kernel:function`."""
    names = value.values() if isinstance(value, dict) else [value]
    return any(not isinstance(name, str) or "/" in name or ":" in name for name in names if name is not None)


def _entries(folder: Path) -> Iterator[Path]:
    """The files that a loader may read: those of the folder, and the chat templates below it."""
    templates = folder / "additional_chat_templates"
    yield from (entry for entry in sorted(folder.iterdir()) if not entry.is_dir())
    if templates.is_dir():
        yield templates
        yield from sorted(templates.iterdir())


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; those that its index names are all there."""
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        old = next((file for kind in ("bin", "pt", "pth", "pkl", "ckpt") for file in folder.glob(f"*.{kind}")), None)
        pickle = f"; {old.name} is a pickle, which staytrue does not load" if old else ""
        raise ModelError(f"{folder} has no .safetensors weights{pickle}. Save it with safe_serialization=True.")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _indexed(index)
        missing = sorted(names - {file.name for file in weights})
        if missing:
            raise ModelError(
                f"{folder} lacks {len(missing)} of the weight files that {index.name} names (first: "
                f"{shown(missing[0])}). Copy them too."
            )
    elif not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder} has neither model.safetensors nor {index.name}. Copy the model again.")
    return weights


def _indexed(index: Path) -> set[str]:
    files = read_settings(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
        raise ModelError(f"{index} is not an index of weight files. Copy the model again.")
    return set(files.values())
