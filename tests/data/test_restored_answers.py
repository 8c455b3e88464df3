"""Answers put back whole keep their header, and text between an answer and its end is learnt with it."""

import pytest

from chat_templates import byte_tokenizer, scored
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import IGNORED, encode

ROLES = ["<|end|>", "<|user|>", "<|assistant|>"]
XML = ["</assistant>", "<assistant>", "<user>", "</user>"]
DEEPSEEK = ["<｜end｜>", "<｜User｜>", "<｜Assistant｜>"]


def template(turn, prompt):
    return f"{{%- for m in messages %}}{turn}{{%- endfor %}}{{%- if add_generation_prompt %}}{prompt}{{%- endif %}}"


ANSWER = "m.content.split('</think>')[-1].strip()"
HEADERS = {  # templates that leave out reasoning, their special tokens, and the header of an answer
    "role token and line break": (
        template("{{ '<|'+m.role+'|>\\n'+ANSWER+'<|end|>\\n' }}".replace("ANSWER", ANSWER), "{{ '<|assistant|>\\n' }}"),
        ROLES,
        "<|assistant|>\n",
    ),
    "role token": (
        template("{{ '<|'+m.role+'|>'+ANSWER+'<|end|>' }}".replace("ANSWER", ANSWER), "{{ '<|assistant|>' }}"),
        ROLES,
        "<|assistant|>",
    ),
    "deepseek": (
        template(
            "{%- if m.role=='user' %}{{ '<｜User｜>'+m.content }}{%- else %}{{ '<｜Assistant｜>'+ANSWER+'<｜end｜>' }}"
            "{%- endif %}".replace("ANSWER", ANSWER),
            "{{ '<｜Assistant｜>' }}",
        ),
        DEEPSEEK,
        "<｜Assistant｜>",
    ),
    "tags": (
        template("{{ '<'+m.role+'>'+ANSWER+'</'+m.role+'>' }}".replace("ANSWER", ANSWER), "{{ '<assistant>' }}"),
        XML,
        "<assistant>",
    ),
    "a prompt that opens reasoning": (
        template(
            "{{ '<|'+m.role+'|>'+ANSWER+'<|end|>' }}".replace("ANSWER", ANSWER), "{{ '<|assistant|><think>\\n' }}"
        ),
        ROLES,
        "<|assistant|><think>\n",
    ),
}


@pytest.mark.parametrize("later", [(), (Message("user", "z"), Message("assistant", "b"))], ids=["last", "earlier"])
@pytest.mark.parametrize("name", HEADERS)
def test_an_answer_put_back_whole_keeps_its_header(name, later):
    source, special, header = HEADERS[name]
    tokenizer = byte_tokenizer(source, special)
    row = Example((Message("user", "q"), Message("assistant", "<think>\nhm</think>ans"), *later))
    encoded = encode(tokenizer, row)
    text, learnt = tokenizer.decode(encoded.input_ids), "<think>\nhm</think>ans"
    assert header + learnt.removeprefix("<think>\n" if header.endswith("<think>\n") else "") in text
    assert text.count("<think>") == 1
    assert scored(tokenizer, encoded)[0] == (
        learnt.removeprefix("<think>\n" if header.endswith("<think>\n") else "") + special[0]
    )


CLOSINGS = {"tag": "\n</answer>", "marks": " ###", "quote": '"'}


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("name", CLOSINGS)
def test_text_between_an_answer_and_its_end_is_learnt_after_every_answer(name, turns):
    closing = CLOSINGS[name]
    written = closing.replace("\n", "\\n").replace('"', '\\"')
    source = template(
        '{{ "<|"+m.role+"|>"+m.content+"WRITTEN"+"<|end|>\\n" }}'.replace("WRITTEN", written), '{{ "<|assistant|>" }}'
    )
    tokenizer = byte_tokenizer(source, ROLES)
    pairs = [(Message("user", f"q{i}"), Message("assistant", f"a{i}")) for i in range(turns)]
    encoded = encode(tokenizer, Example(tuple(message for pair in pairs for message in pair)))
    assert scored(tokenizer, encoded) == [f"a{i}{closing}<|end|>" for i in range(turns)]
    assert encoded.labels[-1] == IGNORED
