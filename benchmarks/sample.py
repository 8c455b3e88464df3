"""Sampling: 20 answers of 24 tokens to each of 24 prompts; ours against `generate` with 20 sequences a prompt."""

import random
from functools import partial

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import SHAPES, model
from benchmarks.sidebyside import alternate, ratio, seconds
from staytrue.data.examples import Message
from staytrue.evals.generation import local
from staytrue.evals.types import Question

_PROMPTS, _ANSWERS, _TOKENS = 24, 20, 24


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    adapted = model(shape).eval()
    words = {"<unk>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, shape.vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    adapted.generation_config.eos_token_id = adapted.generation_config.pad_token_id = None
    sampler_ends, local._end_ids = local._end_ids, lambda model, tokenizer: frozenset()  # nobody ends early
    rng = random.Random(0)
    texts = [
        " ".join(f"w{rng.randrange(2, shape.vocabulary)}" for _ in range(rng.randint(20, 120))) for _ in range(_PROMPTS)
    ]
    questions = [Question(str(i), "general", (Message("user", text),)) for i, text in enumerate(texts)]
    prompts = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]

    def ours():
        local.sample(adapted, tokenizer, questions, per_question=_ANSWERS, seed=0, max_new_tokens=_TOKENS)

    @torch.no_grad()
    def generate():
        for ids in prompts:
            adapted.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                num_return_sequences=_ANSWERS, max_new_tokens=_TOKENS, min_new_tokens=_TOKENS,
            )  # fmt: skip

    try:
        for warm in (ours, generate):
            warm()
        measured = alternate({"generate": partial(seconds, generate), "ours": partial(seconds, ours)}, min(rounds, 3))
    finally:
        local._end_ids = sampler_ends
    tokens = _PROMPTS * _ANSWERS * _TOKENS
    for name, value in measured.items():
        print(f"sample {name:8s} {tokens / value['seconds']:9.0f} tokens/s")
    return {f"sample/{shape_name}/generate:ours": ratio(measured, "generate", "ours")}
