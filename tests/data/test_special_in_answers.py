"""An answer with a special token of the chat template in its text is refused."""

import re

import pytest

import tiny
from chat_templates import QUESTION, TWO_TURNS, calling, conversation, family, published
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode, encode_all
from staytrue.errors import DataError


def test_tokens_of_the_template_are_known_though_the_tokenizer_does_not_name_them():
    tokenizer = family("qwen3")
    tokenizer.extra_special_tokens = []
    with pytest.raises(DataError, match=r"turn 2\) holds '<\|im_start\|>'"):
        encode(tokenizer, conversation("Then comes <|im_start|> again."))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<pad>"])
def test_an_answer_with_a_token_of_the_template_in_its_text_is_refused(token):
    with pytest.raises(DataError, match=rf"The answer of row 2 \(turn 2\) holds {re.escape(repr(token))}"):
        encode_all(tiny.tokenizer(), [TWO_TURNS, conversation(f"It ends with {token} there.")], None)


@pytest.mark.parametrize(
    ("name", "end", "answer", "token"),
    [
        (
            "qwen3",
            "<|im_end|>",
            Message("assistant", "b", more='{"reasoning_content": "so <|im_start|> so"}'),
            "<|im_start|>",
        ),
        ("qwen3", "<|im_end|>", calling("Os<|im_end|>lo"), "<|im_end|>"),
        ("glm4moe", "<|endoftext|>", Message("assistant", "so <|observation|> so"), "<|observation|>"),
        ("gptoss", "<|return|>", Message("assistant", "so <|call|> so"), "<|call|>"),
    ],
)
def test_a_token_of_the_template_is_refused_in_every_part_of_an_answer(name, end, answer, token):
    with pytest.raises(DataError, match=rf"The answer of row 1 \(turn 2\) holds {re.escape(repr(token))}"):
        encode_all(published(name, end), [Example((QUESTION, answer))], None)
