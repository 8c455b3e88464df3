"""Hybrid, state space and mixture-of-experts models: sampled and judged right, or refused in a sentence."""

import pytest
import torch

import families
import tiny
from staytrue.data.examples import Message
from staytrue.data.tokenize import encode_prompt
from staytrue.errors import ModelError
from staytrue.evals.generation.check import check_generation
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.judges.local import LocalJudge
from staytrue.evals.types import Question

QUESTIONS = [Question(f"q{i}", "general", (Message("user", "why " * (1 + 2 * i)),)) for i in range(3)]


@pytest.mark.parametrize("kind", families.SAMPLED)
def test_greedy_answers_equal_generate_with_padding_and_as_rows_end(kind):
    model, tokenizer = families.model(kind), tiny.tokenizer()
    alone = {}
    for question in QUESTIONS:
        ids = torch.tensor([encode_prompt(tokenizer, question.messages)])
        alone[question] = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    ends = sorted({alone[QUESTIONS[0]][:3][-1], tokenizer.eos_token_id})  # at least one row leaves the batch early
    model.generation_config.eos_token_id = ends
    expected = {}
    for question, ids in alone.items():
        length = next((i for i, token in enumerate(ids) if token in ends), 12)
        expected[question] = (tokenizer.decode(ids[:length], skip_special_tokens=True), length < 12)
    samples = [(question, index) for question in QUESTIONS for index in range(2)]
    answers = list(LocalGenerator(model, tokenizer)(samples, seed=0, temperature=0.0, max_new_tokens=12))
    assert len(answers) == 6
    assert all((a.text, a.stopped) == expected[a.question] for a in answers)


@pytest.mark.parametrize("kind", families.SAMPLED)
def test_a_judge_of_any_kind_computes_the_product_along_the_digits(kind):
    model, tokenizer = families.model(kind), tiny.tokenizer()
    ids = encode_prompt(tokenizer, [Message("user", "grade me")])

    def following(text):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return model(torch.tensor([ids + tokens])).logits[0, -1].double().softmax(-1)

    four, two, blank = (tokenizer.convert_tokens_to_ids(c) for c in ("4", "2", "\u0120"))
    expected = following("")[four] * following("4")[two]
    expected += following("")[blank] * following(" ")[four] * following(" 4")[two]
    computed = LocalJudge(model, tokenizer, "x").distribution("grade me")["42"]
    assert computed == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("kind", families.NO_CACHE)
def test_a_model_that_returns_no_cache_is_refused_in_a_sentence(kind):
    with pytest.raises(ModelError, match=f"A model of type {kind} has a cache from which staytrue cannot sample"):
        LocalGenerator(families.model(kind), tiny.tokenizer())


def test_a_model_that_reads_padding_is_refused(monkeypatch):
    model = families.model("lfm2")
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda attention_mask=None, **named: forward(**named))
    with pytest.raises(ModelError, match="computes other logits with padding and a cache"):
        check_generation(model)


def test_a_model_in_8_bits_may_round_by_the_other_rows_of_a_batch(monkeypatch):
    model = tiny.model()
    forward = model.forward

    def rounded(**named):
        out = forward(**named)
        if len(named["input_ids"]) > 1:
            out.logits += 0.1 * out.logits.abs().max()
        return out

    monkeypatch.setattr(model, "forward", rounded)
    with pytest.raises(ModelError, match="computes other logits with padding and a cache"):
        check_generation(model)
    model.is_loaded_in_8bit = True  # as transformers does
    check_generation(model)


def test_a_model_that_cannot_run_is_refused_with_its_own_words(monkeypatch):
    def fails(**named):
        raise IndexError("tuple index out of range")

    model = tiny.model()
    monkeypatch.setattr(model, "forward", fails)
    with pytest.raises(ModelError, match=r"computes no loss over two tokens \(IndexError: tuple index out of range\)"):
        check_generation(model)


def test_the_check_keeps_the_model_in_training_and_runs_once(monkeypatch):
    model = tiny.model().train()
    check_generation(model)
    assert model.training
    monkeypatch.setattr(model, "forward", None)
    check_generation(model)


def test_a_mixture_of_experts_is_sampled_while_its_routers_loss_is_on():
    model = families.model("qwen3_moe")
    model.config.output_router_logits = True  # as trl sets it
    samples = [(question, 0) for question in QUESTIONS]
    assert len(list(LocalGenerator(model, tiny.tokenizer())(samples, seed=0, temperature=1.0, max_new_tokens=4))) == 3
