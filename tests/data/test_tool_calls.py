"""Tool calls and tools: learnt where the chat template renders them, and refused where it does not."""

import copy
import json

import pytest

import tiny
from chat_templates import QUESTION, QWEN3, TOOLS, TWO_TURNS, byte_tokenizer, calling, family, published, scored
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode, encode_all
from staytrue.errors import DataError


def test_tool_calls_are_learnt_where_the_template_renders_them_and_refused_elsewhere():
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    calls = json.dumps({"tool_calls": [call]})
    row = Example(
        (
            Message("user", "What is up?"),
            Message("assistant", "", more=calls),
            Message("tool", "clouds"),
            Message("assistant", "Clouds."),
        )
    )
    tokenizer = family("qwen3")
    rendered = '\n<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call><|im_end|>'
    assert scored(tokenizer, encode(tokenizer, row)) == [
        rendered,
        "<think>\n\n</think>\n\nClouds.<|im_end|>",
    ]
    with pytest.raises(DataError, match=r"does not render tool_calls of row 1 \(turn 2\)"):
        encode_all(tiny.tokenizer(), [row], None)
    tools = [{"type": "function", "function": {"name": "glance"}}]
    with pytest.raises(DataError, match="does not render the tools of row 1"):
        encode_all(tokenizer, [Example(TWO_TURNS.messages, extra={"tools": tools})], None)


def test_a_tool_call_is_not_taken_for_a_word_of_the_answer():
    row = Example(
        (QUESTION, calling("Oslo", content="I call get_w now."), Message("tool", "3"), Message("assistant", "3."))
    )
    with pytest.raises(DataError, match=r"does not render tool_calls of row 1 \(turn 2\)"):
        encode_all(tiny.tokenizer(), [row], None)


def test_a_template_that_renders_the_first_of_two_calls_refuses_the_row():
    one, two = (Example((QUESTION, calling(*cities))) for cities in (["Oslo"], ["Oslo", "Rome"]))
    tokenizer = published("gptoss", "<|return|>")
    assert scored(tokenizer, encode(tokenizer, one)) == [
        ' to=functions.get_w<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>'
    ]
    with pytest.raises(DataError, match=r"does not render tool_calls of row 1 \(turn 2\)"):
        encode_all(tokenizer, [two], None)


def test_a_template_that_ignores_tools_refuses_the_row_though_a_call_names_one():
    tokenizer = published("deepseekv3", "<｜end▁of▁sentence｜>")
    tokenizer.bos_token = "<pad>"
    encode_all(tokenizer, [Example((QUESTION, calling("Oslo")))], None)
    with pytest.raises(DataError, match="does not render the tools of row 1"):
        encode_all(tokenizer, [Example((QUESTION, calling("Oslo")), extra=TOOLS)], None)


@pytest.mark.parametrize("result", ['{"city": "Oslo", "t": 21}', "3"])
def test_the_result_of_a_tool_may_repeat_the_text_of_the_call(result):
    row = Example((QUESTION, calling("Oslo"), Message("tool", result), Message("assistant", "Mild.")), extra=TOOLS)
    tokenizer = published("qwen3")
    (encoded,), report = encode_all(tokenizer, [row], None)
    assert scored(tokenizer, encoded) == [
        '<tool_call>\n{"name": "get_w", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        "<think>\n\n</think>\n\nMild.<|im_end|>",
    ]
    assert report.unseen == 0


def test_the_result_of_a_tool_that_is_left_out_is_counted():
    template = QWEN3.replace(
        "for m in messages %}{%- set content", "for m in messages if m.role != 'tool' %}{%- set content"
    )
    row = Example((QUESTION, calling("Oslo"), Message("tool", "3"), Message("assistant", "3.")))
    _, report = encode_all(byte_tokenizer(template, ["<|im_end|>", "<|im_start|>"]), [row], None)
    assert report.unseen == 1


def test_a_template_that_drops_the_text_beside_a_call_is_blamed_for_the_text():
    row = Example((QUESTION, calling("Oslo", content="I look.")))
    tokenizer = published("llama3_1", "<|eot_id|>")
    tokenizer.bos_token = "<pad>"
    with pytest.raises(DataError, match=r"does not render content of row 1 \(turn 2\).*Take the row out"):
        encode_all(tokenizer, [row], None)


@pytest.mark.parametrize("arguments", ['{"at":"sky"}', {"at": "sky"}], ids=["text", "object"])
@pytest.mark.parametrize(("operator", "reads"), [("+ ", "text"), ("~ ", "text"), ("| tojson ~ ", "object")])
def test_arguments_of_tool_calls_are_json_under_templates_that_want_either_kind(arguments, operator, reads):
    call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
    more = json.dumps({"tool_calls": [call], "reasoning_content": "Hm."})
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.reasoning_content or '') + m.content }}"
        "{%- for c in m.tool_calls or [] %}{{ '[' + c.function.name + ' ' }}{{ c.function.arguments "
        + operator
        + "']' }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
    )
    row = Example((Message("user", "What is up?"), Message("assistant", "", more=more)))
    json_text = arguments if reads == "text" and isinstance(arguments, str) else '{"at": "sky"}'
    assert scored(tokenizer, encode(tokenizer, row)) == [f"Hm.[look {json_text}]<|im_end|>"]


@pytest.mark.parametrize("arguments", ['{"at": "sky"}', {"at": "sky"}], ids=["text", "object"])
def test_tool_calls_are_learnt_under_deepseeks_template_in_either_form(arguments):
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": arguments}}
    turns = (Message("user", "What is up?"), Message("assistant", "", more=json.dumps({"tool_calls": [call]})))
    tokenizer = published("deepseekv3", "<｜end▁of▁sentence｜>")
    (answer,) = scored(tokenizer, encode(tokenizer, Example(turns)))
    assert 'look\n```json\n{"at": "sky"}\n```' in answer
