"""Models with a table of positions: its length, and every way in by which a longer text could reach them."""

from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model
from transformers import (
    BioGptConfig,
    BioGptForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import tiny
from small_trainers import grpo, sft
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.position_table import beyond_positions, refuse_longer, table_length
from staytrue.defenses.anchor import Anchor
from staytrue.errors import ModelError
from staytrue.evals.generation.local import LocalGenerator
from staytrue.evals.measures.log_likelihood import log_likelihood
from staytrue.evals.types import Question

SIZE = len(tiny.tokenizer())
LENGTH = 100


def gpt2():
    """A model with 100 learnt positions."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=SIZE, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4,
                                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))  # fmt: skip


def test_the_length_of_a_table_and_none_where_positions_are_computed():
    assert table_length(gpt2()) == LENGTH
    sizes = {"vocab_size": SIZE, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    opt = OPTConfig(**sizes, ffn_dim=32, word_embed_proj_dim=32)
    assert table_length(OPTForCausalLM(opt)) == 64  # its table has two rows more
    assert table_length(BioGptForCausalLM(BioGptConfig(**sizes, intermediate_size=32))) == 64
    assert [table_length(tiny.model(kind)) for kind in tiny.KINDS] == [None] * len(tiny.KINDS)
    assert table_length(tiny.lora(tiny.model())) is None
    refuse_longer(10_000, None, "A text", "")
    # An adapter on the embedding of as many tokens as there are computed positions makes no table of it.
    llama = LlamaConfig(**sizes | {"vocab_size": 64}, intermediate_size=32)
    assert table_length(LlamaForCausalLM(llama)) is None
    for wrapped in ({"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}):
        targets = {"target_modules": ["q_proj"]} | wrapped
        adapter = LoraConfig(r=2, task_type="CAUSAL_LM", **targets)
        assert table_length(get_peft_model(LlamaForCausalLM(llama), adapter)) is None


def test_rows_of_a_trainer_are_refused_before_training_or_as_they_are_read(tmp_path):
    row, long = ({"input_ids": [5] * n, "labels": [5] * n} for n in (LENGTH, LENGTH + 1))
    sft(tmp_path, [], Dataset.from_list([row] * 8), model=gpt2()).train()
    with pytest.raises(ModelError, match="Row 9 of train_dataset has 101 tokens, and the model has positions for 100"):
        sft(tmp_path, [], Dataset.from_list([row] * 8 + [long]), model=gpt2())
    stream = IterableDataset.from_generator(lambda: iter([row] * 3 + [long]))
    made = sft(tmp_path, [], stream, model=gpt2(), max_steps=4, per_device_train_batch_size=1)
    with pytest.raises(ModelError, match="A batch's longest row has 101 tokens"):
        made.train()


def test_rows_within_packs_are_measured_and_not_the_packs(tmp_path):
    packed = {"packing": True, "max_length": 2 * LENGTH}
    rows = [{"input_ids": [5] * n, "labels": [5] * n} for n in (LENGTH, LENGTH, 20)]
    sft(tmp_path, [], Dataset.from_list(rows), model=gpt2(), **packed)
    with pytest.raises(ModelError, match=r"A row in pack \d of train_dataset has 101 tokens"):
        sft(
            tmp_path,
            [],
            Dataset.from_list([*rows, {"input_ids": [5] * 101, "labels": [5] * 101}]),
            model=gpt2(),
            **packed,
        )


def test_rows_of_a_defense_are_refused(tmp_path):
    turns = (Message("user", "Why?"), Message("assistant", "so " * 50))
    write_examples(tmp_path / "long.jsonl", [Example(turns)])
    anchor = Anchor(tmp_path / "long.jsonl", answers="given", share=0.5)
    with pytest.raises(
        ModelError, match=r"Row 1 of a defense's own has \d+ tokens, and the model has positions for 100"
    ):
        sft(tmp_path, [anchor], model=gpt2())


def test_prompts_with_their_completions_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"A prompt, with 90 for its completion, has .*Lower max_completion_length"):
        grpo(tmp_path, [], model=gpt2(), max_completion_length=90)


def test_an_answer_ends_where_the_table_does_and_can_be_read_again():
    model, tokenizer = gpt2(), tiny.tokenizer()
    generate = LocalGenerator(model, tokenizer)
    asked = Question("q", "general", (Message("user", "why"),))
    room = LENGTH - len(generate.prompt(asked)) - 8  # for the end of its turn
    answers = [*generate([(asked, i) for i in range(6)], seed=0, temperature=1.0, max_new_tokens=500)]
    assert max(len(answer.tokens) for answer in answers if not answer.stopped) == room
    row = Example((*asked.messages, Message("assistant", "b" * room)))
    assert log_likelihood(model, tokenizer, [row], [False])[0] < 0
    with pytest.raises(ModelError, match="An answer to 'why', with its question, has"):
        log_likelihood(model, tokenizer, [Example((*asked.messages, Message("assistant", "b" * LENGTH)))])
    with pytest.raises(ModelError, match=r"The prompt of question 'l', with 9 for its answer, has .* Shorten it\."):
        list(generate([(Question("l", "general", (Message("user", "w" * LENGTH),)), 0)],
                      seed=0, temperature=1.0, max_new_tokens=5))  # fmt: skip


def config(**rope):
    inner = SimpleNamespace(max_position_embeddings=64, rope_parameters=rope)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: inner))


def test_rows_beyond_computed_positions_are_noted_where_these_are_not_stretched():
    (note,) = beyond_positions(config(rope_type="default"), [10, 65, 64, 70])
    assert note.startswith("2 of 4 rows are longer than the 64 positions of the model's configuration")
    assert beyond_positions(config(rope_type="default"), [10, 64]) == []
    assert beyond_positions(config(rope_type="yarn", factor=4.0), [70]) == []
    assert beyond_positions(config(full={"rope_type": "yarn"}, sliding={"rope_type": "default"}), [70]) == []
    assert beyond_positions(tiny.model(), [10]) == []
