"""Loads a model and its adapters, in the precision and onto the device that this machine has.

It never runs remote code and reads safetensors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from staytrue.errors import ModelError
from staytrue.modeling import fetch, quantized
from staytrue.modeling.adapter_folder import check_adapter_folder
from staytrue.modeling.model_source import Source, check_hub
from staytrue.modeling.trained_on import refuse_other_model
from staytrue.utils.files import sha256_of
from staytrue.utils.validation import first_line

if TYPE_CHECKING:
    from peft import PeftConfig as PeftConfig


def load_model(source: Source, adapter: Path | None = None, *, dtype: Any = None) -> Any:
    """Load the model, in its source's precision: by default bfloat16 with a GPU and float32 without one.

    Args:
        source: the model.
        adapter: folder of a LoRA adapter to load on it.
        dtype: another precision.

    Raises:
        ModelError: the model or adapter cannot be loaded, or the adapter's run trained it on another model.
    """
    from transformers import AutoModelForCausalLM

    check_hub(source)
    if adapter is not None:
        refuse_other_model(adapter, source)
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
        damaged = not isinstance(error, MemoryError | ImportError) and "out of memory" not in str(error)
        reason = first_line(error) + (fetch.way_out(source.place) if damaged else "")
        raise ModelError(f"The model {source.name} cannot be loaded: {reason}") from None
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
            reason = first_line(error)
            way_out = " Name the model that it was trained on." if "size mismatch" in reason else ""
            raise ModelError(f"The adapter {adapter} does not fit this model: {reason}{way_out}") from None
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
