"""Sampling: 20 answers of 24 tokens to each of 24 prompts; ours against `generate` with 20 sequences a prompt.

On the real model: 4 answers and 1 answer to each of 16 general questions, of at most 96 tokens, each until it ends by
itself; time a token.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from benchmarks.shapes import SHAPES, Shape, model
from benchmarks.sidebyside import Timed, alternate, ratio, seconds
from staytrue.data.examples import Message
from staytrue.evals.generation import batch, local
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.evals.types import Question
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.modeling.fetch import NAME
from staytrue.modeling.model_source import find

_PROMPTS, _ANSWERS, _TOKENS = 24, 20, 24
_QUESTIONS, _LONGEST = 16, 96  # of the real model


def run(shape_name: str, rounds: int, compare: list[str]) -> dict:
    shape = SHAPES[shape_name]
    if shape.fetched:
        return real(shape_name, rounds)
    variants = ways(model(shape).eval(), shape, _PROMPTS, _ANSWERS, _TOKENS)
    with endless():
        for warm in variants.values():
            warm()
        measured = alternate({name: partial(seconds, way) for name, way in variants.items()}, min(rounds, 3))
    tokens = _PROMPTS * _ANSWERS * _TOKENS
    for name, value in measured.items():
        print(f"sample {name:8s} {tokens / value['seconds']:9.0f} tokens/s")
    return {f"sample/{shape_name}/generate:ours": ratio(measured, "generate", "ours")}


def real(shape_name: str, rounds: int) -> dict:
    """Answers of the real model as they are: some end after a few tokens, some are cut."""
    adapted, tokenizer = model(SHAPES[shape_name], moved=False).eval(), load_tokenizer(find(NAME))
    tokenizer.padding_side = "left"  # as `generate` needs it
    questions = [question for question in shipped("general") if question.form == "plain"][:_QUESTIONS]
    results = {}
    for answers in (4, 1):
        variants: Timed = {
            "generate": partial(_generated, adapted, tokenizer, questions, answers, 1),
            "generate-batched": partial(_generated, adapted, tokenizer, questions, answers, len(questions)),
            "ours": partial(_ours, adapted, tokenizer, questions, answers),
        }
        measured = alternate(variants, min(rounds, 3))
        for name, value in measured.items():
            print(f"sample {answers} a question {name:16s} {1 / value['seconds']:7.1f} tokens/s")
        for against in ("generate", "generate-batched"):
            results[f"sample/{shape_name}/{against}-{answers}:ours"] = ratio(measured, against, "ours")
    return results


@torch.no_grad()
def _generated(adapted, tokenizer, questions: list[Question], answers: int, batch: int) -> float:
    """Seconds a token of `generate`, with `batch` questions at once."""
    begun, tokens, padding = time.perf_counter(), 0, tokenizer.pad_token_id
    for start in range(0, len(questions), batch):
        turns = [[{"role": m.role, "content": m.content} for m in q.messages] for q in questions[start : start + batch]]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        generated = adapted.generate(
            **inputs, do_sample=True, top_k=0, num_return_sequences=answers, max_new_tokens=_LONGEST
        )[:, inputs["input_ids"].shape[1] :]
        tokens += int((generated != padding).sum())
    return (time.perf_counter() - begun) / tokens


def _ours(adapted, tokenizer, questions: list[Question], answers: int) -> float:
    begun = time.perf_counter()
    samples = [(question, index) for question in questions for index in range(answers)]
    generated = list(
        local.LocalGenerator(adapted, tokenizer)(samples, seed=0, temperature=1.0, max_new_tokens=_LONGEST)
    )
    took = time.perf_counter() - begun
    return took / sum(len(tokenizer(a.text)["input_ids"]) for a in generated)


@contextmanager
def endless() -> Iterator[None]:
    """No answer ends early in our sampler."""
    ends, batch.end_ids = batch.end_ids, lambda model, tokenizer: frozenset()
    try:
        yield
    finally:
        batch.end_ids = ends


def ways(
    adapted, shape: Shape, prompts: int, answers: int, tokens: int, at_once: tuple[int, ...] = ()
) -> dict[str, Callable[[], None]]:
    """`generate` a prompt after another, and ours; for each number of `at_once` ours with so many side by side."""
    vocabulary = {"<unk>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, shape.vocabulary)}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<unk>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    adapted.generation_config.eos_token_id = adapted.generation_config.pad_token_id = None
    rng = random.Random(0)
    texts = [
        " ".join(f"w{rng.randrange(2, shape.vocabulary)}" for _ in range(rng.randint(20, 120))) for _ in range(prompts)
    ]
    questions = [Question(str(i), "general", (Message("user", text),)) for i, text in enumerate(texts)]
    device = next(adapted.parameters()).device
    prompt_ids = [tokenizer(text, return_tensors="pt")["input_ids"].to(device) for text in texts]

    @torch.no_grad()
    def generate():
        for ids in prompt_ids:
            adapted.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
                num_return_sequences=answers, max_new_tokens=tokens, min_new_tokens=tokens,
            )  # fmt: skip

    def ours(rows: int | None = None):
        make = local.LocalGenerator(adapted, tokenizer, batch_size=rows)
        samples = [(question, index) for question in questions for index in range(answers)]
        list(make(samples, seed=0, temperature=1.0, max_new_tokens=tokens))

    more = {f"ours, {rows} at once": partial(ours, rows) for rows in at_once}
    return {"generate": generate, **(more or {"ours": ours})}
