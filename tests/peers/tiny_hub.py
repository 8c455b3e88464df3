"""Tiny local models and rows under the hub names in TRL's tests: no download, and nothing of TRL's is copied."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import re
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset, DatasetDict
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

OWNER = "trl-internal-testing"
# A hub name without owner, the model type of transformers, and the chat template among those that trl ships.
CAUSAL = {
    "tiny-Qwen2ForCausalLM-2.5": ("qwen2", "qwen2_5"),
    "tiny-Qwen3ForCausalLM": ("qwen3", "qwen3"),
    "tiny-Qwen3MoeForCausalLM": ("qwen3_moe", "qwen3"),
    "tiny-LlamaForCausalLM-3.2": ("llama", "llama3_2"),
    "tiny-LlamaForCausalLM-3.1": ("llama", "llama3_1"),
    "tiny-LlamaForCausalLM-3": ("llama", "llama3"),
    "tiny-MistralForCausalLM-0.2": ("mistral", "qwen2_5"),
    "tiny-MistralForCausalLM-0.1": ("mistral", "qwen2_5"),
    "tiny-GemmaForCausalLM": ("gemma", "gemma"),
    "tiny-Gemma2ForCausalLM": ("gemma2", "gemma"),
    "tiny-CohereForCausalLM": ("cohere", "cohere"),
    "tiny-Cohere2ForCausalLM": ("cohere2", "cohere2"),
    "tiny-Phi3ForCausalLM": ("phi3", "phi3"),
    "tiny-GPTNeoXForCausalLM": ("gpt_neox", "qwen2_5"),
    "tiny-Lfm2ForCausalLM": ("lfm2", "lfm2"),
    "tiny-Lfm2ForCausalLM-2.5": ("lfm2", "lfm2_2_5"),
    "tiny-Glm4MoeForCausalLM": ("glm4_moe", "glm4moe"),
    "tiny-GptOssForCausalLM": ("gpt_oss", "gptoss"),
    "tiny-Olmo3ForCausalLM": ("olmo3", "qwen2_5"),
}
SCORING = {
    "tiny-Qwen2ForSequenceClassification-2.5": ("qwen2", "qwen2_5"),
    "tiny-Qwen3ForSequenceClassification": ("qwen3", "qwen3"),
    "tiny-LlamaForSequenceClassification-3.2": ("llama", "llama3_2"),
}
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
}
_KINDS = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {"rope_type": "default"}},
    "cohere2": {"layer_types": ["sliding_attention", "full_attention"]},
}


def build(hub: Path) -> dict[str, str]:
    """Write the models into a folder that transformers takes for its hub cache; the names that could not be made."""
    missing = {}
    for names, head in ((CAUSAL, AutoModelForCausalLM), (SCORING, AutoModelForSequenceClassification)):
        for name, (kind, template) in names.items():
            folder = hub / f"models--{OWNER}--{name}"
            (folder / "refs").mkdir(parents=True)
            (folder / "refs" / "main").write_text("0" * 40)
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    _save(kind, template, head, folder / "snapshots" / ("0" * 40))
            except Exception as error:
                missing[name] = f"{type(error).__name__}: {error}"
    return missing


def _save(kind: str, template: str, head: Any, folder: Path) -> None:
    text = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
    tokenizer = _tokenizer(text)
    torch.manual_seed(0)
    sizes = {**_SIZES, **_KINDS.get(kind, {}), "vocab_size": len(tokenizer), "num_labels": 1}
    config = AutoConfig.for_model(
        kind, **sizes, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None
    )
    head.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each marker in the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    markers_seen = re.findall(r"<\|?[A-Za-z_]+\|?>", template)
    ends = [
        m
        for m in markers_seen
        if m in ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|END_OF_TURN_TOKEN|>")
    ]
    end = ends[0] if ends else "<|endoftext|>"
    markers = list(dict.fromkeys(["<|pad|>", end, *markers_seen]))
    inner.add_special_tokens([AddedToken(marker, special=True) for marker in markers])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<|pad|>", eos_token=end, chat_template=template)


def _sentences() -> list[tuple[str, str]]:
    """The Zen of Python, each line cut in two."""
    with contextlib.redirect_stdout(io.StringIO()):
        source = importlib.import_module("this").s
    lines = [line.split() for line in codecs.decode(source, "rot13").splitlines()[2:] if line]
    return [(" ".join(words[: len(words) // 2]), " " + " ".join(words[len(words) // 2 :])) for words in lines]


def _row(config: str, prompt: str, completion: str) -> dict[str, Any]:
    form, _, kind = config.partition("_")
    turns = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion.strip()}]
    first, second = turns if form == "conversational" else (prompt, completion)
    if kind == "language_modeling":
        return {"messages" if form == "conversational" else "text": first + second}  # type: ignore[operator]
    return {"prompt": first} if kind == "prompt_only" else {"prompt": first, "completion": second}


def load_dataset(path: str, config: str = "", split: str | None = None, streaming: bool = False, **_: Any) -> Any:
    """Rows of a form, under the names of TRL's own test data.

    Raises:
        FileNotFoundError: another data set.
    """
    known = ("language_modeling", "prompt_only", "prompt_completion")
    if path != f"{OWNER}/zen" or config.partition("_")[2] not in known:
        raise FileNotFoundError(f"no local rows for {path} {config}")
    rows = [_row(config, *sentence) for sentence in _sentences()]
    splits = DatasetDict({"train": Dataset.from_list(rows[:17]), "test": Dataset.from_list(rows[17:])})
    if split is None:
        return splits
    name, _, part = split.partition("[:")
    chosen = splits[name].select(range(int(part.rstrip("]")))) if part else splits[name]
    return chosen.to_iterable_dataset() if streaming else chosen
