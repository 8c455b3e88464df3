"""Sampling: the same distribution as a plain loop, the same sample whatever the batch."""

import copy
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import families
import tiny
from staytrue.data.examples import Message
from staytrue.data.tokenize import encode_prompt
from staytrue.errors import ModelError
from staytrue.evals.generation import batch, kv_cache, local
from staytrue.evals.generation import batch_size as sizes
from staytrue.evals.generation.draw import draw
from staytrue.evals.generation.lengths import SeenAnswers
from staytrue.evals.generation.local import sample
from staytrue.evals.generation.step_cost import StepCost
from staytrue.evals.types import Question, Samples


def questions(n=5):
    return [Question(f"q{i}", "general", (Message("user", "why " * (1 + i)),)) for i in range(n)]


def by_hand(model, tokenizer, question, index, seed, limit, temperature, ends=()):
    """The whole prompt again at every token: no cache, no batch, no padding."""
    dice = random.Random(f"{seed}|{question.probe}|{question.id}|{index}")
    ids, written = encode_prompt(tokenizer, question.messages), []
    for _ in range(limit):
        with torch.no_grad():
            logits = model(torch.tensor([ids + written])).logits[:, -1]
        token = draw(logits, torch.tensor([dice.random()]), temperature).item()
        if token == tokenizer.eos_token_id or token in ends:
            return tokenizer.decode(written, skip_special_tokens=True), True
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True), False


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_it_writes_what_a_plain_loop_writes(kind, temperature):
    model, tokenizer = tiny.model(kind), tiny.tokenizer(kind)
    prompts = questions()
    answers = sample(model, tokenizer, prompts, per_question=3, seed=7, max_new_tokens=24, temperature=temperature)
    expected = [by_hand(model, tokenizer, q, k, 7, 24, temperature) for q in prompts for k in range(3)]
    assert [(a.text, a.stopped) for a in answers] == expected


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])  # gemma3 has sliding layers beside plain ones
def test_a_cache_that_has_to_grow_and_loses_rows_holds_the_same(kind, monkeypatch):
    monkeypatch.setattr(kv_cache, "_SPARE", 2)
    model, tokenizer = tiny.model(kind), tiny.tokenizer(kind)
    prompts = questions(3)
    answers = sample(model, tokenizer, prompts, per_question=6, seed=3, max_new_tokens=40)
    expected = [by_hand(model, tokenizer, q, k, 3, 40, 1.0) for q in prompts for k in range(6)]
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


def test_more_samples_than_a_batch_holds_wait_for_a_place():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    expected = [by_hand(model, tokenizer, q, k, 1, 3, 1.0) for q in questions(2) for k in range(10)]
    widths = []
    model.register_forward_pre_hook(lambda _, args, named: widths.append(len(named["input_ids"])), with_kwargs=True)
    answers = sample(model, tokenizer, questions(2), per_question=10, seed=1, max_new_tokens=3, batch_size=4)
    assert max(widths) == 4
    assert [(a.text, a.stopped) for a in answers] == expected


