"""Sampling: the same law as a plain loop, the same sample whatever the batch."""

import copy
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import tiny
from staytrue.data.examples import Message
from staytrue.data.tokenize import encode_prompt
from staytrue.evals.generation import kv_cache, local
from staytrue.evals.generation.local import draw, sample
from staytrue.evals.types import Question


def questions(n=5):
    return [Question(f"q{i}", "general", (Message("user", "why " * (1 + i)),)) for i in range(n)]


def by_hand(model, tokenizer, question, index, seed, limit, temperature):
    """The whole prompt again at every token: no cache, no batch, no padding."""
    dice = random.Random(f"{seed}|{question.probe}|{question.id}|{index}")
    ids, written = encode_prompt(tokenizer, question.messages), []
    for _ in range(limit):
        with torch.no_grad():
            logits = model(torch.tensor([ids + written])).logits[:, -1]
        token = draw(logits, torch.tensor([dice.random()]), temperature).item()
        if token == tokenizer.eos_token_id:
            return tokenizer.decode(written, skip_special_tokens=True), True
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True), False


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_writes_what_a_plain_loop_writes(kind, temperature):
    model, tokenizer = tiny.model(kind), tiny.tokenizer(kind)
    asked = questions()
    answers = sample(model, tokenizer, asked, per_question=3, seed=7, max_new_tokens=24, temperature=temperature)
    expected = [by_hand(model, tokenizer, q, k, 7, 24, temperature) for q in asked for k in range(3)]
    assert [(a.text, a.stopped) for a in answers] == expected


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])  # gemma3 has sliding layers beside plain ones
def test_a_cache_that_has_to_grow_and_loses_rows_holds_the_same(kind, monkeypatch):
    monkeypatch.setattr(kv_cache, "_SPARE", 2)
    model, tokenizer = tiny.model(kind), tiny.tokenizer(kind)
    asked = questions(3)
    answers = sample(model, tokenizer, asked, per_question=6, seed=3, max_new_tokens=40)
    expected = [by_hand(model, tokenizer, q, k, 3, 40, 1.0) for q in asked for k in range(6)]
    assert [(a.text, a.stopped) for a in answers] == expected
    assert len({stopped for _, stopped in expected}) == 2  # some end early, and leave the batch


def test_a_plain_layer_is_grown_in_place():
    layer = DynamicLayer()
    keys = torch.arange(12.0).view(1, 1, 6, 2)
    layer.update(keys[:, :, :3], keys[:, :, :3])
    held = kv_cache.buffered(SimpleNamespace(layers=[layer])).layers[0]
    first, _ = held.update(keys[:, :, 3:4], keys[:, :, 3:4])
    both, _ = held.update(keys[:, :, 4:6], keys[:, :, 4:6])
    assert torch.equal(both, keys)
    assert both.data_ptr() == first.data_ptr()


def test_more_samples_than_a_batch_holds_are_cut_into_batches(monkeypatch):
    monkeypatch.setattr(local, "_ROWS", 4)
    model, tokenizer = tiny.model(), tiny.tokenizer()
    expected = [by_hand(model, tokenizer, q, k, 1, 3, 1.0) for q in questions(2) for k in range(10)]
    widths = []
    model.register_forward_pre_hook(lambda _, args, named: widths.append(len(named["input_ids"])), with_kwargs=True)
    answers = sample(model, tokenizer, questions(2), per_question=10, seed=1, max_new_tokens=3)
    assert max(widths) == 4
    assert [(a.text, a.stopped) for a in answers] == expected


def test_a_sample_does_not_depend_on_what_else_is_asked():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    together = sample(model, tokenizer, questions(), per_question=4, seed=1, max_new_tokens=12)
    alone = sample(model, tokenizer, questions()[2:3], per_question=2, seed=1, max_new_tokens=12)
    same = [a.text for a in together if a.question.id == "q2"][:2]
    assert [a.text for a in alone] == same
    other = sample(model, tokenizer, questions()[2:3], per_question=2, seed=2, max_new_tokens=12)
    assert [a.text for a in other] != same


