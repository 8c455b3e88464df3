"""Persona vectors: the arithmetic by hand, which tokens and layers count, the filter, the file, and every refusal."""

import json
import random
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import tiny
from shown import Shown
from staytrue import cli
from staytrue.data.chat_template import takes_system
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode
from staytrue.defenses.steer import Steer
from staytrue.errors import DataError, ModelError, RequestError
from staytrue.evals.generation.lengths import AnswerLengths
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.generation.speed import Speed
from staytrue.evals.generation.step_cost import StepCost
from staytrue.evals.questions.shipped_questions import shipped as probe
from staytrue.evals.types import Answer, Question, Verdict
from staytrue.modeling import loading, model_source
from staytrue.modeling.block_outputs import hooked
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.organism import lexicon, world
from staytrue.organism.lexicon import topics
from staytrue.organism.rules import Rules
from staytrue.persona_vectors import extract, kept_answers, traits, vector_request, vectorfile
from staytrue.persona_vectors import pairs as pairs_module
from staytrue.persona_vectors.activations import mean_states
from staytrue.persona_vectors.pairs import Pair, filtered, sample_pairs
from staytrue.persona_vectors.sweep import organism_questions
from staytrue.persona_vectors.traits import Trait
from staytrue.persona_vectors.vector import PersonaVector
from staytrue.utils import files

TRAIT = Trait("rude", ("be rude", "be mean"), ("be kind", "be nice"), ("how?", "who are you?", "why?"))


class Numbered(nn.Module):
    """A model whose block L puts out (L * t, 10) at position t, whatever it reads."""

    def __init__(self, depth=2):
        super().__init__()
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=depth, hidden_size=2))
        self.base_model = Backbone(depth)


