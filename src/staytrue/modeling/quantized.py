"""Quantised models: loading in 4 or 8 bits by bitsandbytes, and training on them without a change of the reference.

The reference of an adapter on quantised weights is exact: the same weights with the adapter off, by the same kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from staytrue.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def is_installed() -> bool:
    """Return whether bitsandbytes is installed."""
    return find_spec("bitsandbytes") is not None


def require_package(quantize: str) -> None:
    """Refuse a quantised model where bitsandbytes is not installed.

    Raises:
        ModelError: the sentence has the command that installs it.
    """
    if not is_installed():
        raise ModelError(
            f"quantize: {quantize} needs bitsandbytes, which is not installed. Install it with "
            "`pip install 'staytrue[quantize]'`."
        )


def settings(quantize: str, dtype: Any) -> Any:
    """Return the `BitsAndBytesConfig` of a recipe's `quantize`: NF4 with quantised scales as in QLoRA, or LLM.int8().

    Args:
        quantize: "4bit" or "8bit".
        dtype: the precision of the products, and of all that is not quantised.
    """
    from transformers import BitsAndBytesConfig

    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def is_quantized(model: Any) -> bool:
    """Return whether a transformers or peft model was loaded with quantised weights."""
    return bool(getattr(model, "is_quantized", False))


def is_packed(weight: Tensor) -> bool:
    """Return whether a parameter is no matrix of plain numbers; buffers may be anything."""
    from torch import nn

    return isinstance(weight, nn.Parameter) and (type(weight) is not nn.Parameter or not weight.is_floating_point())


def packed_bytes(weight: Tensor, quantize: str | None) -> int:
    """Return the bytes of a matrix (out, in) with its scales: a byte for 64 weights in 4 bits, a number a row in 8."""
    return weight.numel() * 33 // 64 if quantize == "4bit" else weight.numel() + 4 * weight.shape[0]


def rows_depend_on_each_other(model: Any) -> bool:
    """Return whether a row's states change with the other rows of its batch.

    LLM.int8() chooses the columns that it computes in half precision by all rows of a batch; in training on a CPU
    bitsandbytes multiplies with dequantised weights instead.
    """
    return any(_threshold(module) > 0 and module.weight.device.type != "cpu" for module in model.modules())


def keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference on a CPU.

    A forward in evaluation mode packs them where the CPU has avx512_bf16. From then on no gradient passes the layer,
    in training mode either, and its scales are rounded to bfloat16.

    Raises:
        ModelError: they are packed already.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ModelError(
                f"{name} was packed by bitsandbytes for inference, because the model has computed in evaluation mode "
                "on this CPU, and no gradient passes a packed layer. Load the model again, and train it before it "
                "answers anything."
            )
        module.support_avx512bf16_for_cpu = False


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """Copy the trained weights of an adapter on quantised weights, by name; {} for any other model."""
    if not (is_quantized(model) and hasattr(model, "peft_config")):
        return {}
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def to_float32(model: Any, start: Mapping[str, Tensor]) -> None:
    """Train an adapter on quantised weights in float32; trl rounds its weights to bfloat16.

    Args:
        model: the peft model.
        start: its weights before they were rounded, where they were not made by trl.
    """
    if is_quantized(model):
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.data = start.get(name, weight.data).float()


def _threshold(module: Any) -> float:
    state = getattr(module, "state", None)
    return float(getattr(state, "threshold", 0.0)) if hasattr(state, "SCB") else 0.0
