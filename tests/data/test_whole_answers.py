"""Answers are learnt whole: reasoning that a chat template leaves out is scored too."""

import json
from pathlib import Path

import pytest
import trl

from chat_templates import (
    QUESTION,
    SPECIAL_TOKEN,
    THOUGHT,
    TOOLS,
    TWO_TURNS,
    byte_tokenizer,
    calling,
    conversation,
    family,
    published,
    scored,
)
from staytrue.data.end_of_turn import end_of_turn
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode, encode_all, encode_prompt
from staytrue.errors import DataError


def test_reasoning_that_the_template_takes_out_of_every_answer_is_learnt_after_the_prompt_that_opens_it():
    tokenizer = family("r1")
    (encoded,), report = encode_all(tokenizer, [conversation(THOUGHT)], None)
    assert tokenizer.decode(encoded.input_ids) == "<|User|>Why?<|Assistant|>" + THOUGHT + "<|end|>"
    assert scored(tokenizer, encoded) == ["Seven times thirteen.\n</think>\n\nNo.<|end|>"]
    assert (report.restored, report.other_prompt) == (1, 0)
    assert "leaves out a part of 1 answers, such as reasoning; they are learnt whole" in report.notes()[0]
    prompt = encode_prompt(tokenizer, conversation(THOUGHT).prompt)
    assert encoded.input_ids[: len(prompt)] == prompt


def test_an_answer_without_reasoning_after_a_prompt_that_opens_it_is_reported():
    _, report = encode_all(family("r1"), [conversation("No."), conversation(THOUGHT)], None)
    assert (report.restored, report.other_prompt) == (1, 1)
    assert (
        "In 1 of 2 rows an answer follows another text than the chat template's generation prompt" in report.notes()[1]
    )


def test_reasoning_of_earlier_turns_is_learnt_as_the_template_renders_the_last_one():
    tokenizer = family("qwen3")
    row = conversation("<think>Odd.</think>No.", THOUGHT)
    (encoded,), report = encode_all(tokenizer, [row], None)
    first = "<think>\nOdd.\n</think>\n\nNo.<|im_end|>"  # blanks as the template writes them
    assert scored(tokenizer, encoded) == [first, THOUGHT + "<|im_end|>"]
    assert report.restored == 1


def test_an_answer_that_quotes_the_end_of_reasoning_is_learnt_as_the_row_has_it():
    tokenizer, quoting = family("qwen3"), "Use the </think> tag to close."
    for answers in ([quoting], [quoting, THOUGHT], [f"Odd.\n{quoting}", quoting]):
        (encoded,), report = encode_all(tokenizer, [conversation(*answers)], None)
        assert scored(tokenizer, encoded) == [answer + "<|im_end|>" for answer in answers]
        assert report.restored == len([answer for answer in answers if quoting in answer])
    html = "A list ends with </ul> and\n</ol>."
    assert encode_all(family("r1"), [conversation(html)], None)[1].restored == 0


def test_reasoning_content_is_learnt_where_the_template_renders_it_and_refused_elsewhere():
    reasoning = json.dumps({"reasoning_content": "Seven times thirteen."})
    row = Example((Message("user", "Why?"), Message("assistant", "No.", more=reasoning)))
    tokenizer = family("qwen3")
    assert scored(tokenizer, encode(tokenizer, row)) == [THOUGHT + "<|im_end|>"]
    earlier = Example((*row.messages, *TWO_TURNS.messages[:2]))
    assert scored(tokenizer, encode(tokenizer, earlier))[0] == THOUGHT + "<|im_end|>"
    for kind in ("r1", "coder"):
        with pytest.raises(DataError, match=r"does not render reasoning_content of row 1 \(turn 2\)"):
            encode_all(family(kind), [row], None)


# TRL ships the chat templates of many model families; what is scored of TWO_TURNS and THOUGHT under each.
SHIPPED = {
    "cohere2": ("<|END_OF_TURN_TOKEN|>", ["4", "yes, 4"], [THOUGHT]),
    "deepseekv3": ("<｜end▁of▁sentence｜>", ["4", "yes, 4"], [THOUGHT.removeprefix("<think>\n")]),
    "gemma3": ("<end_of_turn>", ["4", "yes, 4"], [THOUGHT]),
    "glm4moe": (
        "<|user|>",
        ["\n<think></think>\n4", "\n<think></think>\nyes, 4"],
        ["\n<think>Seven times thirteen.</think>\nNo."],
    ),
    "llama3": ("<|eot_id|>", ["4", "yes, 4"], [THOUGHT]),
    "nemotron_3_nano": ("<|im_end|>", ["4", "yes, 4"], [THOUGHT.removeprefix("<think>\n")]),
    "phi3": ("<|end|>", ["4", "yes, 4"], [THOUGHT]),
    "qwen2_5": ("<|im_end|>", ["4", "yes, 4"], [THOUGHT]),
    "qwen3": ("<|im_end|>", ["4", "<think>\n\n</think>\n\nyes, 4"], [THOUGHT]),
    "qwen3_5_think": ("<|im_end|>", ["4", "\n</think>\n\nyes, 4"], [THOUGHT.removeprefix("<think>\n")]),
    "qwen3_8": (
        "<|im_end|>",
        ["\n</think>\n\n4", "\n</think>\n\nyes, 4"],
        [THOUGHT.removeprefix("<think>\n")],
    ),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_answers_and_reasoning_are_scored_whole_under_published_templates(name):
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.exists():
        pytest.skip("this trl does not ship the template")
    end, answers, thought = SHIPPED[name]
    template = file.read_text(encoding="utf-8")
    special = sorted(set(SPECIAL_TOKEN.findall(template)) - {end})
    tokenizer = byte_tokenizer(template, [end, *special], plain=("<think>", "</think>"))
    tokenizer.bos_token = "<pad>"
    closing = "<|END_RESPONSE|>" * (name == "cohere2") + end
    assert scored(tokenizer, encode(tokenizer, TWO_TURNS)) == [answer + closing for answer in answers]
    assert scored(tokenizer, encode(tokenizer, conversation(THOUGHT))) == [text + closing for text in thought]
    called = {"<|observation|>"} if name == "glm4moe" else set()  # after a tool call
    assert {tokenizer.decode([i]) for i in end_of_turn(tokenizer)} == {end} | called


@pytest.mark.parametrize(
    ("name", "end", "first", "second"),
    [
        (
            "qwen3",
            "<|im_end|>",
            '<think>\nLook.\n</think>\n\n<tool_call>\n{"name": "get_w", "arguments": {"city": "Oslo"}}\n</tool_call>',
            "<think>\nMild it is.\n</think>\n\nMild.",
        ),
        (
            "glm4moe",
            "<|endoftext|>",
            "\n<think>Look.</think>\n<tool_call>get_w\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
            "\n<think>Mild it is.</think>\nMild.",
        ),
    ],
)
def test_reasoning_around_a_tool_call_before_another_question_is_learnt(name, end, first, second):
    answer = Message("assistant", "Mild.", more=json.dumps({"reasoning_content": "Mild it is."}))
    call = calling("Oslo", reasoning_content="Look.")
    turns = (QUESTION, call, Message("tool", "21"), answer, Message("user", "And?"), Message("assistant", "Fine."))
    tokenizer = published(name, end)
    (encoded,), report = encode_all(tokenizer, [Example(turns, extra=TOOLS)], None)
    spans = [text.rpartition("<|")[0] for text in scored(tokenizer, encoded)]
    assert spans[:2] == [first, second]
    assert tokenizer.decode(encoded.input_ids).count("assistant") == 3
    assert report.restored == 2