@pytest.mark.parametrize("words", [1, 255, 256, 257, 1000])
def test_a_number_falls_on_the_word_that_a_dense_law_in_float64_gives_it(words):
    noise = torch.Generator().manual_seed(words)
    logits, uniforms = 4 * torch.randn(500, words, generator=noise), torch.rand(500, generator=noise)
    logits[:, ::3] = -torch.inf  # words that cannot be said
    if words == 1:
        logits[:] = 0.0
    law = torch.softmax(logits.double(), -1)
    drawn = draw(logits, uniforms, 1.0).unsqueeze(-1)
    upto = law.cumsum(-1).gather(-1, drawn).squeeze(-1)
    own = law.gather(-1, drawn).squeeze(-1)
    assert (own > 0).all()
    assert (upto - own - 1e-6 <= uniforms).all()
    assert (uniforms <= upto + 1e-6).all()


def test_the_law_is_the_softmax():
    # A chi-square over five tokens and 20,000 draws: 4 degrees of freedom, 18.47 is the 99.9 % point.
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(logits.expand(20_000, 5), uniforms, 0.7), minlength=5)
    wanted = 20_000 * torch.softmax(logits / 0.7, 0)
    assert ((counts - wanted) ** 2 / wanted).sum() < 18.47


def test_the_law_over_many_blocks_is_the_softmax():
    # 1,000 words in 4 blocks, counted in tens: a chi-square with 99 degrees of freedom, 148.2 is the 99.9 % point.
    noise = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(1_000, generator=noise), torch.rand(50_000, generator=noise)
    drawn = torch.cat([draw(logits.expand(1_000, -1), part, 1.0) for part in uniforms.split(1_000)])
    counts = torch.bincount(drawn, minlength=1_000).view(100, 10).sum(-1)
    wanted = 50_000 * torch.softmax(logits, 0).view(100, 10).sum(-1)
    assert ((counts - wanted) ** 2 / wanted).sum() < 148.2


def test_the_edges_of_the_law_stay_inside_it():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert draw(logits, torch.tensor([0.0]), 1.0).item() == 0
    assert draw(logits, torch.tensor([0.9999999999], dtype=torch.float64), 1.0).item() == 1
    assert draw(logits, torch.tensor([0.3]), 0.0).item() == 0


def test_the_model_comes_back_as_it_was():
    model = tiny.model().train()
    sample(model, tiny.tokenizer(), questions(1), per_question=1, seed=0, max_new_tokens=2)
    assert model.training


def test_generation_ends_at_the_chat_templates_token_and_at_the_models_own():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.eos_token = "<pad>"
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7]))
    template = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert local._end_ids(model, tokenizer) == {template, tokenizer.pad_token_id, 7}


@pytest.mark.parametrize(
    ("header", "written", "text", "thoughts"),
    [
        ("", "Four.", "Four.", ""),
        ("", "<think>\nTwo and two.\n</think>\n\nFour.", "Four.", "Two and two."),
        ("<think>\n", "Two and two.\n</think>\n\nFour.", "Four.", "Two and two."),
        ("<think>\n", "Two and", "", "Two and"),
        ("", "Close it with </think> and go on.", "Close it with </think> and go on.", ""),
        ("", "<|im_start|>Four.", "Four.", ""),  # special tokens are left out as ever
    ],
)
def test_thoughts_are_kept_apart_from_the_answer(monkeypatch, header, written, text, thoughts):
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\\n", "assistant\\n" + header.replace("\n", "\\n")
    )
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    fake = SimpleNamespace(write=lambda dice, temperature, limit: [(ids, True)] * len(dice))
    monkeypatch.setattr(local, "_Batch", lambda *args: fake)
    (answer,) = sample(tiny.model(), tokenizer, questions(1), per_question=1, seed=0, max_new_tokens=9)
    assert (answer.text, answer.thoughts) == (text, thoughts)
    assert bool(answer.missing) == (not text)


def test_a_question_with_tools_shows_them_in_its_prompt():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ tools[0].function.name if tools else 'none' }}" + tokenizer.chat_template
    tools = json.dumps([{"type": "function", "function": {"name": "look"}}])
    question = replace(questions(1)[0], tools=tools)
    made = local.LocalGenerator(tiny.model(), tokenizer)
    assert tokenizer.decode(made._prompt(question)).startswith("look<|im_start|>")
