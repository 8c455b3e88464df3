"""Anchor: its own rows and nothing else, by hand on three tokens and two layers; whose answers, and which prompts."""

from dataclasses import replace
from math import log
from pathlib import Path

import pytest
import torch
import trl

import tiny
from by_hand import EIGHTH, EVEN, QUARTER, step
from chat_templates import byte_tokenizer
from shown import Shown
from staytrue.data import general_prompts
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.sampled_tokens import column
from staytrue.data.tokenize import IGNORED, Encoded, encode, encode_all, encode_prompt
from staytrue.defenses.anchor import Anchor
from staytrue.errors import DataError, RecipeError
from staytrue.evals.generation import local
from staytrue.evals.types import Answer
from staytrue.modeling.base_model import Untouched
from staytrue.runs.defense_checks import Unsampled
from staytrue.testing import Micro
from staytrue.training.padded_batch import counts_of


def sample(folder):
    """For the contract: a file of its own, whose answers may be given too."""
    write_examples(folder / "prompts.jsonl", tiny.rows(12))
    return Anchor(folder / "prompts.jsonl")


SMALL, LARGE = log(4 / 3) / 2, log(16 / 7) / 2  # against (1/4, 3/4) and (1/8, 7/8): see test_kl.py
SMALL_FORWARD, LARGE_FORWARD = log(1 / 2) / 4 + log(3 / 2) * 3 / 4, log(1 / 4) / 8 + log(7 / 4) * 7 / 8

OWN = Encoded([7, 8, 9], [-100, 8, 9], "anchor")  # positions 0 and 1 predict its answer's two tokens


def side_rows():
    """One forward for two defenses' auxiliary rows: the first row is the anchor's own, the second another defense's.

    Divergences: small, large, none; and large three times.
    """
    return step(
        probabilities=[[EVEN, EVEN, EVEN], [EVEN, EVEN, EVEN]],
        references=[[QUARTER, EIGHTH, EVEN], [EIGHTH, EIGHTH, EIGHTH]],
        real=[[1, 1, 1], [1, 1, 1]],
        scored=[[1, 1, 0], [1, 1, 0]],
        source=["task", "task"],
        totals=torch.tensor([[100, 300], [50, 70]]),  # of the training rows: none of the anchor's business
    )


@pytest.mark.parametrize(
    ("forward", "expected"), [(False, (SMALL + LARGE) / 2), (True, (SMALL_FORWARD + LARGE_FORWARD) / 2)]
)
def test_it_is_the_mean_over_its_own_answer_tokens_only(forward, expected):
    anchor_step = side_rows().rows(0, 1, counts_of([OWN]))
    value = Anchor("unread", forward=forward).penalty(anchor_step)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_its_own_rows_elsewhere_in_the_optimizer_step_count_too():
    # Three such rows are due in the step, six answer tokens, and one of the rows is here.
    anchor_step = side_rows().rows(0, 1, counts_of([OWN] * 3))
    assert Anchor("unread").penalty(anchor_step).item() == pytest.approx((SMALL + LARGE) / 6, rel=1e-6)


def test_its_gradient_is_on_its_own_answer_tokens_only():
    # On the first word p (ln p/q - KL): 1/4 ln 3 and 1/4 ln 7, each over two tokens.
    whole = side_rows()
    Anchor("unread").penalty(whole.rows(0, 1, counts_of([OWN]))).backward()
    expected = torch.zeros(2, 3, 2)
    expected[0, 0] = torch.tensor([log(3) / 8, -log(3) / 8])
    expected[0, 1] = torch.tensor([log(7) / 8, -log(7) / 8])
    assert torch.allclose(whole.policy.final.grad, expected, atol=1e-6)


def prompts(folder, *rows):
    write_examples(folder / "prompts.jsonl", rows)
    return folder / "prompts.jsonl"


def asks(question, answer=None):
    turns = [Message("user", question)] + ([Message("assistant", answer)] if answer else [])
    return Example(tuple(turns))


