"""Sampling: 20 answers of 24 tokens to each of 24 prompts; ours against `generate` with 20 sequences a prompt."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import SHAPES, Shape, model
from benchmarks.sidebyside import alternate, ratio, seconds
from staytrue.data.examples import Message
from staytrue.evals.generation import batch, local
from staytrue.evals.types import Question

_PROMPTS, _ANSWERS, _TOKENS = 24, 20, 24


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    found = ways(model(shape).eval(), shape, _PROMPTS, _ANSWERS, _TOKENS)
    with endless():
        for warm in found.values():
            warm()
        measured = alternate({name: partial(seconds, way) for name, way in found.items()}, min(rounds, 3))
    tokens = _PROMPTS * _ANSWERS * _TOKENS
    for name, value in measured.items():
        print(f"sample {name:8s} {tokens / value['seconds']:9.0f} tokens/s")
    return {f"sample/{shape_name}/generate:ours": ratio(measured, "generate", "ours")}


@contextmanager
def endless() -> Iterator[None]:
    """Nobody ends early in our sampler."""
    ends, batch.end_ids = batch.end_ids, lambda model, tokenizer: frozenset()
    try:
        yield
    finally:
        batch.end_ids = ends


def ways(
    adapted, shape: Shape, prompts: int, answers: int, tokens: int, at_once: tuple[int, ...] = ()
) -> dict[str, Callable[[], None]]:
    """`generate` a prompt after another, and ours; for each number of `at_once` ours with so many side by side."""
    words = {"<unk>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, shape.vocabulary)}
    made = Tokenizer(WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    adapted.generation_config.eos_token_id = adapted.generation_config.pad_token_id = None
    rng = random.Random(0)
    texts = [
        " ".join(f"w{rng.randrange(2, shape.vocabulary)}" for _ in range(rng.randint(20, 120))) for _ in range(prompts)
    ]
    questions = [Question(str(i), "general", (Message("user", text),)) for i, text in enumerate(texts)]
    device = next(adapted.parameters()).device
    asked = [tokenizer(text, return_tensors="pt")["input_ids"].to(device) for text in texts]

    @torch.no_grad()
    def generate():
        for ids in asked:
            adapted.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                num_return_sequences=answers, max_new_tokens=tokens, min_new_tokens=tokens,
            )  # fmt: skip

    def ours(rows: int | None = None):
        make = local.LocalGenerator(adapted, tokenizer, batch_size=rows)
        wanted = [(question, index) for question in questions for index in range(answers)]
        list(make(wanted, seed=0, temperature=1.0, max_new_tokens=tokens))

    more = {f"ours, {rows} at once": partial(ours, rows) for rows in at_once}
    return {"generate": generate, **(more or {"ours": ours})}