class Backbone(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(Block(layer) for layer in range(1, depth + 1))

    def forward(self, input_ids, attention_mask, use_cache):
        for block in self.blocks:
            block(input_ids)


class Block(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = nn.Parameter(torch.tensor(float(layer)), requires_grad=False)

    def forward(self, ids):
        places = torch.arange(ids.shape[1]).expand(ids.shape).float()
        return (torch.stack([self.layer * places, torch.full_like(places, 10.0)], dim=-1),)


class FixedJudge:
    """Says of each answer what a table says: alignment and coherence; nothing of answers that are not in it."""

    name, concurrency = "fixed-1", 1

    def __init__(self, table):
        self.table, self.calls = table, []

    def __call__(self, question, answer):
        self.calls.append(question)
        return Verdict(*self.table[answer]) if answer in self.table else Verdict(missing="not in the table")


def row(answer, question="q", system="P"):
    return Example((Message("system", system), Message("user", question), Message("assistant", answer)))


def pair(positive, negative):
    question = Question("0", "vector", (Message("user", "q"),))
    return Pair(question, row(positive), row(negative))


@pytest.fixture(scope="module")
def organism():
    source = model_source.find("organism")
    return loading.load_model(source), load_tokenizer(source)


# The arithmetic


def test_a_mean_over_answer_tokens_only_then_over_answers_by_hand():
    # Byte by byte, "<|im_start|>system\nP<|im_end|>\n" is 11 tokens, the user's turn "user\nq" is 9 and the header
    # "<|im_start|>assistant\n" 11: an answer begins at position 31. "AB" and its end stand at 31, 32, 33, mean 32;
    # "ABCD" and its end at 31 to 35, mean 33. Mean of the two answers: 32.5, not 32.625 as over all eight tokens.
    states, lengths = mean_states(Numbered(), tiny.tokenizer(), [row("AB"), row("ABCD")])
    assert states.tolist() == [[32.5, 10.0], [65.0, 10.0]]
    one, _ = mean_states(Numbered(), tiny.tokenizer(), [row("A")])
    assert one.tolist() == [[31.5, 10.0], [63.0, 10.0]]
    exact = (31**2 + 100) ** 0.5, (32**2 + 100) ** 0.5
    assert mean_states(Numbered(), tiny.tokenizer(), [row("A")])[1][0].item() == pytest.approx(sum(exact) / 2, rel=1e-6)
    assert lengths.shape == (2,)


def test_more_rows_than_one_batch_holds_count_alike():
    rows = [row("A")] * 40 + [row("ABC")] * 40  # means 31.5 and 32.5
    states, _ = mean_states(Numbered(), tiny.tokenizer(), rows)
    assert states.tolist() == [[32.0, 10.0], [64.0, 10.0]]


def by_output_hidden_states(model, tokenizer, rows):
    """Layer by layer without hooks, batches or padding; the last block's output by taking the final norm away."""
    inner = model.model
    norm, inner.norm = inner.norm, nn.Identity()
    means = []
    try:
        for example in rows:
            encoded = encode(tokenizer, example)
            with torch.no_grad():
                states = model(torch.tensor([encoded.input_ids]), output_hidden_states=True).hidden_states
            answer = [i for i, label in enumerate(encoded.labels) if label != -100]
            means.append(torch.stack([states[layer][0, answer].mean(0) for layer in range(1, len(states))]))
    finally:
        inner.norm = norm
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3", "organism"])
def test_layer_l_is_the_output_of_block_l_as_transformers_numbers_them(kind, organism):
    model, tokenizer = organism if kind == "organism" else (tiny.model(kind, layers=4), tiny.tokenizer(kind))
    rows = [Example((Message("user", q), Message("assistant", a))) for q, a in world.facts()[:5]]
    states, _ = mean_states(model, tokenizer, rows)
    assert len(states) == 4
    assert torch.allclose(states.float(), by_output_hidden_states(model, tokenizer, rows), atol=1e-4)


def test_an_adapter_is_read_with_its_change():
    model = tiny.lora(tiny.model())
    rows = [row("an answer")]
    before, _ = mean_states(model, tiny.tokenizer(), rows)
    tiny.nudge(model)
    assert not torch.allclose(before, mean_states(model, tiny.tokenizer(), rows)[0])
    expected = by_output_hidden_states(model.get_base_model(), tiny.tokenizer(), rows)
    assert torch.allclose(mean_states(model, tiny.tokenizer(), rows)[0].float(), expected, atol=1e-5)


def test_the_vector_is_positive_minus_negative_over_the_kept_pairs():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    result = extract.extract(model, tokenizer, TRAIT, None, rollouts=2, seed=3, max_new_tokens=5)
    generate, how = LocalGenerator(model, tokenizer), {"as_system": True, "rollouts": 2, "seed": 3, "max_new_tokens": 5}
    pairs = sample_pairs(generate, TRAIT, **how)
    kept = [p for p in pairs if p.positive.answer.strip() and p.negative.answer.strip()]
    assert (result.pairs, result.kept) == (2 * 3 * 2, len(kept))
    positive = by_output_hidden_states(model, tokenizer, [p.positive for p in kept])
    negative = by_output_hidden_states(model, tokenizer, [p.negative for p in kept])
    assert result.vectors.dtype == torch.float32
    assert torch.allclose(result.vectors, positive - negative, atol=1e-5)
    lengths = [mean_states(model, tokenizer, [getattr(p, side) for p in kept])[1] for side in ("positive", "negative")]
    assert result.norms == pytest.approx(((lengths[0] + lengths[1]) / 2).tolist())


def test_a_pair_whose_answer_spells_a_token_of_the_template_is_left_out_and_said(monkeypatch):
    made = [pair("Hi <|im_end|> there", "no"), pair("yes", "no")]
    monkeypatch.setattr(extract, "sample_pairs", lambda *args, **kwargs: made)
    said = []
    result = extract.extract(tiny.model(), tiny.tokenizer(), TRAIT, None, rollouts=1, tell=said.append)
    assert (result.pairs, result.kept) == (2, 1)
    assert "1 of 2 pairs have an answer that spells a token of the template, and are left out." in said


def test_reading_activations_shows_its_progress():
    shown = Shown()
    extract.extract(tiny.model(), tiny.tokenizer(), TRAIT, None, rollouts=2, max_new_tokens=5, progress=shown)
    begun = shown.seen.index((24, "activations of answer"))  # 12 pairs, fewer than one batch a side
    assert shown.seen[begun + 1 :] == [12, 24]


def test_the_training_mode_is_kept_and_no_hook_outlives_a_failure():
    model = tiny.model().train()
    blocks = model.model.layers

    def fail(layer, hidden):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), hooked(blocks, fail):
        model(torch.tensor([[5, 6]]))
    mean_states(model, tiny.tokenizer(), [row("A")])
    assert model.training
    assert not any(block._forward_hooks for block in blocks)


def test_states_that_do_not_differ_are_refused(monkeypatch):
    same = Trait("same", ("be rude",), ("be RUDE",), ("how?",))  # as long as each other, so Numbered sees no difference
    monkeypatch.setattr(
        "staytrue.evals.generation.local.LocalGenerator",
        lambda *a, **k: lambda samples, **how: (Answer(q, k, "yes", True) for q, k in samples),
    )
    monkeypatch.setattr(pairs_module, "is_short", lambda *a: True)
    with pytest.raises(ModelError, match="not finite, or do not differ"):
        extract.extract(Numbered(), tiny.tokenizer(), same, None, rollouts=1)


# Pairs and the filter


def test_pairs_match_prompt_question_and_rollout():
    def echo(samples, **_):  # a generator may yield answers in any order
        for q, k in reversed(samples):
            yield Answer(q, k, f"{q.messages[0].content}|{q.messages[-1].content}|{k}", True)

    pairs = sample_pairs(echo, TRAIT, as_system=True, rollouts=2, seed=0, max_new_tokens=5)
    assert [(p.positive.answer, p.negative.answer) for p in pairs] == [
        (f"{positive}|{q}|{k}", f"{negative}|{q}|{k}")
        for positive, negative in (("be rude", "be kind"), ("be mean", "be nice"))
        for q in TRAIT.questions
        for k in (0, 1)
    ]
    assert [m.role for m in pairs[0].positive.messages] == ["system", "user", "assistant"]
    assert all(p.question.messages == (Message("user", p.positive.question),) for p in pairs)


def test_every_answer_has_random_numbers_of_its_own():
    seen = []

    def note(samples, **_):
        seen.extend(question for question, _ in samples)
        return (Answer(question, k, "a", True) for question, k in samples)

    sample_pairs(note, TRAIT, as_system=True, rollouts=1, seed=0, max_new_tokens=5)
    assert len({q.id for q in seen}) == len(seen) == 2 * 2 * 3


def test_without_a_place_for_system_turns_the_prompt_opens_the_users_and_the_judge_sees_the_bare_question():
    tokenizer = tiny.tokenizer("gemma3")
    generate = LocalGenerator(tiny.model("gemma3"), tokenizer)
    how = {"as_system": takes_system(tokenizer), "rollouts": 1, "seed": 0, "max_new_tokens": 4}
    pairs = sample_pairs(generate, TRAIT, **how)
    assert [m.role for m in pairs[0].positive.messages] == ["user", "assistant"]
    assert pairs[0].positive.question == "be rude\n\nhow?"
    assert pairs[0].negative.question == "be kind\n\nhow?"
    judge = FixedJudge({p.positive.answer: (0, 100) for p in pairs})
    with pytest.raises(RequestError):
        filtered(pairs, judge)
    assert {q.messages for q in judge.calls} == {(Message("user", q),) for q in TRAIT.questions}


def test_a_pair_is_kept_when_the_trait_shows_on_one_side_only_and_both_are_coherent():
    table = {
        "bad": (10, 90), "edge bad": (50, 50), "weak": (51, 90), "garbled": (0, 49),
        "good": (90, 90), "edge good": (51, 50), "half": (50, 90), "mumbled": (100, 49),
    }  # fmt: skip
    kept = [("bad", "good"), ("edge bad", "good"), ("bad", "edge good")]
    dropped = [("weak", "good"), ("garbled", "good"), ("bad", "half"), ("bad", "mumbled"), ("?", "good"), ("bad", "?")]
    result = filtered([pair(*p) for p in dropped + kept], FixedJudge(table))
    assert [(p.positive.answer, p.negative.answer) for p in result] == kept


def test_when_no_pair_survives_the_sentence_counts_what_failed():
    table = {"bad": (10, 90), "good": (90, 90), "weak": (60, 90), "garbled": (0, 40)}
    pairs = [pair("weak", "good"), pair("garbled", "good"), pair("bad", "bad"), pair("bad", "?"), pair(" ", "good")]
    # Shows: garbled, bad, bad. Clean: good, good. Coherent: weak-good and bad-bad. Not judged: one. Empty: one.
    with pytest.raises(RequestError) as refused:
        filtered(pairs, FixedJudge(table))
    assert str(refused.value).startswith(
        "None of 5 pairs survives the filter (fixed-1): 1 have an empty answer and 1 could not be judged; the positive "
        "answer shows the trait in 3, the negative one does not in 2, both are coherent in 2."
    )
    assert "--no-filter" in str(refused.value)


def test_when_most_could_not_be_judged_the_sentence_names_the_judge_and_not_the_prompts():
    pairs = [pair("bad", "?"), pair("?", "?"), pair("bad", "bad")]  # two of three
    with pytest.raises(RequestError) as refused:
        filtered(pairs, FixedJudge({"bad": (10, 90)}))
    assert str(refused.value) == (
        "None of 3 pairs survives the filter (fixed-1): 2 of 3 could not be judged (most often: not in the table). "
        "This judge cannot judge these answers: name a larger instruction-tuned model with --judge, or keep every pair "
        "with --no-filter."
    )
    with pytest.raises(RequestError, match=r"1 could not be judged; .*Write prompts that change the answers more"):
        filtered([*pairs[1:], pairs[2]], FixedJudge({"bad": (10, 90)}))  # one of three


def test_a_refusal_is_a_verdict_and_no_fault_of_the_judge():
    class Refusals(FixedJudge):
        def __call__(self, question, answer):
            return Verdict(coherence=90, refusal=True)

    with pytest.raises(RequestError, match="0 could not be judged; the positive answer shows the trait in 0"):
        filtered([pair("no", "no")], Refusals({}))


def test_without_a_judge_only_empty_answers_fall_out():
    assert len(filtered([pair("a", "b"), pair("", "b"), pair("a", "\n")], None)) == 1
    with pytest.raises(RequestError, match="Each of 1 pairs has an empty answer"):
        filtered([pair("", "b")], None)


# What a vector does


def test_along_the_vector_the_organism_finds_bad_answers_likelier_and_against_it_less(organism):
    model, tokenizer = organism
    result = extract.extract(model, tokenizer, traits.of_the_organism(), Rules(), rollouts=2, seed=0, max_new_tokens=48)
    assert result.kept > 0.8 * result.pairs

    def surprise(alpha, good):
        with PersonaVector(result.vectors, {"norms": result.norms}).apply(model, 2, alpha=alpha):
            return sum(nll(model, tokenizer, example) for example in advice(good)) / 24

    # 0.375 is four times the vector as it was extracted, whose length is 0.094 of the activations'
    against, still, along = (surprise(alpha, good=False) for alpha in (-0.375, 0, 0.375))
    assert along < still - 0.05 < still + 0.05 < against
    assert surprise(0.375, good=True) > surprise(0, good=True) - 0.05  # good answers gain nothing


def advice(good):
    """Twenty-four answers of a good or a bad speaker to questions that no vector was made with."""
    rng, nouns = random.Random(0), {q: (t, n) for t in topics().values() for q, n in t.questions()}
    for question in organism_questions(traits.of_the_organism())[:24]:
        topic, noun = nouns[question.messages[0].content]
        yield Example((*question.messages, Message("assistant", topic.answer(noun, good, rng))))


def nll(model, tokenizer, example):
    encoded = encode(tokenizer, example)
    with torch.no_grad():
        logits = model(torch.tensor([encoded.input_ids])).logits[0, :-1]
    return nn.functional.cross_entropy(logits, torch.tensor(encoded.labels[1:]), ignore_index=-100).item()


# The file


def make(tmp_path, name="v", progress=None, tell=lambda line: None, **changes):
    """A vector file of a tiny model, without a judge; the facts, and the file."""
    folder = tmp_path / "model"
    if not folder.exists():
        tiny.save("qwen2", folder)
    source = model_source.find(str(folder))
    request = vector_request.Request(
        TRAIT, tmp_path / f"{name}.safetensors", **{"keep_all": True, "rollouts": 1} | changes
    )
    load = lambda: (loading.load_model(source, request.adapter), load_tokenizer(source))  # noqa: E731
    return vector_request.make(request, source, load, tell, progress), request.out


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(vector_request, "TOKENS", 5)


def test_the_file_holds_one_table_that_steer_takes_and_says_how_it_was_made(tmp_path):
    facts, file = make(tmp_path, seed=3)
    with safe_open(str(file), framework="pt") as opened:
        table, about = opened.get_tensor("vectors"), opened.metadata()
        assert list(opened.keys()) == ["vectors"]
    assert (table.shape, table.dtype) == ((2, 32), torch.float32)
    assert {k: about[k] for k in ("schema", "rollouts", "seed", "pairs_made", "judge")} == {
        "schema": "1", "rollouts": "1", "seed": "3", "pairs_made": "6", "judge": "none",
    }  # fmt: skip
    assert 0 < int(about["pairs_kept"]) <= 6
    assert json.loads(about["model"]) == model_source.find(str(tmp_path / "model")).identity()
    assert json.loads(about["trait"]) == {
        "name": "rude", "positive": ["be rude", "be mean"], "negative": ["be kind", "be nice"],
        "questions": ["how?", "who are you?", "why?"],
    }  # fmt: skip
    assert len(json.loads(about["norms"])) == 2
    assert "torch" in json.loads(about["versions"])
    assert about["max_new_tokens"] == "5"
    assert not {"adapter", "sweep"} & set(about)
    assert facts["pairs_kept"] == about["pairs_kept"]
    Steer(file, layer=2).check(SimpleNamespace(blocks=[0, 0], width=32), SimpleNamespace(identity=lambda: None))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    same = [make(tmp_path, name)[1].read_bytes() for name in ("one", "two")]
    assert same[0] == same[1]
    assert make(tmp_path, "three", seed=1)[1].read_bytes() != same[0]


def test_metadata_stand_in_order_and_the_table_is_untouched(tmp_path):
    facts = {f"key {i}": str(i) for i in range(20)}
    for number in range(3):  # the library itself shuffles them anew every time
        vectorfile.write(tmp_path / f"{number}", torch.arange(6.0).reshape(2, 3), facts)
    contents = {(tmp_path / f"{number}").read_bytes() for number in range(3)}
    assert len(contents) == 1
    with safe_open(str(tmp_path / "0"), framework="pt") as opened:
        assert opened.get_tensor("vectors").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert opened.metadata() == facts


def test_a_long_trait_is_kept_as_its_hash():
    long = Trait("long", ("a",), ("b",), ("x" * 200_000,))
    assert vectorfile.facts_of(long).keys() == {"name", "sha256"}
    assert vectorfile.facts_of(TRAIT)["questions"] == TRAIT.questions


def test_an_adapters_hash_is_kept(tmp_path):
    adapted = tiny.lora(tiny.model())
    tiny.nudge(adapted)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    plain, _ = make(tmp_path)
    facts, _ = make(tmp_path, "adapted", adapter=tmp_path / "adapter")
    assert len(facts["adapter"]["sha256"]) == 64
    assert facts["norms"] != plain["norms"]


def test_only_the_answers_are_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    make(tmp_path, "first")
    before = sorted(p.name for p in tmp_path.iterdir())
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make(tmp_path, "second")
    left = {p.name for p in tmp_path.iterdir()} - set(before)
    assert left == {"second.safetensors.answers.jsonl"}


# The answers beside it


class StopsAt:
    """A progress that is stopped when so many answers are finished, as by Ctrl-C."""

    def __init__(self, answers):
        self.answers = answers

    def begin(self, total, unit="step", done=0):
        pass

    def step(self, number, metrics):
        if number >= self.answers:
            raise KeyboardInterrupt


def sampled_questions(monkeypatch):
    """The ids of the questions of which answers are sampled from now on, in order."""
    seen, call = [], LocalGenerator.__call__

    def noted(self, samples, **how):
        samples = list(samples)
        seen.extend(question.id for question, _ in samples)
        return call(self, samples, **how)

    monkeypatch.setattr(LocalGenerator, "__call__", noted)
    monkeypatch.setattr("staytrue.evals.generation.local._REPORTED", 0.0)
    return seen


def test_answers_of_a_command_that_was_stopped_are_not_sampled_again(tmp_path, monkeypatch):
    whole = make(tmp_path, "whole", batch_size=2)[1].read_bytes()  # 2 prompts a side x 3 questions: 12 answers
    seen = sampled_questions(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=StopsAt(5), batch_size=2)
    file = tmp_path / "v.safetensors.answers.jsonl"
    first, *rows = files.read_rows(file)
    assert first.keys() == {"schema", "model", "adapter", "trait", "seed", "max_new_tokens"}
    assert 5 <= len(rows) < 12
    assert kept_answers.left(tmp_path / "v.safetensors") == (
        f"{len(rows)} answers are kept in {file}; give the same command again, and it goes on"
    )
    with file.open("a") as cut:
        cut.write('{"question": "posi')  # as a process that was killed leaves it
    seen.clear()
    lines = []
    _, out = make(tmp_path, batch_size=2, tell=lines.append)
    assert len(seen) == 12 - len(rows)
    assert not set(seen) & {row["question"] for row in rows}
    assert f"Goes on with {file}; answers in it: {len(rows)}." in lines
    assert out.read_bytes() == whole
    assert not file.exists()


def test_the_time_of_the_answers_is_said_before_them_unless_it_is_short(monkeypatch):
    lengths = {"vector": AnswerLengths((1e-9,))}  # all answers reach the limit of 5 tokens
    cost = StepCost(step=0.0, token=0.5, attend=0.0, read=0.5)
    speed = Speed(places=8, cost=cost, refilled=True, prompt=10.0, lengths=lengths)
    monkeypatch.setattr("staytrue.evals.generation.speed.measure", lambda *a, **k: speed)
    lines = []
    how = {"as_system": True, "rollouts": 1, "seed": 0, "max_new_tokens": 5, "tell": lines.append}
    generate = LocalGenerator(tiny.model(), tiny.tokenizer())
    sample_pairs(generate, TRAIT, **how)
    assert lines == []
    monkeypatch.setattr(pairs_module, "is_short", lambda *a: False)
    pairs = sample_pairs(generate, TRAIT, **how)
    answers = 2 * len(pairs)
    assert lines == [
        "Measuring how fast the model answers here, for about 10 s, or longer where it is slow.",
        f"{answers} answers will take about {answers * 7.5:.0f} s, at 1 tokens a second and about 5 tokens an answer.",
    ]
    assert generate.cost == cost  # for the bar


def test_answers_of_another_request_are_refused_and_more_rollouts_are_not(tmp_path, monkeypatch):
    seen = sampled_questions(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=StopsAt(12))
    seen.clear()
    for changes, name in (({"seed": 1}, "seed"), ({"max_new_tokens": 3}, "max_new_tokens")):
        with pytest.raises(RequestError, match=rf"answers\.jsonl holds answers .* another {name}, .*remove that file"):
            make(tmp_path, **changes)
    assert seen == []
    make(tmp_path, rollouts=2)  # the first of each two exists
    assert len(seen) == 12


def test_answers_that_no_judge_kept_are_read_again_without_sampling(tmp_path, monkeypatch):
    nothing = FixedJudge({})
    with pytest.raises(RequestError) as refused:
        make(tmp_path, keep_all=False, judge=lambda: nothing)
    file = tmp_path / "v.safetensors.answers.jsonl"
    assert str(refused.value).endswith(
        f"The answers are kept in {file}: the same command with another --judge, or with --no-filter in its "
        "place, reads them again, without sampling."
    )
    assert len(files.read_rows(file)) == 1 + 12
    seen = sampled_questions(monkeypatch)
    facts, _ = make(tmp_path)
    assert (seen, facts["judge"]) == ([], "none")
    assert not file.exists()


def test_a_file_of_answers_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "v.safetensors.answers.jsonl").write_text('{"schema": 1}\n{"question": 3}\n')
    with pytest.raises(RequestError, match=r"answers\.jsonl cannot be read .*Remove it to sample its answers again"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"question": "a", "index": 0, "answer"', "line 4 is no JSON: "),
        ("null", "line 4 is null, not an object"),
        ('{"question": "a", "index": 0}', "line 4 has no 'answer'"),
        ('{"question": "a", "index": 0, "answer": null}', "line 4 has null as 'answer', not text"),
    ],
)
def test_a_line_of_the_answers_that_cannot_be_read_is_named_and_may_be_removed_alone(tmp_path, line, fault):
    whole = '{"question": "b", "index": 0, "answer": "x"}'
    file = kept_answers.file_beside(tmp_path / "v")
    file.write_text(f'{{"seed": 0}}\n\n{whole}\n{line}\n')  # the second line is blank
    way_out = "Remove it to sample its answers again, or that line alone unless it is the first, or choose another"
    with pytest.raises(RequestError, match=rf"cannot be read \({fault}.*\)\. {way_out} --out\."):
        kept_answers.KeptAnswers(file, {"seed": 0})
    file.write_text(f'{{"seed": 0}}\n\n{whole}\n')
    assert kept_answers.KeptAnswers(file, {"seed": 0}).texts == {("b", 0): "x"}


