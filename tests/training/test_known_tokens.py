"""Token ids and labels outside of the model's embeddings end in a sentence before training, or as they are read."""

import copy

import pytest
import torch
from datasets import Dataset, IterableDataset

import tiny
from small_trainers import grpo, messages, sft
from staytrue.data.examples import write_examples
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.kl import KL
from staytrue.errors import ModelError

SIZE = len(tiny.tokenizer())
WAY_OUT = f"has embeddings for the ids 0 to {SIZE - 1}. Use the model's own tokenizer, or call model.resize_token"


def larger(template=None):
    """A tokenizer with a token more than the model has embeddings for."""
    made = copy.deepcopy(tiny.tokenizer())
    made.add_tokens(["<more>"])
    if template is not None:
        made.chat_template = template
    return made


def row(**changes):
    return {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]} | changes


@pytest.mark.parametrize("defenses", [[], [KL(1.0)]], ids=["none", "kl"])
@pytest.mark.parametrize(
    ("bad", "column", "unknown"),
    [
        (row(input_ids=[5, SIZE, 7]), "input_ids", SIZE),
        (row(input_ids=[5, -1, 7]), "input_ids", -1),
        (row(labels=[-100, 6, SIZE + 3]), "labels", SIZE + 3),
        (row(labels=[-1, 6, 7]), "labels", -1),
    ],
)
def test_rows_of_tokens_are_refused_with_their_number(tmp_path, bad, column, unknown, defenses):
    rows = Dataset.from_list([row()] * 1200 + [bad])
    with pytest.raises(ModelError, match=rf"Row 1201 of train_dataset \(column '{column}'\) has .* id {unknown}, and"):
        sft(tmp_path, defenses, rows)
    with pytest.raises(ModelError, match=rf"Row 1201 of eval_dataset\['b'\] \(column '{column}'\)"):
        sft(tmp_path, defenses, more={"eval_dataset": {"a": Dataset.from_list([row()]), "b": rows}})


def test_known_tokens_are_taken(tmp_path):
    rows = Dataset.from_list([row(input_ids=[0, SIZE - 1, 7], labels=[-100, SIZE - 1, 0])] * 8)
    sft(tmp_path, [KL(1.0)], rows, more={"eval_dataset": rows}).train()


def test_a_tokenizer_that_is_larger_than_the_embeddings(tmp_path):
    sft(tmp_path, [], tokenizer=larger())  # no row has the token
    text = [{"role": "user", "content": "a <more> b"}, {"role": "assistant", "content": "c"}]
    with pytest.raises(
        ModelError, match=f"Row 3 of train_dataset .* id {SIZE}, and the model {WAY_OUT}".replace("(", r"\(")
    ):
        sft(tmp_path, [], Dataset.from_list([*messages(2), {"messages": text}]), tokenizer=larger())


def test_padding_that_has_no_embedding_is_refused(tmp_path):
    made = copy.deepcopy(tiny.tokenizer())
    made.add_special_tokens({"pad_token": "<padding>"})
    for make in (sft, grpo):
        with pytest.raises(ModelError, match="tokenizer's padding has the token id"):
            make(tmp_path, [], tokenizer=made)


def test_a_stream_is_refused_as_it_is_read(tmp_path):
    rows = [row()] * 5 + [row(input_ids=[5, SIZE, 7])] * 8
    with pytest.raises(ModelError, match=r"A batch \(column 'input_ids'\) has the token id"):
        sft(tmp_path, [KL(1.0)], IterableDataset.from_generator(lambda: iter(rows))).train()


def test_a_collator_of_ones_own_is_refused(tmp_path):
    def collate(rows):
        ids = torch.tensor([[5, 6, SIZE]] * len(rows))
        return {"input_ids": ids, "labels": ids.clone().fill_(5), "attention_mask": torch.ones_like(ids)}

    made = sft(tmp_path, [KL(1.0)], more={"data_collator": collate})
    assert made.data_collator is collate
    with pytest.raises(ModelError, match="A batch"):
        made.train()


def test_rows_of_a_defense_are_refused(tmp_path):
    rows = tiny.rows(12)
    write_examples(tmp_path / "pool.jsonl", rows)
    text = (tmp_path / "pool.jsonl").read_text().replace("question 7?", "question <more>?")
    (tmp_path / "pool.jsonl").write_text(text)
    with pytest.raises(ModelError, match="Row 8 of a defense's own has the token id"):
        sft(tmp_path, [Anchor(tmp_path / "pool.jsonl", share=0.5, answers="given")], tokenizer=larger())


@pytest.mark.parametrize("defenses", [[], [KL(1.0)]], ids=["none", "kl"])
def test_prompts_are_refused(tmp_path, defenses):
    prompts = [{"prompt": [{"role": "user", "content": "a <more> b" if i == 5 else "a"}]} for i in range(8)]
    with pytest.raises(ModelError, match=f"A prompt has the token id {SIZE}"):
        grpo(tmp_path, defenses, Dataset.from_list(prompts), tokenizer=larger())
    stream = IterableDataset.from_generator(lambda: iter(prompts[5:6] * 8))
    made = grpo(tmp_path, defenses, stream, tokenizer=larger())
    with pytest.raises(ModelError, match="A prompt has the token id"):
        made.train()
    grpo(tmp_path, defenses, tokenizer=larger())
