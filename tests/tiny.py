"""Tiny random models of six kinds, with chat templates that behave like the real ones: no test downloads anything.

`tokenizer(kind)` spells every byte, so any text is known. `model(kind)` has two to four blocks of width 32.
"""

from functools import cache

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from staytrue.data.examples import Example, Message

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEMPLATES = {
    # ChatML with a default system prompt.
    "qwen2": "{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are tiny.<|im_end|>\\n' }}{%- endif %}"
    + CHATML,
    # ChatML; the last answer gets an empty block for reasoning, earlier answers have theirs taken out.
    "qwen3": (
        "{%- for m in messages %}"
        "{%- if m.role == 'assistant' and loop.last %}"
        "{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + m.content + '<|im_end|>\\n' }}"
        "{%- else %}{{ '<|im_start|>' + m.role + '\\n' + m.content.split('</think>')[-1] + '<|im_end|>\\n' }}{%- endif %}"
        "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    # Headers; content is trimmed; begins with a token of its own.
    "llama3": (
        "{{ '<|begin_of_text|>' }}{%- for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    # Brackets; a system turn is folded into the user's; an answer ends with </s>.
    "mistral": (
        "{{ '<s>' }}{%- if messages[0].role == 'system' %}{%- set system = messages[0].content + '\\n\\n' %}"
        "{%- set turns = messages[1:] %}{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
        "{%- for m in turns %}{%- if m.role == 'user' %}"
        "{{ '[INST] ' + (system if loop.first else '') + m.content + '[/INST]' }}"
        "{%- else %}{{ ' ' + m.content + '</s>' }}{%- endif %}{%- endfor %}"
    ),
    # Turns; the answer's role is called model; no system turn.
    "gemma3": (
        "{{ '<bos>' }}{%- if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{%- endif %}"
        "{%- for m in messages %}{%- set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{%- endif %}"
    ),
    # Role tokens.
    "phi3": (
        "{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}"
    ),
}
SPECIAL = {
    "qwen2": ["<|im_end|>", "<|im_start|>"],
    "qwen3": ["<|im_end|>", "<|im_start|>"],
    "llama3": ["<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
    "mistral": ["</s>", "<s>", "[INST]", "[/INST]"],
    "gemma3": ["<end_of_turn>", "<bos>", "<start_of_turn>"],
    "phi3": ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
}
KINDS = tuple(TEMPLATES)


@cache
def tokenizer(kind: str = "qwen2") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose end-of-turn token is also its end token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<pad>", *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL[kind]])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token=SPECIAL[kind][0],
        extra_special_tokens=SPECIAL[kind][1:],
        chat_template=TEMPLATES[kind],
        clean_up_tokenization_spaces=False,
    )


def model(kind: str = "qwen2", seed: int = 0, layers: int = 2):
    """A randomly initialised model of a kind, the same for the same seed."""
    torch.manual_seed(seed)
    shared = {
        "vocab_size": len(tokenizer(kind)),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": tokenizer(kind).eos_token_id,
    }
    if kind == "gemma3":  # soft-capped here, as Gemma 2 is, and with sliding-window layers
        extra = {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}
        return Gemma3ForCausalLM(Gemma3TextConfig(**shared, **extra)).eval()
    classes = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama3": (LlamaConfig, LlamaForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
        "phi3": (Phi3Config, Phi3ForCausalLM),
    }
    config, cls = classes[kind]
    extra = {"head_dim": 8} if kind == "qwen3" else {"sliding_window": 16} if kind == "mistral" else {}
    return cls(config(**shared, **extra)).eval()


def lora(base, r: int = 4, seed: int = 0):
    """The model with a fresh adapter on every linear layer."""
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM"))


def nudge(adapted, scale: float = 0.05, seed: int = 0) -> None:
    """Move an adapter away from its start: make B non-zero."""
    noise = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.add_(torch.randn(weight.shape, generator=noise), alpha=scale)


def save(kind: str, folder, seed: int = 0):
    """A standard transformers folder."""
    model(kind, seed).save_pretrained(str(folder), safe_serialization=True)
    tokenizer(kind).save_pretrained(str(folder))
    return folder


def rows(n: int = 6, source: str = "task") -> list[Example]:
    """Short conversations of uneven length."""
    answers = ["red", "green", "blue", "a long reply indeed", "yes", "no, never"]
    return [
        Example((Message("user", f"question {i}?"), Message("assistant", answers[i % 6] * (1 + i % 3))), source)
        for i in range(n)
    ]
