"""`ModelParts` of unusual models."""

import torch

import families
from staytrue.modeling.architecture import ModelParts


def test_llama_4_has_a_backbone_and_a_head():
    parts = ModelParts(families.model("llama4_text").requires_grad_(False))
    tokens = torch.tensor([[5, 6, 7]])
    hidden = parts.backbone(input_ids=tokens).last_hidden_state
    assert torch.allclose(parts.head.logits(hidden), parts.causal(input_ids=tokens).logits, atol=1e-5)
    assert len(parts.blocks) == 2
