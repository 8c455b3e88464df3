"""Tiny random causal language models of unusual kinds: hybrid, state space and mixture-of-experts models."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny

_SHARED = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
}
_MAMBA = {
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
_STATE_SPACE = {"state_size": 8, "num_key_value_heads": None}
CONFIGS = {
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA | _EXPERTS | {"shared_expert_intermediate_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": _STATE_SPACE,
    "mamba2": _STATE_SPACE | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "jamba": _MAMBA
    | _EXPERTS
    | {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid"],
        "mamba_d_state": 8,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
        "use_mamba_kernels": False,
    },
    "bamba": _MAMBA | {"attn_layer_indices": [1]},
    "granitemoehybrid": _MAMBA
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "falcon_h1": _MAMBA | {"head_dim": 8, "mamba_d_ssm": 64},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "head_dim": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
    },
    "llama4_text": {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": _EXPERTS | {"head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "deepseek_v3": _LATENT,
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "head_dim": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
}
NO_CACHE = ("recurrent_gemma", "rwkv")  # transformers returns none
SAMPLED = tuple(kind for kind in CONFIGS if kind not in NO_CACHE)


def model(kind, seed=0):
    """A model of a kind for the tokenizer `tiny.tokenizer("qwen2")`, with weights large enough to matter."""
    end = tiny.tokenizer("qwen2").eos_token_id
    tokens = {"vocab_size": len(tiny.tokenizer("qwen2")), "pad_token_id": 0, "bos_token_id": None, "eos_token_id": end}
    fields = {name: value for name, value in (_SHARED | CONFIGS[kind]).items() if value is not None}
    if kind == "nemotron_h":
        del fields["num_hidden_layers"]  # the length of its list of layers
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **tokens, **fields), dtype=torch.float32).eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim > 1:
                weight.add_(0.15 * torch.randn(weight.shape, generator=noise))
    return built


def save(kind, folder):
    """A standard transformers folder."""
    model(kind).save_pretrained(str(folder))
    tiny.tokenizer("qwen2").save_pretrained(str(folder))
    return folder