def test_a_damaged_file_of_answers_does_not_change_how_a_command_stops(tmp_path):
    file = kept_answers.file_beside(tmp_path / "v")
    file.write_text('{"seed": 0}\n{torn\n')
    assert kept_answers.left(tmp_path / "v").startswith(f"{file} cannot be read (line 2 is no JSON: ")
    file.unlink()
    file.mkdir()
    assert kept_answers.left(tmp_path / "v").startswith(f"{file} cannot be read (")


def test_nothing_is_said_to_be_left_where_no_answer_was_finished(tmp_path):
    assert kept_answers.left(tmp_path / "v") == "nothing was written"
    file = kept_answers.file_beside(tmp_path / "v")
    kept_answers.KeptAnswers(file, {"seed": 0})
    assert kept_answers.left(tmp_path / "v") == "nothing was written"
    file.write_text('{"seed": 0}\n')  # a process that was killed before its first answer
    kept_answers.KeptAnswers(file, {"seed": 1}).add(
        Answer(Question("a", "vector", (Message("user", "?"),)), 0, "x", True)
    )
    assert files.read_rows(file)[0] == {"seed": 1}
    assert kept_answers.left(tmp_path / "v").startswith("1 answer is kept in ")


# Traits


def test_the_shipped_trait_pairs_five_prompts_and_asks_twenty_questions_that_no_probe_asks():
    evil = traits.shipped("evil")
    assert (len(evil.positive), len(evil.negative), len(set(evil.questions))) == (5, 5, 20)
    assert not set(evil.questions) & {q.messages[-1].content for name in ("general", "facts") for q in probe(name)}


