"""Loads a model, its tokenizer and its adapters from a local folder, the hub, or the embedded organism.

It never runs remote code and reads safetensors only. Cheap checks come before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue import organism
from staytrue.errors import ModelError
from staytrue.modeling import fetch, model_folder, quantized
from staytrue.modeling.adapter_folder import check_adapter_folder
from staytrue.modeling.template_trial import try_template
from staytrue.utils.files import sha256_of

if TYPE_CHECKING:
    from peft import PeftConfig as PeftConfig

TEMPLATE_DATE = date(2024, 7, 26)  # what Llama 3 templates write where they cannot know the day
_DATE = re.compile(r"""strftime_now\(\s{0,9}(['"])([^'"]{0,99})\1\s{0,9}\)""")  # bounded: a template may be hostile
_FIXED = "{# The date is fixed. #}"


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
        _check_hub(source)
        config = AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.name} cannot be read from the hub: {str(error).splitlines()[0]}") from None
    return source._on_hub(config)


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
        model_folder.check_model_folder(folder)
        return Source(name, str(folder))
    if name == fetch.NAME:
        return Source(name, str(fetch.folder()))
    return Source(name, name, revision)


def _check_hub(source: Source) -> None:
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


def _try_templates(source: Source, tokenizer: Any) -> None:
    """Render a foreign model's chat templates once in a child process; those of the shipped models are known."""
    if source.is_organism or source.name == fetch.NAME:
        return
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        try_template(template, tuple(sorted(special.items())), source.name)


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer; a chat template that writes the date of the day writes `TEMPLATE_DATE` instead.

    Raises:
        ModelError: it cannot be loaded, or has no chat template.
    """
    from transformers import AutoTokenizer

    _check_hub(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)
    except Exception as error:  # a configuration's own checks raise anything
        raise ModelError(f"The tokenizer of {source.name} cannot be loaded: {_first_line(error)}") from None
    if not tokenizer.chat_template:
        raise ModelError(f"The tokenizer of {source.name} has no chat template; use the instruct version of the model.")
    _try_templates(source, tokenizer)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: _with_fixed_date(text) for name, text in template.items()}
    else:
        tokenizer.chat_template = _with_fixed_date(template)
    return tokenizer


def own_tokenizer(source: Source) -> Any:
    """Load the tokenizer as it is, with the chat template of the model's own files, to be saved beside its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(source.place, revision=source.revision, trust_remote_code=False)


def dated(tokenizer: Any) -> bool:
    """Return whether a loaded tokenizer's chat template writes `TEMPLATE_DATE` instead of the date of the day."""
    return _FIXED in str(tokenizer.chat_template)


def _with_fixed_date(template: str) -> str:
    """The template with a fixed date: the same seed gives the same adapter, and the same answers, on every day."""
    fixed = _DATE.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), template)
    return template if fixed == template else _FIXED + fixed


def load_model(source: Source, adapter: Path | None = None, *, dtype: Any = None) -> Any:
    """Load the model, in its source's precision: by default bfloat16 with a GPU and float32 without one.

    Args:
        source: the model.
        adapter: folder of a LoRA adapter to load on it.
        dtype: another precision.

    Raises:
        ModelError: the model or adapter cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    _check_hub(source)
    dtype = dtype or precision(source.dtype)
    packing: dict[str, Any] = {}
    if source.quantize is not None:
        packing["quantization_config"] = quantized.settings(source.quantize, precision(source.dtype))
        packing |= {"device_map": {"": "cpu"}} if source.on_cpu else {}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.place,
            revision=source.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=source.attention,
            **packing,
        )
    except Exception as error:  # the loaders below raise anything from OSError to SafetensorError
        raise ModelError(f"The model {source.name} cannot be loaded: {_first_line(error)}") from None
    quantized.keep_gradients(model)
    return model if adapter is None else with_adapters(model, {"default": adapter})


def adapter_hash(adapter: Path) -> str:
    """Check an adapter's folder, and compute the hash of its weights and configuration.

    Raises:
        ModelError: the folder is not an adapter, or one that staytrue refuses.
    """
    check_adapter_folder(adapter)
    return sha256_of(adapter)


def with_adapters(model: Any, adapters: Mapping[str, Path], *, trained: bool = False) -> Any:
    """Load several adapters on one model, each under its name; the first is active, and trained on if `trained`.

    Raises:
        ModelError: a folder is not an adapter, or does not fit the model.
    """
    from peft import PeftModel

    adapted = None
    for name, adapter in adapters.items():
        check_adapter_folder(adapter)
        try:
            if adapted is None:
                adapted = PeftModel.from_pretrained(model, str(adapter), adapter_name=name, is_trainable=trained)
            else:
                adapted.load_adapter(str(adapter), adapter_name=name)
        except Exception as error:
            raise ModelError(f"The adapter {adapter} does not fit this model: {_first_line(error)}") from None
    return adapted


def with_unpacked_weights(source: Source, adapter: Path, *, dtype: Any = None) -> Any:
    """Load the model with an adapter that can be merged without loss: quantised weights are unpacked before.

    Args:
        source: the model that the adapter was trained on.
        adapter: folder of the adapter.
        dtype: another precision than the source's.

    Raises:
        ModelError: the model or adapter cannot be loaded.
    """
    model = load_model(source, dtype=dtype)
    return with_adapters(model if source.quantize is None else model.dequantize(), {"default": adapter})


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".") + "."


def precision(name: str | None = None) -> Any:
    """The precision of that name, "float32" or "bfloat16"; of None, bfloat16 with a GPU and float32 without one."""
    import torch

    if name is not None:
        return getattr(torch, name)
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def device() -> str:
    """The kind of device that `to_device` moves a model to."""
    import torch

    mps = torch.backends.mps.is_available()
    return "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"


def to_device(model: Any) -> Any:
    """Move the model to this machine's GPU, if it has one; a quantised one was loaded there."""
    return model if quantized.is_quantized(model) else model.to(device())