def test_given_answers_are_the_files_and_evaluation_questions_are_left_out(tmp_path):
    base = Untouched(lambda: None, tiny.tokenizer(), evaluation_questions=lambda: frozenset(["asked"]))
    file = prompts(tmp_path, asks("one", "1"), asks("asked", "2"))
    (row,) = Anchor(file, answers="given").beside(base, 0)
    assert (row.question, row.answer, row.source) == ("one", "1", "anchor")
    assert base.notes["anchor/evaluation_questions_left_out"] == 1


def test_without_a_file_the_shipped_prompts_are_answered_and_given_answers_are_refused(tmp_path):
    base = Untouched(tiny.model, tiny.tokenizer(), evaluation_questions=lambda: frozenset())
    base.task_rows = 32  # at one anchor row for sixteen of them, two
    two = Anchor(max_new_tokens=2).beside(base, 0)
    shipped = {row.question for row in general_prompts.shipped()}
    assert len({row.question for row in two}) == 2
    assert all(row.question in shipped and row.source == "anchor" and row.answer for row in two)
    with pytest.raises(RecipeError, match=r"answers is 'given', and the prompts that come with staytrue have none\."):
        Anchor(answers="given").beside(base, 0)


def test_sampled_answers_are_the_untouched_models_whatever_the_adapter_has_learnt(tmp_path):
    file = prompts(tmp_path, asks("one", "never read"), asks("two"))
    still, moved = tiny.lora(tiny.model()), tiny.lora(tiny.model())
    tiny.nudge(moved, 1.0)
    rows = [Anchor(file).beside(Untouched(lambda m=m: m, tiny.tokenizer()), 0) for m in (still, moved)]
    assert rows[0] == rows[1]
    assert [row.question for row in rows[0]] == ["one", "two"]
    assert all(row.answer not in ("", "never read") for row in rows[0])


SPECIAL = ["<|im_end|>", "<|im_start|>", "<|end|>", "<|return|>", "<|start|>", "<|channel|>", "<|message|>"]


def reasoning(template):
    file = Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja"
    return byte_tokenizer(file.read_text(), SPECIAL, plain=["<think>", "</think>"])


def sampled(monkeypatch, tokenizer, written, end):
    """The untouched model, which writes this and ends with this token, or at the limit."""
    model, ids = tiny.model(), tokenizer.encode(written, add_special_tokens=False)
    model.resize_token_embeddings(len(tokenizer))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    last = tokenizer.convert_tokens_to_ids(end) if end else None

    def generate(self, samples, **how):
        return iter([Answer(*samples[0], text, end is not None, tokens=tuple(ids), end=last)])

    monkeypatch.setattr(local.LocalGenerator, "__call__", generate)
    return Untouched(lambda: model, tokenizer), ids, [] if last is None else [last]


@pytest.mark.parametrize(
    ("template", "written", "end"),
    [
        ("qwen3", "<think>\nOkay, so", None),  # the template puts an empty thought before it
        ("qwen3_5_think", "Okay, so", None),  # the prompt opens the thought
        ("qwen3_5_think", "Okay.", "<|im_end|>"),
        ("gptoss", "<|channel|>analysis<|message|>We need", None),  # special tokens, which are in no text
        ("gptoss", "<|channel|>final<|message|>Yes.", "<|return|>"),
    ],
)
def test_an_answer_that_its_template_renders_otherwise_is_kept_token_by_token(
    tmp_path, monkeypatch, template, written, end
):
    tokenizer = reasoning(template)
    base, ids, ends = sampled(monkeypatch, tokenizer, written, end)
    base.folder = tmp_path / "run"
    (row,) = Anchor(prompts(tmp_path, asks("Hi?"))).beside(base, 0)
    kept = tmp_path / "run" / "anchor.jsonl"
    assert Anchor(kept, answers="given").beside(Untouched(tiny.model, tokenizer), 0) == [row]
    asked, encoded = encode_prompt(tokenizer, row.prompt), encode(tokenizer, row)
    assert encoded.input_ids == asked + ids + ends
    assert encoded.labels == [IGNORED] * len(asked) + ids + ends
    # Sampled again, of any length, it is a bare prompt, also for a check, whose answers are stand-ins.
    (bare,) = Anchor(kept).beside(Unsampled(tiny.model, tokenizer), 0)
    assert encode_all(tokenizer, [bare], None)