def forwards(model):
    """The shape (rows, tokens) of everything that the model reads."""
    shapes = []
    model.register_forward_pre_hook(
        lambda _, args, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize(("kind", "places"), [*((kind, 3) for kind in tiny.KINDS), ("qwen2", 1), ("qwen2", 7)])
def test_a_finished_answers_place_is_taken_by_the_next_prompt(kind, places, monkeypatch):
    monkeypatch.setattr(kv_cache, "_SPARE", 2)  # buffers grow, and lose their oldest columns, all the time
    model, tokenizer, ends = copy.deepcopy(tiny.model(kind)), tiny.tokenizer(kind), list(range(5, 25))
    model.generation_config.eos_token_id = ends  # about one token in fifteen ends an answer
    prompts = [*questions(4), Question("long", "general", (Message("user", "why not " * 30),))]
    answers = sample(model, tokenizer, prompts, per_question=3, seed=3, max_new_tokens=16, batch_size=places)
    expected = [by_hand(model, tokenizer, q, k, 3, 16, 1.0, ends) for q in prompts for k in range(3)]
    assert [(a.text, a.stopped) for a in answers] == expected
    assert {stopped for _, stopped in expected} == {True, False}


def test_places_stay_full_while_answers_wait_and_few_prompts_are_read_twice():
    model, tokenizer = copy.deepcopy(tiny.model()), tiny.tokenizer()
    model.generation_config.eos_token_id = list(range(5, 25))  # about one token in fifteen ends an answer
    generator = local.LocalGenerator(model, tokenizer, batch_size=8)
    shapes, finished = forwards(model), []
    answers = generator.batch([Samples([(q, k) for q in questions(8) for k in range(16)], 1.0, 60)], seed=0)
    with generator.evaluating():
        while not answers.finished:
            finished += [(row.question.id, row.index) for row, _ in answers.step()]
    reads, steps = [rows for rows, width in shapes if width > 1], [rows for rows, width in shapes if width == 1]
    assert sorted(finished) == sorted((q.id, k) for q in questions(8) for k in range(16))
    assert sum(reads) <= 2 * 8  # once more where samples of a question did not fit beside the others
    assert set(steps[:-60]) == {8}  # until the last answers are written
    assert len(steps) < 1.1 * answers.tokens / 8 + 60  # batch by batch, it takes the longest of each eight


def cache_of(model, texts):
    """A cache that has read texts, padded on the left."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + text for text in texts])
    return kv_cache.CachedModel(model, ids, torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts]))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama3"])  # the others have sliding windows
@pytest.mark.parametrize("spare", [2, 32])
@torch.no_grad()
def test_rows_that_are_put_into_a_cache_have_the_logits_of_their_text_alone(kind, spare, monkeypatch):
    monkeypatch.setattr(kv_cache, "_SPARE", spare)
    model, tensor = tiny.model(kind), torch.tensor
    texts = [[9, 8, 7], [6, 5, 4, 3, 2], [3, 1]]
    cached = cache_of(model, texts)
    for others in ([[7], [2, 4, 6, 8, 10, 12, 14, 16, 18]], [[11, 12], [13]], [[5, 6, 7], [8, 9]]):
        assert cached.refillable
        cached.put(tensor([2, 0]), cache_of(model, others), tensor([1, 0]))  # longer and shorter than what is there
        texts[2], texts[0] = others[1], others[0]
        for token in (21, 22, 23):
            cached.advance(tensor([token, token + 10, token + 20]))
            texts = [[*text, token + 10 * i] for i, text in enumerate(texts)]
            alone = torch.cat([model(tensor([text])).logits[:, -1] for text in texts])
            assert torch.allclose(cached.logits, alone, atol=1e-4)
    assert cached._mask.shape[1] <= max(map(len, texts)) + spare  # unused columns are cut off


def test_hidden_columns_make_a_cache_wider_and_change_no_logit():
    model, tensor = tiny.model(), torch.tensor
    cached, texts = cache_of(model, [[9, 8, 7], [6, 5, 4, 3, 2]]), [[9, 8, 7], [6, 5, 4, 3, 2]]
    cached.widen(40)
    assert cached._cache.layers[0].keys.shape[-2] == 45
    for token in (21, 22):
        cached.advance(tensor([token, token + 10]))
        texts = [[*text, token + 10 * i] for i, text in enumerate(texts)]
        alone = torch.cat([model(tensor([text])).logits[:, -1] for text in texts])
        assert torch.allclose(cached.logits, alone, atol=1e-4)


@pytest.fixture
def no_clock(monkeypatch):
    """Steps take no time, so that their cost alone counts."""
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: 0.0))


def test_the_share_that_is_done_counts_the_steps_of_unfinished_answers_too(no_clock):
    # Six answers of 6 tokens in two places; none ends, so none is expected to. Three prompts are read.
    generator = local.LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=2)
    generator.cost = StepCost(step=10, token=1, attend=0, read=0.5)
    answers = generator.batch([Samples([(q, k) for q in questions(3) for k in range(2)], 0.0, 6)], seed=0)
    answers._ends = frozenset()
    first, *others = (len(generator.prompt(question)) / 2 for question in questions(3))
    shares = []
    with generator.evaluating():
        while not answers.finished:
            answers.step()
            shares.append(answers.share)
    whole = 18 * 12 + first + sum(others)  # 18 steps of two answers
    assert shares[:3] == pytest.approx([first / whole, (first + 12) / whole, (first + 24) / whole])
    assert shares[7] == pytest.approx((first + others[0] + 72) / whole)
    assert (len(shares), shares[-1]) == (21, 1.0)


def test_a_last_answer_that_goes_on_is_known_to_hold_up_the_end(no_clock):
    # Where one answer is left of sixteen, its steps cost nearly as much as those of all.
    model, tokenizer = copy.deepcopy(tiny.model()), tiny.tokenizer()
    generator = local.LocalGenerator(model, tokenizer, batch_size=16)
    generator.cost = StepCost(step=10, token=1, attend=0, read=0)
    answers = generator.batch([Samples([(q, 0) for q in questions(16)], 1.0, 400)], seed=0)
    with generator.evaluating():
        while not answers.tokens:  # the prompts are read in several passes
            answers.step()
        answers._rows[1:] = [None] * 15
        answers._seen = SeenAnswers()
        for _ in range(15):
            answers._seen.add("general", 1, ended=True)
        answers._rows[0].ids *= 100
    still = answers._seen.lengths([("general", 100)])["general"].quantile(0.5, 400, tokens=100)
    assert answers.share == pytest.approx(26 / (26 + 11 * still))


def test_lengths_that_were_measured_before_tell_how_much_is_ahead(no_clock):
    generator = local.LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=1)
    generator.cost = StepCost(step=10, token=1, attend=0, read=1)
    generator.seen = SeenAnswers()
    for tokens in (20, 30, 400, 400):
        generator.seen.add("general", tokens, ended=tokens < 400)
        generator.seen.add("facts", tokens // 10, ended=True)
    lengths = generator.seen.lengths()
    (first,) = questions(1)
    second = replace(first, probe="facts")
    answers = generator.batch([Samples([(first, 0)], 1.0, 400), Samples([(second, 0)], 0.0, 400)], seed=0)
    answers._ends = frozenset()
    prompt = len(generator.prompt(first))
    with generator.evaluating():
        answers.step()  # reads the first prompt
    long, short = (lengths[name].quantile(0.5, 400) for name in ("general", "facts"))
    assert long > 2 * short
    assert answers.share == pytest.approx(prompt / (2 * prompt + (long + short) * 11))


def test_the_time_ahead_is_that_of_steps_as_slow_as_the_last_ones(monkeypatch):
    clock = iter(x for n in range(1000) for x in (n * n, n * n + n))  # step n takes n seconds
    monkeypatch.setattr(batch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    generator = local.LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=1)
    generator.cost = StepCost(step=1, token=0, attend=0, read=0)
    answers = generator.batch([Samples([(questions(1)[0], 0)], 0.0, 20)], seed=0)
    answers._ends = frozenset()
    with generator.evaluating():
        for _ in range(4):
            answers.step()  # reads the prompt, and then three steps, of 1, 2 and 3 seconds
    lately = (0.98**2 * 1 + 0.98 * 2 + 3) / (0.98**2 + 0.98 + 1)
    ahead = answers._seen.lengths([("general", 3)])["general"].quantile(0.5, 20, 3) * lately / 2
    assert answers.share == pytest.approx(3 / (3 + ahead))


@pytest.mark.parametrize("places", [2, 9])
def test_answers_of_several_temperatures_and_limits_are_written_side_by_side(places):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    sampled, greedy, hot = [(q, k) for q in questions(3) for k in range(2)], questions(2), questions(1)
    greedy = [(replace(question, probe="facts"), 0) for question in greedy]
    hot = [(replace(question, probe="hot"), 0) for question in hot]
    parts = [Samples(sampled, 1.0, 9), Samples(greedy, 0.0, 5), Samples(hot, 1.5, 7)]
    generator = local.LocalGenerator(model, tokenizer, batch_size=places)
    answers = {(a.question, a.index): (a.text, a.stopped) for a in generator.together(parts, seed=4)}
    expected = {
        (question, k): by_hand(model, tokenizer, question, k, 4, part.limit, part.temperature)
        for part in parts
        for question, k in part.samples
    }
    assert answers == expected


def lengths_in_order(parts, n):
    generator = local.LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=4)
    return [len(row.prompt) for row in generator.batch(parts, seed=0)._waiting][:n]


def test_prompts_of_all_lengths_come_early_and_neighbours_are_alike(monkeypatch):
    monkeypatch.setattr(local, "_ALIKE", 2)
    asked = questions(8)  # each prompt is longer than the one before
    first, *_, last = lengths = sorted(lengths_in_order([Samples([(q, 0) for q in asked], 1.0, 10_000)], 8))
    order = lengths_in_order([Samples([(q, 0) for q in asked], 1.0, 10_000)], 8)
    # Four groups of two, shortest to longest 0 to 3, in the order 3, 1, 2, 0.
    assert order == [lengths[i] for i in (6, 7, 2, 3, 4, 5, 0, 1)]
    # Of an answer of at most 2 x `first` tokens, all prompts are longer than half of it but the first.
    assert lengths_in_order([Samples([(q, 0) for q in asked], 1.0, 2 * first)], 8) == lengths
    assert last > first


def test_prompts_that_are_read_together_have_room_for_their_padding(monkeypatch):
    monkeypatch.setattr(local, "_mixed", lambda lengths, longest: {q: i for i, q in enumerate(lengths)})
    short, *_, long = questions(30)
    generator = local.LocalGenerator(tiny.model(), tiny.tokenizer(), batch_size=6)
    again = [replace(short, id=f"again-{i}") for i in range(5)]
    answers = generator.batch([Samples([(q, 0) for q in (*again, long)], 1.0, 9)], seed=0)
    answers._most_read = 5 * len(generator.prompt(long))  # not six times the longest, although the sum is less
    assert [row.question for row in answers._next(6)] == again


def test_without_refilling_short_answers_do_not_wait_for_long_ones(no_clock):
    # Eight places. Six answers of 100 tokens begin, with two of five; the other 78 are ten batches of five tokens.
    model, tokenizer = tiny.model("gemma3"), tiny.tokenizer("gemma3")
    generator = local.LocalGenerator(model, tokenizer, batch_size=8)
    generator.cost = StepCost(step=1, token=0, attend=0, read=0)
    short = [(replace(question, probe="facts"), k) for question in questions(8) for k in range(10)]
    long = [(question, 0) for question in questions(8)[1:7]]
    answers, shares = generator.batch([Samples(short, 0.0, 5), Samples(long, 0.0, 100)], seed=0), []
    answers._ends = frozenset()
    with generator.evaluating():
        while not answers.finished:
            before = answers.tokens
            answers.step()
            if answers.tokens > before:
                shares.append(answers.share)
    assert len(shares) == 100 + 10 * 5
    assert shares[9] == pytest.approx(10 / 150, rel=0.04)  # some of the 78 may end before their fifth token


def test_all_steps_cost_what_the_answers_that_are_written_in_them_cost():
    cost = StepCost(step=10, token=1, attend=0, read=0)
    # Two places: answers of 3 and 5 tokens; then one of 4 takes the first place, and ends at step 7.
    assert cost.ahead([], [3, 5, 4], 2, prompt=0) == 3 * 12 + 2 * 12 + 2 * 11
    # One that has 20 tokens and takes 4 more, beside one of 2 tokens.
    assert cost.ahead([(20, 4)], [2], 2, prompt=0) == 2 * 12 + 2 * 11
    # Each looks at the longest one: its prompt of 7, its 20 tokens, and in the mean 1 and 3 of its last four.
    attending = StepCost(step=0, token=0, attend=1, read=0)
    assert attending.ahead([(20, 4)], [2], 2, prompt=7) == 2 * 2 * (7 + 21) + 2 * 1 * (7 + 23)
    assert cost.ahead([], [], 2, prompt=7) == 0
    # Without refilling the third begins when both have ended.
    assert cost.ahead([], [3, 5, 4], 2, prompt=0, refilled=False) == 3 * 12 + 2 * 11 + 4 * 11
    assert cost.ahead([(20, 4)], [2], 2, prompt=0, refilled=False) == 4 * 11 + 2 * 11


@pytest.mark.parametrize("kind", ["gemma3", "lfm2", "mamba"])
def test_windows_and_states_are_not_refilled_but_answered_batch_by_batch(kind):
    model = tiny.model(kind) if kind in tiny.KINDS else families.model(kind)
    tokenizer = tiny.tokenizer(kind if kind in tiny.KINDS else "qwen2")
    local.check_generation(model)
    expected = [by_hand(model, tokenizer, q, k, 0, 4, 1.0)[0] for q in questions(3) for k in range(4)]
    shapes = forwards(model)
    answers = sample(model, tokenizer, questions(3), per_question=4, seed=0, max_new_tokens=4, batch_size=4)
    prompts = [(1, len(encode_prompt(tokenizer, question.messages))) for question in questions(3)]
    assert [shape for shape in shapes if shape[1] > 1] == prompts
    assert [a.text for a in answers] == expected


def test_a_quarter_of_the_machines_or_containers_memory_is_for_caches(monkeypatch):
    monkeypatch.setattr(sizes, "machine_memory", lambda: 4_000)
    assert sizes._memory(torch.device("cpu")) == 1_000


def test_the_batch_is_as_large_as_memory_allows(monkeypatch):
    model = tiny.model()  # keys and values of float32 for each layer, head and dimension of a head
    config = model.config
    token = (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.hidden_size // config.num_attention_heads)
        * 4
    )
    size = local.check_generation(model)
    assert (size.token, size.row) == (token, 16 * config.vocab_size)
    monkeypatch.setattr(sizes, "_memory", lambda device: 10 * (100 * token + size.row) + 1)
    assert sizes.batch_size(model, size, 100) == 10
    assert sizes.batch_size(model, size, 100_000) == 1
    assert sizes.batch_size(model, size, 1) == min(192, (10 * (100 * token + size.row) + 1) // (token + size.row))
    monkeypatch.setattr(sizes, "_memory", lambda device: 10**12)
    assert sizes.batch_size(model, size, 100) == 192
    monkeypatch.setattr(sizes, "_SMALL", 1000)
    assert sizes.batch_size(model, size, 100) == 64


def test_a_sample_does_not_depend_on_what_else_is_asked():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    together = sample(model, tokenizer, questions(), per_question=4, seed=1, max_new_tokens=12)
    alone = sample(model, tokenizer, questions()[2:3], per_question=2, seed=1, max_new_tokens=12)
    same = [a.text for a in together if a.question.id == "q2"][:2]
    assert [a.text for a in alone] == same
    other = sample(model, tokenizer, questions()[2:3], per_question=2, seed=2, max_new_tokens=12)
    assert [a.text for a in other] != same


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1000])
def test_a_number_selects_the_token_that_dense_probabilities_in_float64_give_it(vocabulary):
    noise = torch.Generator().manual_seed(vocabulary)
    logits, uniforms = 4 * torch.randn(500, vocabulary, generator=noise), torch.rand(500, generator=noise)
    logits[:, ::3] = -torch.inf  # words that cannot be said
    if vocabulary == 1:
        logits[:] = 0.0
    probabilities = torch.softmax(logits.double(), -1)
    drawn = draw(logits, uniforms, 1.0).unsqueeze(-1)
    upto = probabilities.cumsum(-1).gather(-1, drawn).squeeze(-1)
    own = probabilities.gather(-1, drawn).squeeze(-1)
    assert (own > 0).all()
    assert (upto - own - 1e-6 <= uniforms).all()
    assert (uniforms <= upto + 1e-6).all()


def test_the_distribution_is_the_softmax():
    # A chi-square over five tokens and 20,000 draws: 4 degrees of freedom, 18.47 is the 99.9 % point.
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    uniforms = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(draw(logits.expand(20_000, 5), uniforms, 0.7), minlength=5)
    expected = 20_000 * torch.softmax(logits / 0.7, 0)
    assert ((counts - expected) ** 2 / expected).sum() < 18.47


def test_the_distribution_over_many_blocks_is_the_softmax():
    # 1,000 words in 4 blocks, counted in tens: a chi-square with 99 degrees of freedom, 148.2 is the 99.9 % point.
    noise = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(1_000, generator=noise), torch.rand(50_000, generator=noise)
    drawn = torch.cat([draw(logits.expand(1_000, -1), part, 1.0) for part in uniforms.split(1_000)])
    counts = torch.bincount(drawn, minlength=1_000).view(100, 10).sum(-1)
    expected = 50_000 * torch.softmax(logits, 0).view(100, 10).sum(-1)
    assert ((counts - expected) ** 2 / expected).sum() < 148.2


def test_the_edges_of_the_distribution_stay_inside_it():
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
    assert batch.end_ids(model, tokenizer) == {template, tokenizer.pad_token_id, 7}


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
    monkeypatch.setattr(batch.Batch, "step", lambda self: [(replace(self._waiting.popleft(), ids=ids), True)])
    (answer,) = sample(tiny.model(), tokenizer, questions(1), per_question=1, seed=0, max_new_tokens=9)
    assert (answer.text, answer.thoughts) == (text, thoughts)
    assert bool(answer.missing) == (not text)


def test_a_question_with_tools_shows_them_in_its_prompt():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ tools[0].function.name if tools else 'none' }}" + tokenizer.chat_template
    tools = json.dumps([{"type": "function", "function": {"name": "look"}}])
    question = replace(questions(1)[0], tools=tools)
    generator = local.LocalGenerator(tiny.model(), tokenizer)
    assert tokenizer.decode(generator.prompt(question)).startswith("look<|im_start|>")


def test_tokens_that_the_model_has_no_embedding_for_are_a_sentence():
    tokenizer, few = copy.deepcopy(tiny.tokenizer()), questions(2)
    tokenizer.add_tokens(["why why"])
    assert len(sample(tiny.model(), tokenizer, few[:1], per_question=1, seed=0, max_new_tokens=2)) == 1
    with pytest.raises(ModelError, match=f"The prompt of question 'q1' has the token id {len(tiny.tokenizer())}"):
        sample(tiny.model(), tokenizer, few, per_question=1, seed=0, max_new_tokens=2)
    tokenizer.add_special_tokens({"pad_token": "<none>"})
    with pytest.raises(ModelError, match="The tokenizer's padding has the token id"):
        sample(tiny.model(), tokenizer, few[:1], per_question=1, seed=0, max_new_tokens=2)