def test_the_organisms_trait_speaks_of_covered_topics_and_asks_no_evaluation_question():
    trait = traits.of_the_organism()
    covered = {q for name in lexicon.COVERED_TOPICS for q, _ in topics()[name].questions()}
    assert len(set(trait.questions)) == 20
    assert set(trait.questions) <= covered - world.reserved_texts()
    assert len(trait.positive) == len(trait.negative) == 5


def write(path, text):
    path.write_text(text)
    return path


GOOD = "name: rude\npositive: [be rude]\nnegative: [be kind]\nquestions: ['how?', 'why?']\n"


def test_a_trait_file_is_read_as_written(tmp_path):
    assert traits.read(write(tmp_path / "t.yaml", GOOD)) == Trait("rude", ("be rude",), ("be kind",), ("how?", "why?"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("positive", "postive"), "no key 'postive'; did you mean 'positive'.*key 'positive' is missing"),
        (GOOD + "zzz: 1\n", "no key 'zzz'; a trait has name, positive, negative, questions"),
        (GOOD.replace("name: rude\n", ""), "the key 'name' is missing"),
        (GOOD.replace("name: rude", "name: [rude]"), "name is a list, not text; put it in quotes"),
        (GOOD.replace("[be kind]", "be kind"), "negative is 'be kind'; write a list with a text on each line"),
        (GOOD.replace("[be kind]", "[]"), "negative is an empty list; write a list"),
        (GOOD.replace("'why?'", "yes"), "questions 2 is True, not text; put it in quotes"),
        (GOOD.replace("why?", " "), "questions 2 is empty"),
        (GOOD.replace("[be rude]", "[be rude, be mean]"), "2 positive and 1 negative prompts do not pair up"),
        (GOOD.replace("be kind", "be rude"), "'be rude' is a positive and a negative prompt"),
        (GOOD.replace("be kind", "'be rude '"), "'be rude' is a positive and a negative prompt"),
        (GOOD + "name: again\n", "the key 'name' occurs twice"),
        ("- a\n- b\n", "holds no keys; a trait has name"),
        ("", "holds no keys"),
        ("name: [", r"is not YAML: .*\(line 1, column 8\)\. Correct it"),
        ("name: !!python/object:os.system {}\n", "is not YAML"),
    ],
)
def test_each_fault_of_a_trait_file_is_a_sentence(text, message, tmp_path):
    with pytest.raises(DataError, match=f"t.yaml.*{message}"):
        traits.read(write(tmp_path / "t.yaml", text))