@pytest.mark.parametrize(
    ("template", "written"), [("qwen3", "<think>\nab\n</think>\n\nHello"), ("qwen2_5", "Okay, so")]
)
def test_an_answer_that_its_template_renders_as_it_was_written_is_text(tmp_path, monkeypatch, template, written):
    tokenizer = reasoning(template)
    base, ids, ends = sampled(monkeypatch, tokenizer, written, "<|im_end|>")
    (row,) = Anchor(prompts(tmp_path, asks("Hi?"))).beside(base, 0)
    assert "staytrue_tokens" not in row.extra
    asked = encode_prompt(tokenizer, row.prompt)
    assert encode(tokenizer, row).input_ids[: len(asked + ids + ends)] == asked + ids + ends


def test_a_prompt_with_tools_is_answered_with_them(tmp_path, monkeypatch):
    tools = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {}}}]
    tokenizer = reasoning("qwen2_5")
    base, ids, ends = sampled(monkeypatch, tokenizer, "Okay.", "<|im_end|>")
    (row,) = Anchor(prompts(tmp_path, replace(asks("Hi?"), extra={"tools": tools}))).beside(base, 0)
    asked = encode_prompt(tokenizer, row.prompt, tools)
    assert '"look"' in tokenizer.decode(asked)
    assert "staytrue_tokens" not in row.extra  # the tokens after which it was sampled are those of its text
    assert encode(tokenizer, row).input_ids[: len(asked + ids + ends)] == asked + ids + ends


@pytest.mark.parametrize("edited", [Message("user", "Bye?"), Message("assistant", "No.")])
def test_tokens_that_are_not_the_rows_are_refused_with_the_way_out(edited):
    tokenizer = reasoning("qwen3")
    asked, ids = encode_prompt(tokenizer, [Message("user", "Hi?")]), tokenizer.encode("Yes.", add_special_tokens=False)
    turns = {"user": Message("user", "Hi?"), "assistant": Message("assistant", "Yes.")}
    assert encode_all(tokenizer, [Example(tuple(turns.values()), "anchor", column(asked, ids, []))], None)
    turns[edited.role] = edited
    with pytest.raises(DataError, match=r"staytrue_tokens of row 1 holds other tokens than its prompt and .* Delete"):
        encode_all(tokenizer, [Example(tuple(turns.values()), "anchor", column(asked, ids, []))], None)


def many(folder, count=30):
    return prompts(folder, *(asks(f"question {i}") for i in range(count)))


def test_only_the_prompts_that_the_run_will_use_are_answered_and_they_are_kept_for_a_rerun(tmp_path, monkeypatch):
    # 30 task rows at a share of 1/10 are 3 anchor rows.
    monkeypatch.setattr(local, "_REPORTED", -1)  # at every token
    file, base = many(tmp_path), Untouched(lambda: tiny.lora(tiny.model()), tiny.tokenizer())
    base.task_rows, base.folder, base.progress = 30, tmp_path / "run", Shown()
    rows = Anchor(file, share=0.1).beside(base, 0)
    assert (len(rows), base.notes["anchor/prompts_unused"]) == (3, 27)
    (begun, *numbers) = base.progress.seen
    assert begun == (3, "answer of the untouched model")
    assert (numbers[0], numbers[-1], 1 in numbers) == (0, 3, True)  # from the first token on
    kept = tmp_path / "run" / "anchor.jsonl"
    monkeypatch.setattr(Untouched, "answers", None)  # nothing is sampled again
    again = Anchor(kept, share=0.1, answers="given").beside(Untouched(lambda: None, tiny.tokenizer()), 0)
    assert [row.messages for row in again] == [row.messages for row in rows]
    resumed = Untouched(lambda: None, tiny.tokenizer())
    resumed.task_rows, resumed.folder = 30, base.folder
    assert Anchor(file, share=0.1).beside(resumed, 0) == rows


