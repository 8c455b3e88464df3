"""The shapes that are measured: randomly initialised Qwen2 models with a LoRA of rank 32 on every projection.

Random weights cost what trained ones cost. One shape has the weights of a real chat model: `staytrue fetch smollm2`.
"""

from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from staytrue.modeling.fetch import NAME
from staytrue.modeling.loading import load_model
from staytrue.modeling.model_source import find
from staytrue.step import SOURCE_COLUMN


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    mlp: int
    vocabulary: int
    tied: bool
    heads: int
    rows: int = 4
    interleaved: int = 0  # how many of the rows, the last ones
    tokens: int = 256
    scored: float = 0.6  # share of positions that predict an answer token
    kv_heads: int | None = None  # as many as heads, if nothing is said
    fetched: bool = False  # SmolLM2's own weights


SHAPES = {
    "tiny": Shape(64, 2, 128, 1_000, False, 4, rows=4, tokens=64),
    "M1": Shape(256, 8, 1_024, 32_000, False, 4),
    "M2": Shape(512, 6, 2_048, 151_936, True, 8),
    "smollm2": Shape(576, 30, 1_536, 49_152, True, 9, tokens=100, scored=0.5, kv_heads=3, fetched=True),
    # Qwen2.5's own, for a GPU
    "0.5B": Shape(896, 24, 4_864, 151_936, True, 14, tokens=2_048, kv_heads=2),
    "7B": Shape(3_584, 28, 18_944, 152_064, False, 28, tokens=2_048, kv_heads=4),
}

SIDE_SHARE, SIDE_TOKENS = 0.0625, 256  # of anchor: rows beside the batch per row of it, and how long they are


def model(
    shape: Shape, moved: bool = True, device: str = "cpu", dtype: torch.dtype = torch.float32, adapter: bool = True
):
    torch.manual_seed(0)
    with torch.device(device):  # where 7B parameters are drawn in seconds
        base = load_model(find(NAME)).to(device, dtype) if shape.fetched else drawn(shape, dtype)
    if not adapter:
        return base
    adapted = get_peft_model(base, LoraConfig(r=32, lora_alpha=64, use_rslora=True, target_modules="all-linear"))
    if moved:
        move(adapted)
    return adapted


def drawn(shape: Shape, dtype: torch.dtype = torch.float32):
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        tie_word_embeddings=shape.tied,
    )
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def move(model) -> None:
    """Move the adapter's B, or every weight where there is none, so that trained model and reference differ."""
    adapted = isinstance(model, PeftModel)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
        elif not adapted:
            weight.data.add_(torch.randn_like(weight), alpha=1e-3)


def flops(shape: Shape, variant: str, gpu: bool = False) -> float:
    """Floating-point operations of a step, per token; attention's own products are left out.

    P weights in the layers, A in the adapters, H = V x D in the head, s the share of scored positions. Frozen weights
    need no gradient, so a backward pass costs a forward; adapters cost three. Of a likelihood and a divergence the
    least is counted that they can cost; what activation checkpointing computes again is not. `whole`: all weights are
    trained, so that a backward pass costs two forwards, and trl's head computes the trainer's loss.
    """
    keys = shape.hidden * (shape.kv_heads or shape.heads) // shape.heads
    layers = shape.layers * (2 * shape.hidden * (shape.hidden + keys) + 3 * shape.hidden * shape.mlp)
    adapters = shape.layers * 32 * (6 * shape.hidden + 2 * keys + 3 * (shape.hidden + shape.mlp))
    head = shape.vocabulary * shape.hidden
    trained, scored = 4 * layers + 6 * adapters, shape.scored * head
    seen = scored if gpu else head  # on a CPU trl projects every position
    beside = SIDE_SHARE * SIDE_TOKENS / shape.tokens * (trained + 2 * layers + 6 * head)
    return {
        "sft": trained + 4 * scored,
        "steer": trained + 4 * scored,
        "ldifs": trained + 2 * layers + 4 * scored,
        "kl": trained + 2 * layers + 6 * scored,
        "kl-cached": trained + 6 * scored,
        "sft-20": trained + 4 * scored,
        "kl-rows": trained + 4 * scored + (2 * layers + 6 * scored) / 20,
        "all": trained + 2 * layers + 6 * scored,
        "anchor": trained + 4 * scored + beside,
        "all-and-anchor": trained + 2 * layers + 6 * scored + beside,
        "kl-trl-head": trained + 2 * layers + 6 * seen + 6 * scored,
        "trl-sft": trained + 6 * seen,
        "liger": trained + 4 * head,
        "sft-whole": 6 * layers + 6 * seen,
        "trl-sft-whole": 6 * layers + 6 * seen,
        "kl-whole": 8 * layers + 6 * seen + 4 * scored,
        "l2init-whole": 6 * layers + 6 * seen,
        "published": 10 * layers + 12 * adapters + 10 * head,
    }[variant.removesuffix("-bf16")]  # a precision saves no operation


def batch(shape: Shape) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    ids = torch.randint(3, shape.vocabulary, (shape.rows, shape.tokens), generator=noise)
    labels = ids.clone()
    labels[:, : shape.tokens - int(shape.scored * shape.tokens)] = -100
    source = (torch.arange(shape.rows) >= shape.rows - shape.interleaved).long()
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids), SOURCE_COLUMN: source}
