"""What a script, its callbacks, its collator and its rows may do wrong: a sentence, and never silence."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import tiny
from small_trainers import grpo, sft
from staytrue.defenses.kl import KL
from staytrue.errors import ForwardPassError, RecipeError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


class FreesTheBase(TrainerCallback):
    """Lets every weight be trained once the optimizer is made."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for weight in model.parameters():
            weight.requires_grad_(True)


class ChangesTheBase(TrainerCallback):
    def on_step_end(self, args, state, control, model=None, **kwargs):
        for name, weight in model.named_parameters():
            if "lora_" not in name:
                weight.data.mul_(1.01)


@pytest.mark.parametrize("when", ["before", "in training"])
def test_a_base_that_is_trained_too_is_refused(tmp_path, when):
    made = sft(tmp_path, [KL(1.0)])
    before = [weight.detach().clone() for weight in made.model.parameters()]
    if when == "before":
        for weight in made.model.parameters():
            weight.requires_grad_(True)
    else:
        made.add_callback(FreesTheBase())
    with pytest.raises(ForwardPassError, match=r"weights under the adapter are trained \(the first is .*embed_tokens"):
        made.train()
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_a_base_that_changed_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="The weights under the adapter changed during training"):
        sft(tmp_path, [KL(1.0)], more={"callbacks": [ChangesTheBase()]}).train()


@pytest.mark.parametrize("make", [sft, grpo])
def test_a_base_that_is_kept_is_not(tmp_path, make):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The weights under the adapter changed")
        make(tmp_path, [KL(1.0)]).train()


def masked(rows):
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(rows)
    return batch | {"labels": None}


@pytest.mark.parametrize(
    ("collate", "sentence"),
    [
        (masked, "gives a batch without 'labels'"),
        (lambda rows: rows, "gives a batch without 'labels'"),
        (
            lambda rows: {"input_ids": torch.ones(4, 6).long(), "labels": torch.ones(4, 5).long()},
            r"labels of the shape \(4, 5\) and input_ids of \(4, 6\)",
        ),
        (
            lambda rows: dict.fromkeys(("input_ids", "labels"), torch.zeros(4, 0).long()),
            r"labels of the shape \(4, 0\) .* a batch has at least one",
        ),
    ],
)
def test_a_batch_that_cannot_be_trained_is_refused(tmp_path, collate, sentence):
    with pytest.raises(RecipeError, match=f"The data collator .*{sentence}"):
        sft(tmp_path, [KL(1.0)], more={"data_collator": collate}).train()


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"input_ids": [5, 6, 7], "labels": [5, 6]}] * 8,
            "Row 1 of train_dataset: input_ids has 3, labels has 2",
        ),
        ([{"input_ids": [5, 6]}] * 3 + [{"input_ids": None}], "Row 4 of train_dataset: input_ids has None entries"),
        ([{"input_ids": [5.0, 6.0]}] * 8, "column 'input_ids' of train_dataset is of type list<item: double>"),
        ([{"input_ids": ["5"]}] * 8, "column 'input_ids' of train_dataset is of type list<item: string>"),
        ([{"input_ids": 5}] * 8, "column 'input_ids' of train_dataset is of type int"),
        ([{"prompt": 5, "completion": 6}] * 8, "row 1 has prompt=5, which is no text and no list of turns"),
    ],
)
def test_rows_that_cannot_be_read_are_refused(tmp_path, rows, sentence):
    with pytest.raises(RecipeError, match=sentence):
        sft(tmp_path, [KL(1.0)], Dataset.from_list(rows))


def test_rows_that_fill_no_batch_are_refused(tmp_path):
    changes = {"dataloader_drop_last": True, "max_steps": -1}
    rows = Dataset.from_list([{"messages": [USER, ANSWER]}] * 3)
    with pytest.raises(RecipeError, match=r"3 rows fill no batch of per_device_train_batch_size=4.* take data"):
        sft(tmp_path, [KL(1.0)], rows, **changes).train()
    prompts = Dataset.from_list([{"prompt": [USER]}])
    with pytest.raises(RecipeError, match=r"The 1 rows fill no batch .* lower num_generations, 4"):
        grpo(tmp_path, [KL(1.0)], prompts, per_device_train_batch_size=8, max_steps=-1).train()


def test_turns_without_a_template_are_a_sentence(tmp_path):
    bare = copy.deepcopy(tiny.tokenizer())
    bare.chat_template = None
    with pytest.raises(RecipeError, match="rows of train_dataset are turns, and the tokenizer has no chat template"):
        sft(tmp_path, [KL(1.0)], tokenizer=bare)


@pytest.mark.parametrize("number", [8, 120])
def test_rows_that_do_not_end_with_an_answer_are_warned_of(tmp_path, number):
    rows = [{"messages": [USER, ANSWER]}] * (number - 2) + [{"messages": [USER, ANSWER, USER]}] * 2
    with pytest.warns(UserWarning, match=f"The last turn of 2 of {number} rows is no answer"):
        sft(tmp_path, [], Dataset.from_list(rows))


@pytest.mark.parametrize("weights", [[0.0], [float("nan")], [float("inf")]])
def test_weights_of_rewards_that_reward_nothing_are_refused(tmp_path, weights):
    with pytest.raises(RecipeError, match=r"reward_weights is .*; write finite numbers, of which at least one"):
        grpo(tmp_path, [], reward_weights=weights)