def test_an_answer_depends_on_its_prompt_and_not_on_how_many_are_answered(tmp_path):
    file, bases = many(tmp_path), [Untouched(lambda: tiny.lora(tiny.model()), tiny.tokenizer()) for _ in range(2)]
    bases[0].task_rows = 80  # 5 anchor rows
    few, everything = (Anchor(file).beside(base, 0) for base in bases)
    assert (len(few), len(everything)) == (5, 30)
    assert {row.question: row.answer for row in few}.items() <= {row.question: row.answer for row in everything}.items()


def test_a_second_anchor_keeps_its_rows_beside_the_first_ones(tmp_path):
    base = Untouched(lambda: tiny.lora(tiny.model()), tiny.tokenizer())
    base.folder, base.task_rows = tmp_path / "run", 16
    for _ in range(2):
        Anchor(many(tmp_path)).beside(base, 0)
    assert sorted(file.name for file in base.folder.iterdir()) == ["anchor.2.jsonl", "anchor.jsonl"]


def test_sampled_answers_are_no_longer_than_asked(tmp_path):
    base = Untouched(lambda: tiny.lora(tiny.model()), tiny.tokenizer())
    rows = Anchor(many(tmp_path, 4), max_new_tokens=3).beside(base, 0)
    assert rows
    assert all(len(row.answer) <= 3 for row in rows)  # a token of the tiny model is a byte


@pytest.mark.parametrize("answers", ["sampled", "given"])
def test_a_file_of_the_runs_own_evaluation_questions_is_refused_with_the_reason(answers, tmp_path):
    base = Untouched(lambda: None, tiny.tokenizer(), evaluation_questions=lambda: frozenset(["one", "two"]))
    with pytest.raises(RecipeError, match=r"prompts.jsonl holds nothing but questions of the run's own evaluation"):
        Anchor(prompts(tmp_path, asks("one", "1"), asks("two", "2")), answers=answers).beside(base, 0)


def test_prompts_that_the_model_answers_with_nothing_are_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Untouched, "answers", lambda *args: [])
    with pytest.raises(RecipeError, match=r"answers none of the 4 prompts of .*: every answer is empty"):
        Anchor(many(tmp_path, 4)).beside(Untouched(lambda: None, tiny.tokenizer()), 0)


def test_its_pull_over_four_steps_of_four_rows_is_that_of_one_step_of_sixteen(tmp_path):
    # At a share of 1/16 one anchor row is due in 16 task rows: in the step of 16, and in one of four steps of 4.
    file = prompts(tmp_path, *(asks(f"question {i}", "the same answer") for i in range(4)))
    defense = Anchor(file, share=0.0625, weight=1.0, answers="given")
    micro = Micro([defense], tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(16))
    tiny.nudge(micro.model, 1.0)
    guard, means = micro.guard, {}
    for rows in (16, 4):
        guard.begin(0)
        pulls = []
        for _ in range(16 // rows):
            guard.plan(micro.marks.counts(), rows, slots=1)
            with guard.watch(micro.marks) as calls:
                guard.parts.backbone(**micro.inputs, use_cache=False)
            pulls.append(float(guard.penalty(calls[0], micro.marks, slot=0).detach()))
        assert sum(pull > 0 for pull in pulls) == 1
        means[rows] = sum(pulls) / len(pulls)
    assert means[4] == pytest.approx(means[16], rel=1e-6)


def test_given_answers_that_are_missing_are_refused_with_the_row(tmp_path):
    file = prompts(tmp_path, asks("one", "1"), asks("two"))
    with pytest.raises(RecipeError, match=r"row 2 of .* ends without an answer"):
        Anchor(file, answers="given").beside(Untouched(lambda: None, tiny.tokenizer()), 0)


def test_a_length_of_answers_that_are_given_is_refused(tmp_path):
    write_examples(tmp_path / "given.jsonl", tiny.rows(2))
    with pytest.raises(RecipeError, match=r"max_new_tokens is 3, and answers is 'given', so no answer is sampled"):
        Anchor(tmp_path / "given.jsonl", answers="given", max_new_tokens=3).beside(
            Untouched(lambda: None, tiny.tokenizer()), 0
        )
    assert (
        len(
            Anchor(tmp_path / "given.jsonl", answers="given", max_new_tokens=256).beside(
                Untouched(lambda: None, tiny.tokenizer()), 0
            )
        )
        == 2
    )
