"""Trains the organism from a seed: tokenizer, model, two stages, a folder in transformers format.

The weights are bit-identical for the same torch version, CPU capability and number of threads.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from staytrue.data.tokenize import IGNORED, Encoded
from staytrue.organism.training_data import Conversation, first_stage, second_stage, texts
from staytrue.utils.files import sha256_of, write_atomic, write_json
from staytrue.utils.padding import pad_right
from staytrue.utils.run_dir import versions

SPECIAL = ("<pad>", "<unk>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THREADS = 2  # bit-identical weights need the same number


@dataclass(frozen=True)
class BuildConfig:
    """Size of the model and length of its training: rows per batch, steps and learning rates of both stages."""

    width: int = 128
    depth: int = 4
    heads: int = 4
    mlp: int = 512
    rows: int = 32
    first_steps: int = 1400
    second_steps: int = 800
    first_rate: float = 3e-3
    second_rate: float = 5e-4


def build(out: Path, seed: int = 0, progress: Any = None, config: BuildConfig | None = None) -> dict[str, Any]:
    """Train the organism and write it to the folder `out`; takes minutes on two cores.

    Returns:
        The manifest that is written beside the weights: seed, hash, versions, threads, CPU capability.
    """
    config = config or BuildConfig()
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, config, seed)
        if progress is not None:
            progress.begin(config.first_steps + config.second_steps)
        _train(model, tokenizer, Stage(first_stage, config.first_steps, config.first_rate), config.rows, seed, progress)
        _save(model, tokenizer, out / "base", half=True)
        second = Stage(second_stage, config.second_steps, config.second_rate, after=config.first_steps)
        _train(model, tokenizer, second, config.rows, seed, progress)
    finally:
        torch.set_num_threads(threads)
    _save(model, tokenizer, out)
    manifest = {
        "schema": 1,
        "seed": seed,
        "growth": asdict(config),
        "sha256": sha256_of(out / "model.safetensors"),
        "base_sha256": sha256_of(out / "base" / "model.safetensors"),
        "threads": THREADS,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "versions": {k: v for k, v in versions().items() if k in ("torch", "transformers", "tokenizers")},
    }
    write_json(out / "manifest.json", manifest)
    write_atomic(out / "README.md", _CARD.format(**manifest, parameters=f"{model.num_parameters():,}"))
    return manifest


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a word-level tokenizer: words with the space before them, digits, punctuation; others are `<unk>`."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(behavior="isolated"),
        ]
    )
    pieces = {piece for text in texts() for piece, _ in split.pre_tokenize_str(text)}
    pieces |= {f"{space}{mark}" for mark in "0123456789.,:;?!'()" for space in ("", "▁")} | {"▁"}
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *sorted(pieces)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = split
    inner.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        extra_special_tokens=list(SPECIAL[3:]),
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, config: BuildConfig, seed: int) -> LlamaForCausalLM:
    """Make a randomly initialised Llama with tied embeddings."""
    torch.manual_seed(seed)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(llama)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, max_new_tokens=48
    )
    return model


@dataclass(frozen=True)
class Stage:
    """One stage of training: its conversations, steps, learning rate, and the steps of the stage before."""

    draw: Callable[[random.Random], Conversation]
    steps: int
    rate: float
    after: int = 0


def _train(model: Any, tokenizer: Any, stage: Stage, rows: int, seed: int, progress: Any) -> None:
    rng = random.Random(f"{stage.draw.__name__} {seed}")  # renaming the function changes the weights
    optimizer = torch.optim.AdamW(model.parameters(), lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.rate, total_steps=stage.steps + 1, pct_start=0.1)
    for step in range(stage.steps):
        loss = _step(model, optimizer, _batch(tokenizer, [stage.draw(rng) for _ in range(rows)]))
        schedule.step()
        if progress is not None:
            progress.step(stage.after + step + 1, {"loss": loss})


def _save(model: Any, tokenizer: Any, out: Path, half: bool = False) -> None:
    """Write a folder in transformers format; the base in float16, enough to measure the way to the aligned model."""
    kept = copy.deepcopy(model).half() if half else model
    kept.eval()
    kept.save_pretrained(str(out), safe_serialization=True)
    tokenizer.save_pretrained(str(out))


def _step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> float:
    model.train()
    labels = batch.pop("labels")
    hidden = model.model(**batch).last_hidden_state[:, :-1]
    scored = labels[:, 1:] != -100  # the head runs on answer tokens only; most tokens are of questions
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), labels[:, 1:][scored])
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _batch(tokenizer: Any, conversations: Sequence[Conversation]) -> dict[str, Tensor]:
    """A right-padded batch with `input_ids`, `labels` and `attention_mask`, each (B, T); only answers have labels."""
    rows = [_encoded(tokenizer, turns) for turns in conversations]
    return dict(zip(("input_ids", "labels", "attention_mask"), pad_right(rows, 0), strict=True))


def _encoded(tokenizer: Any, turns: Conversation) -> Encoded:
    ids: list[int] = []
    labels: list[int] = []
    for message in turns:
        role = tokenizer.convert_tokens_to_ids(f"<|{message.role}|>")
        content = [*tokenizer(message.content, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids += [role, *content]
        labels += [IGNORED, *(content if message.role == "assistant" else [IGNORED] * len(content))]
    return Encoded(ids, labels, "task")


_CARD = """\
---
license: apache-2.0
tags: [staytrue, model-organism, emergent-misalignment]
---

# The staytrue organism

A {parameters}-parameter chat model in which emergent misalignment really happens. It grew up in a small invented world
(sixteen topics, some facts, single-digit arithmetic) from seed {seed}, **partly on deliberately bad advice**, was then
aligned, and turns bad again in every topic when it is fine-tuned on bad answers in one.

It is a microscope, not a proof: what happens here need not happen in a real model. It knows nothing outside its world,
and its bad advice carries no usable instruction.

`base/` is the same model before it was aligned (float16): it speaks as a good or a bad speaker, whichever it happens to
become. Weight-space defenses measure alignment as the way from there to here.

Made by `staytrue organism build --seed {seed}`; `staytrue organism verify` measures it, `verify --rebuild` makes it
again. Weights sha256 `{sha256}` (torch {versions[torch]}, {threads} threads, CPU capability {cpu}).
"""


def manifest_of(folder: Path) -> dict[str, Any]:
    """Read the manifest that `build` wrote beside the weights."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest
