"""`ModelParts` of unusual models."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import families
from staytrue.modeling.architecture import ModelParts


def test_llama_4_has_a_backbone_and_a_head():
    parts = ModelParts(families.model("llama4_text").requires_grad_(False))
    tokens = torch.tensor([[5, 6, 7]])
    hidden = parts.backbone(input_ids=tokens).last_hidden_state
    assert torch.allclose(parts.head.logits(hidden), parts.causal(input_ids=tokens).logits, atol=1e-5)
    assert len(parts.blocks) == 2


_TEXT = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.parametrize(
    ("kind", "vision", "text"),
    [
        ("gemma3", {}, {"head_dim": 8, "sliding_window": 16}),
        ("mistral3", {"model_type": "pixtral"}, {"model_type": "mistral", "head_dim": 8}),
        ("qwen2_5_vl", {"depth": 2, "num_heads": 2, "out_hidden_size": 32}, {}),
        ("internvl", {}, {"model_type": "qwen2"}),
    ],
)
def test_the_blocks_are_those_of_the_text_where_the_vision_tower_has_as_many(kind, vision, text):
    config = AutoConfig.for_model(kind, text_config=_TEXT | text, vision_config=_VISION | vision)
    with torch.device("meta"):
        parts = ModelParts(AutoModelForImageTextToText.from_config(config))
    assert len(parts.blocks) == 2
    assert parts.blocks is parts.backbone.get_decoder().layers
    assert any(name.startswith("model.vis") for name, _ in parts.causal.named_parameters())