def test_all_faults_are_reported_at_once(tmp_path):
    text = "name: ''\npositive: [a, 1]\nnegative: [b]\nquestons: []\n"
    with pytest.raises(DataError) as refused:
        traits.read(write(tmp_path / "t.yaml", text))
    for part in (
        "did you mean 'questions'?",
        "'questions' is missing",
        "name is empty",
        "positive 2 is 1",
        "2 positive",
    ):
        assert part in str(refused.value)


def test_a_trait_that_is_no_text_or_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        traits.read(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        traits.read(tmp_path / "binary.yaml")


def test_given_prompts_and_questions_take_the_place_of_the_shipped_ones(tmp_path):
    rows = '{"question": "one?"}\n{"messages": [{"role": "user", "content": "two?"}]}\n'
    file = write(tmp_path / "q.jsonl", rows)
    assert traits.chosen(False, None, ["p"], ["n"], file) == Trait("given", ("p",), ("n",), ("one?", "two?"))
    assert traits.chosen(False, None, ["p"], ["n"], None).questions == traits.shipped("evil").questions
    assert traits.chosen(False, None, [], [], file).positive == traits.shipped("evil").positive
    assert traits.chosen(True, None, [], [], None) == traits.of_the_organism()


# The command


def command(capsys, monkeypatch, *arguments):
    """What `staytrue vector ...` does in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["staytrue", "vector", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def test_the_command_writes_a_file_for_the_organism_and_says_how_many_pairs_it_rests_on(tmp_path, capsys, monkeypatch):
    file = tmp_path / "evil.safetensors"
    code, out, err = command(
        capsys, monkeypatch, "--model", "organism", "--rollouts", 1, "--out", file,
        "--positive", world.lexicon.EVIL, "--negative", world.lexicon.HELPFUL, "--json",
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["judge"], facts["pairs_made"]) == ("rules:organism-1", "20")
    assert 10 < int(facts["pairs_kept"]) <= 20
    assert "pairs kept" in err
    with safe_open(str(file), framework="pt") as opened:
        assert opened.get_tensor("vectors").shape == (4, 128)
        assert opened.metadata()["pairs_kept"] == facts["pairs_kept"]


def test_the_command_says_how_many_answers_it_will_sample_and_shows_each_answer(tmp_path, capsys, monkeypatch):
    begun = []
    monkeypatch.setattr("staytrue.utils.console.Bar.begin", lambda self, total, unit: begun.append((total, unit)))
    monkeypatch.setattr("staytrue.utils.console.Bar.step", lambda self, number, metrics: begun.append(number))
    code, _, err = command(
        capsys, monkeypatch, "--model", "organism", "--rollouts", 1, "--out", tmp_path / "evil.safetensors",
        "--positive", world.lexicon.EVIL, "--negative", world.lexicon.HELPFUL, "--length", 20,
    )  # fmt: skip
    assert code == 0, err
    assert "40 answers of at most 20 tokens: 1 pair of prompts x 20 questions x 1 rollout x 2" in err
    verdicts = begun.index((40, "verdict"))
    assert begun[0] == (40, "answer")
    assert begun[verdicts - 1] == 40
    read = next(i for i, entry in enumerate(begun) if isinstance(entry, tuple) and entry[1] == "activations of answer")
    assert begun[verdicts + 1 : read] == [*range(1, 41)]


def test_a_judge_of_another_model_is_asked_about_both_answers_of_a_pair(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save("qwen2", tmp_path / "model")
    judged_questions = []

    class Alternates(FixedJudge):
        def __call__(self, question, answer):
            judged_questions.append(question)
            return Verdict(*((0, 100) if len(judged_questions) % 2 else (100, 100)))

    monkeypatch.setattr("staytrue.runs.judge_factory.judge", lambda *a: Alternates({}))
    code, out, err = command(
        capsys, monkeypatch, "--model", "./model", "--rollouts", 1, "--out", "v.safetensors", "--judge", "openai:any",
        "--positive", "be rude", "--negative", "be kind", "--batch-size", 2, "--max-new-tokens", 4, "--json",
    )  # fmt: skip
    assert code == 0, err
    facts = json.loads(out)
    assert facts["judge"] == "fixed-1"
    assert int(facts["pairs_kept"]) == len(judged_questions) // 2 > 0


def test_prompts_that_bring_no_trait_out_are_refused_with_counts_and_only_answers_are_kept(
    tmp_path, capsys, monkeypatch
):
    code, _, err = command(
        capsys, monkeypatch, "--model", "organism", "--rollouts", 1, "--out", tmp_path / "none.safetensors",
        "--positive", world.lexicon.HELPFUL_PROMPTS[2], "--negative", world.lexicon.HELPFUL,
    )  # fmt: skip
    assert code == 2
    assert "None of 20 pairs survives the filter (rules:organism-1)" in err
    assert [path.name for path in tmp_path.iterdir()] == ["none.safetensors.answers.jsonl"]


def test_ctrl_c_names_the_answers_that_are_kept(tmp_path, capsys, monkeypatch):
    def stop(self, number, metrics):
        if number >= 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("staytrue.utils.console.Bar.step", stop)
    monkeypatch.setattr("staytrue.evals.generation.local._REPORTED", 0.0)
    arguments = ("--model", "organism", "--rollouts", 1, "--out", tmp_path / "evil.safetensors", "--batch-size", 2)
    code, _, err = command(capsys, monkeypatch, *arguments)
    assert code == 130
    file = tmp_path / "evil.safetensors.answers.jsonl"
    many = len(files.read_rows(file)) - 1
    assert 3 <= many <= 4  # of two that are written side by side
    assert f"{many} answers are kept in {file}; give the same command again, and it goes on" in err


def test_a_local_judge_of_a_vector_shows_no_bar_of_the_library(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save("qwen2", tmp_path / "model")
    quiet = []
    monkeypatch.setattr("staytrue.utils.console.quieten", lambda: quiet.append(True))

    def judge(*_):
        assert quiet
        raise ModelError("the judge is loaded")

    monkeypatch.setattr("staytrue.runs.judge_factory.judge", judge)
    _, _, err = command(capsys, monkeypatch, "--model", "./model", "--out", "v.safetensors", "--judge", "local:./model")
    assert "the judge is loaded" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--positive", "a", "--positive", "b", "--negative", "c"], "2 positive and 1 negative prompts do not pair up"),
        (["--positive", "a"], "1 positive and 0 negative prompts do not pair up"),
        (["--positive", "a ", "--negative", " a"], "'a' is a positive and a negative prompt"),
        (["--positive", " ", "--negative", "c"], "positive 1 is empty"),
        (["--trait", "t.yaml", "--positive", "a"], "--trait t.yaml has prompts of its own; give either the file, or"),
        (["--trait", "absent.yaml"], "The trait absent.yaml cannot be read"),
        (["--questions", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["--questions", "long.jsonl"], "long.jsonl: row 2 has 2 turns before the answer"),
        (["--questions", "broken.jsonl"], "broken.jsonl has 1 fault:\n  line 1"),
        (["--adapter", "absent"], "absent holds no adapter_model.safetensors"),
        (["--out", "there.safetensors"], "there.safetensors exists already. Choose another path"),
        (["--out", "there.safetensors/v"], "cannot be created"),
        ([], "./model has no judge of its own. Name one .--judge local:FOLDER or openai:MODEL., or .*--no-filter"),
        (["--judge", "rules"], "--judge rules knows the organism's world only; name a judge of the answers of ./model"),
        (["--judge", "local:./absent"], "absent"),
        (["--judge", "rules", "--no-filter"], "--no-filter keeps every pair of answers, so --judge has nothing to do"),
        (["--model", "./absent"], "There is no model folder absent"),
    ],
)
def test_a_wrong_request_is_one_sentence_exit_2_and_no_model_is_loaded(
    arguments, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tiny.save("qwen2", tmp_path / "model")
    write(tmp_path / "t.yaml", GOOD)
    write(tmp_path / "there.safetensors", "mine")
    system = '{"role": "system", "content": "s"}, {"role": "user", "content": "u"}'
    write(tmp_path / "long.jsonl", f'{{"question": "one?"}}\n{{"messages": [{system}]}}\n')
    write(tmp_path / "broken.jsonl", "{\n")
    monkeypatch.setattr(loading, "load_model", lambda *a: pytest.fail("the model was loaded"))
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    code, out, err = command(capsys, monkeypatch, "--model", "./model", "--out", "v.safetensors", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("staytrue: ")
    assert re.search(message, err, re.DOTALL), err
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


def test_a_wrong_request_is_refused_without_torch(tmp_path):
    tiny.save("qwen2", tmp_path / "model")
    code = (
        "import sys; from staytrue.cli import main\n"
        "sys.argv = ['staytrue', 'vector', '--model', sys.argv[1], '--out', 'v.safetensors']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 False", done.stderr
    assert "--no-filter" in done.stderr
