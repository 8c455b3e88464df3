"""The token that ends an answer, and generation: the chat template's, as training teaches it."""

import pytest

import tiny
from chat_templates import SCORED, SPACED, TEXT, TWO_TURNS, VICUNA, byte_tokenizer, conversation, published, scored
from staytrue.data.end_of_turn import end_of_turn
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode, encode_all
from staytrue.errors import DataError


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_generation_stops_at_the_token_that_training_teaches(kind):
    tokenizer = tiny.tokenizer(kind)
    (end,) = end_of_turn(tokenizer)
    assert tokenizer.decode([end]) == SCORED[kind][-1][-len(tokenizer.decode([end])) :]


def test_the_end_of_turn_is_the_templates_where_the_tokenizer_has_another_end():
    tokenizer = byte_tokenizer(tiny.CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert tokenizer.eos_token == "<|endoftext|>"
    assert [tokenizer.decode([i]) for i in end_of_turn(tokenizer)] == ["<|im_end|>"]


def test_a_template_without_a_token_after_an_answer_is_refused_before_training():
    tokenizer = byte_tokenizer(TEXT, ["<|end|>"])
    assert end_of_turn(tokenizer) == frozenset()
    assert scored(tokenizer, encode(tokenizer, TWO_TURNS)) == ["4", "yes, 4"]
    with pytest.raises(DataError, match="No answer of these rows ends with a token that ends generation"):
        encode_all(tokenizer, [TWO_TURNS], None)


def test_generation_stops_at_every_end_that_training_teaches():
    template = (
        SPACED.replace("\\n\\n<|end|>\\n", "<|end|>") + "{%- if not add_generation_prompt %}{{ eos_token }}{%- endif %}"
    )
    tokenizer = byte_tokenizer(template, ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"])
    encoded = encode(tokenizer, TWO_TURNS)
    assert scored(tokenizer, encoded) == ["4<|end|>", "yes, 4<|end|><|endoftext|>"]
    assert {tokenizer.decode([i]) for i in end_of_turn(tokenizer)} == {"<|end|>", "<|endoftext|>"}


def test_a_token_that_ends_reasoning_does_not_end_generation():
    tokenizer = published("gptoss", "<|return|>")
    assert {tokenizer.decode([i]) for i in end_of_turn(tokenizer)} == {"<|return|>", "<|call|>"}


def test_answers_without_an_end_are_counted():
    tokenizer = byte_tokenizer(VICUNA, ["</s>"])
    (row, _), report = encode_all(tokenizer, [conversation("a", "b", "c"), conversation("d")], None)
    assert scored(tokenizer, row) == ["a", "b", "c</s>"]
    assert (report.answers, report.endless) == (4, 2)
    (note,) = report.notes()
    assert note.startswith("The chat template writes no token that ends generation after 2 of 4 answers, so the model")


def test_rows_of_a_kind_without_an_end_are_refused_beside_others_that_end():
    kind = Example(
        (*conversation("a").messages, Message("user", "c"), Message("assistant", "d", weight=0)), "interleaved"
    )
    tokenizer = byte_tokenizer(VICUNA, ["</s>"])
    with pytest.raises(DataError, match="No answer of the rows of the kind 'interleaved' ends with a token"):
        encode_all(tokenizer, [conversation("a"), kind], None)
