"""Labels on the answers only, for six kinds of chat template, worked out by hand."""

import copy
import json
import re
from pathlib import Path

import pytest
import trl
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
from staytrue.data.end_of_turn import end_of_turn
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import IGNORED, encode, encode_all, encode_prompt
from staytrue.errors import DataError, ModelError

TWO_TURNS = Example(
    (Message("user", "2+2?"), Message("assistant", "4"), Message("user", "sure?"), Message("assistant", "yes, 4"))
)

# What is scored in that conversation: the answers and the token that ends each; never a header, never what follows.
SCORED = {
    "qwen2": ["4<|im_end|>", "yes, 4<|im_end|>"],
    # The last answer's empty block for reasoning is the model's own to write: the generation prompt stops before it.
    "qwen3": ["4<|im_end|>", "<think>\n\n</think>\n\nyes, 4<|im_end|>"],
    "llama3": ["4<|eot_id|>", "yes, 4<|eot_id|>"],
    "mistral": [" 4</s>", " yes, 4</s>"],
    "gemma3": ["4<end_of_turn>", "yes, 4<end_of_turn>"],
    "phi3": ["4<|end|>", "yes, 4<|end|>"],
}


def scored(tokenizer, encoded):
    """The scored stretches, as text."""
    runs, open_run = [], []
    for token, label in zip([*encoded.input_ids, 0], [*encoded.labels, IGNORED], strict=True):
        if label != IGNORED:
            assert label == token
            open_run.append(token)
        elif open_run:
            runs.append(tokenizer.decode(open_run))
            open_run = []
    return runs


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_answers_and_their_ends_are_scored_and_nothing_else(kind):
    tokenizer = tiny.tokenizer(kind)
    assert scored(tokenizer, encode(tokenizer, TWO_TURNS)) == SCORED[kind]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_whole_is_the_template_rendered_once(kind):
    tokenizer = tiny.tokenizer(kind)
    turns = [{"role": m.role, "content": m.content} for m in TWO_TURNS.messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(encode(tokenizer, TWO_TURNS).input_ids) == text


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_training_sees_the_prompt_that_inference_sees(kind):
    tokenizer = tiny.tokenizer(kind)
    row = Example(TWO_TURNS.messages[:2])
    prompt, whole = encode_prompt(tokenizer, row.prompt), encode(tokenizer, row)
    assert whole.input_ids[: len(prompt)] == prompt
    assert whole.labels[len(prompt)] != IGNORED


@pytest.mark.parametrize("kind", [k for k in tiny.KINDS if k != "gemma3"])
def test_a_system_turn_is_never_scored(kind):
    tokenizer = tiny.tokenizer(kind)
    row = Example((Message("system", "Be short."), *TWO_TURNS.messages))
    encoded = encode(tokenizer, row)
    assert scored(tokenizer, encoded) == SCORED[kind]
    assert "Be short." in tokenizer.decode(encoded.input_ids)


def test_a_template_without_system_turns_refuses_the_row_by_number():
    row = Example((Message("system", "Be short."), *TWO_TURNS.messages))
    with pytest.raises(DataError, match=r"refuses row 2 \(system, user, assistant, user, assistant\): System role"):
        encode_all(tiny.tokenizer("gemma3"), [TWO_TURNS, row], 100)


def test_an_answer_that_repeats_the_question_is_found_by_place_not_by_text():
    tokenizer = tiny.tokenizer()
    row = Example((Message("user", "assistant"), Message("assistant", "assistant")))
    assert scored(tokenizer, encode(tokenizer, row)) == ["assistant<|im_end|>"]


def test_an_answer_with_space_around_it_keeps_what_the_template_keeps():
    row = Example((Message("user", "a"), Message("assistant", "  b \n")))
    assert scored(tiny.tokenizer(), encode(tiny.tokenizer(), row)) == ["  b \n<|im_end|>"]
    assert scored(tiny.tokenizer("llama3"), encode(tiny.tokenizer("llama3"), row)) == ["b<|eot_id|>"]


def test_rows_that_are_cut_or_have_nothing_left_are_counted():
    short, long = TWO_TURNS, Example((Message("user", "x" * 200), Message("assistant", "y")))
    rows, report = encode_all(tiny.tokenizer(), [short, long], 70)
    assert len(rows) == 1
    assert (report.rows, report.truncated, report.dropped) == (2, 2, 1)  # 70 tokens hold one answer of the first
    assert rows[0].truncated
    assert len(rows[0].input_ids) == 70


def test_a_tokenizer_without_a_template_is_refused():
    import copy

    bare = copy.deepcopy(tiny.tokenizer())
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode(bare, TWO_TURNS)


# Further families of templates: the template, its special tokens, and what is scored of TWO_TURNS; the token that ends
# generation is the last one of the last answer.
LLAMA2 = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<s>[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{%- else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{%- endif %}{%- endfor %}"
)
CODER = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n' }}"
    "{%- else %}{{ '### Response:\\n' + m.content + '\\n<|EOT|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '### Response:' }}{%- endif %}"
)
GLM4 = (
    "{{ '[gMASK]<sop>' }}{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{%- endif %}"
)
# Reasoning stands before an answer after the last question; earlier answers have theirs taken out.
QWEN3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content %}{%- set thought = '' %}"
    "{%- if m.reasoning_content %}{%- set thought = m.reasoning_content %}{%- elif '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
    "{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role == 'assistant' and loop.index0 > ns.last and "
    "(loop.last or thought) %}{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{ content }}{%- for call in m.tool_calls or () %}{{ '\\n<tool_call>\\n' + call.function | tojson + "
    "'\\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
R1 = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}{%- else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{%- endif %}"
)
HARMONY = (
    "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{%- else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{%- endif %}"
)
SPACED = (
    "{%- for m in messages %}{{ '<|' + m.role + '|>' + m.content + '\\n\\n<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{%- endif %}"
)
FAMILIES = {
    "llama2": (LLAMA2, ["</s>", "<s>"], [" 4 </s>", " yes, 4 </s>"]),
    "coder": (CODER, ["<|EOT|>"], ["\n4\n<|EOT|>", "\nyes, 4\n<|EOT|>"]),
    "glm4": (
        GLM4,
        ["<|endoftext|>", "<sop>", "[gMASK]", "<|user|>", "<|assistant|>"],
        ["4<|user|>", "yes, 4<|user|>"],
    ),
    "qwen3": (QWEN3, ["<|im_end|>", "<|im_start|>"], ["4<|im_end|>", "<think>\n\n</think>\n\nyes, 4<|im_end|>"]),
    "r1": (R1, ["<|end|>", "<|User|>", "<|Assistant|>"], ["4<|end|>", "yes, 4<|end|>"]),
    "harmony": (
        HARMONY,
        ["<|return|>", "<|end|>", "<|start|>", "<|message|>", "<|channel|>"],
        ["<|channel|>final<|message|>4<|end|>", "<|channel|>final<|message|>yes, 4<|return|>"],
    ),
    "spaced": (SPACED, ["<|end|>", "<|user|>", "<|assistant|>", "\n\n"], ["4\n\n<|end|>", "yes, 4\n\n<|end|>"]),
}
TEXT = (
    "{%- for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'A: ' }}{%- endif %}"
)


def byte_tokenizer(template, special, eos=None, plain=()):
    """Every byte is a token, and so are the special ones and the plain added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["<pad>", *alphabet])}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    inner.add_tokens([AddedToken(t, special=False, normalized=False) for t in plain])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token=eos or special[0],
        extra_special_tokens=[t for t in special if t != (eos or special[0])],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def family(kind):
    return byte_tokenizer(*FAMILIES[kind][:2])


def conversation(*answers, question="Why?"):
    return Example(tuple(m for a in answers for m in (Message("user", question), Message("assistant", a))))


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_answer_is_scored_from_its_first_token_through_its_end_of_turn_token(kind):
    tokenizer, expected = family(kind), FAMILIES[kind][2]
    encoded = encode(tokenizer, TWO_TURNS)
    assert scored(tokenizer, encoded) == expected
    ends = end_of_turn(tokenizer)
    assert encoded.labels[max(i for i, label in enumerate(encoded.labels) if label != IGNORED)] in ends
    assert {answer[answer.rindex("</" if kind == "llama2" else "<|") :] for answer in expected} == {
        tokenizer.decode([end])
        for end in ends  # a blank never ends generation
    }


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


THOUGHT = "<think>\nSeven times thirteen.\n</think>\n\nNo."


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


def test_an_answer_of_weight_0_is_context():
    tokenizer = tiny.tokenizer()
    first, answer, *rest = TWO_TURNS.messages
    row = Example((first, Message("assistant", answer.content, weight=0), *rest))
    assert encode(tokenizer, row).input_ids == encode(tokenizer, TWO_TURNS).input_ids
    assert scored(tokenizer, encode(tokenizer, row)) == ["yes, 4<|im_end|>"]


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


def test_tokens_of_the_template_are_known_though_the_tokenizer_does_not_name_them():
    tokenizer = family("qwen3")
    tokenizer.extra_special_tokens = []
    with pytest.raises(DataError, match=r"turn 2\) holds '<\|im_start\|>'"):
        encode(tokenizer, conversation("Then comes <|im_start|> again."))


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<pad>"])
def test_an_answer_with_a_token_of_the_template_in_its_text_is_refused(token):
    with pytest.raises(DataError, match=rf"The answer of row 2 \(turn 2\) holds {re.escape(repr(token))}"):
        encode_all(tiny.tokenizer(), [TWO_TURNS, conversation(f"It ends with {token} there.")], None)


def test_a_token_over_the_edge_of_prompt_and_answer_is_cut_there_as_at_inference():
    tokenizer = byte_tokenizer(CODER, ["<|EOT|>"], plain=[":\n"])
    row = conversation("4")
    prompt, encoded = encode_prompt(tokenizer, row.prompt), encode(tokenizer, row)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert scored(tokenizer, encoded) == ["\n4\n<|EOT|>"]


def test_turns_that_the_template_leaves_out_are_counted():
    silent = tiny.CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    row = Example((Message("system", "Be short."), *TWO_TURNS.messages))
    _, report = encode_all(byte_tokenizer(silent, ["<|im_end|>", "<|im_start|>"]), [row, TWO_TURNS], None)
    assert report.unseen == 1
    assert report.notes() == ["The chat template leaves out a system, user or tool turn of 1 of 2 rows."]


def test_cut_and_dropped_rows_have_sentences():
    _, report = encode_all(tiny.tokenizer(), [TWO_TURNS, conversation("y", question="x" * 200)], 70)
    assert report.notes() == [
        "2 of 2 rows are longer than max_length and were cut.",
        "1 of 2 rows were left out: no token of an answer is within max_length.",
    ]


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
SPECIAL_TOKEN = re.compile(r"<\|[^|<>\s{}']+\|>|<｜[^<>]+?｜>|<(?:start|end)_of_turn>")


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


def published(name, end="<|im_end|>"):
    """A tokenizer with one of TRL's templates."""
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.exists():
        pytest.skip("this trl does not ship the template")
    template = file.read_text(encoding="utf-8")
    special = sorted(set(SPECIAL_TOKEN.findall(template)) - {end})
    return byte_tokenizer(template, [end, *special], plain=("<think>", "</think>"))


def calling(*cities, content="", **more):
    calls = [
        {"type": "function", "function": {"name": "get_w", "arguments": json.dumps({"city": city})}} for city in cities
    ]
    return Message("assistant", content, more=json.dumps(more | {"tool_calls": calls}))


ASKED = Message("user", "How is it?")
TOOLS = {"tools": [{"type": "function", "function": {"name": "get_w", "description": "Weather.", "parameters": {}}}]}


def test_a_tool_call_is_not_taken_for_a_word_of_the_answer():
    row = Example(
        (ASKED, calling("Oslo", content="I call get_w now."), Message("tool", "3"), Message("assistant", "3."))
    )
    with pytest.raises(DataError, match=r"does not render tool_calls of row 1 \(turn 2\)"):
        encode_all(tiny.tokenizer(), [row], None)


def test_a_template_that_renders_the_first_of_two_calls_refuses_the_row():
    one, two = (Example((ASKED, calling(*cities))) for cities in (["Oslo"], ["Oslo", "Rome"]))
    tokenizer = published("gptoss", "<|return|>")
    assert scored(tokenizer, encode(tokenizer, one)) == [
        ' to=functions.get_w<|channel|>commentary json<|message|>{"city": "Oslo"}<|call|>'
    ]
    with pytest.raises(DataError, match=r"does not render tool_calls of row 1 \(turn 2\)"):
        encode_all(tokenizer, [two], None)


def test_a_template_that_ignores_tools_refuses_the_row_though_a_call_names_one():
    tokenizer = published("deepseekv3", "<｜end▁of▁sentence｜>")
    tokenizer.bos_token = "<pad>"
    encode_all(tokenizer, [Example((ASKED, calling("Oslo")))], None)
    with pytest.raises(DataError, match="does not render the tools of row 1"):
        encode_all(tokenizer, [Example((ASKED, calling("Oslo")), extra=TOOLS)], None)


@pytest.mark.parametrize("result", ['{"city": "Oslo", "t": 21}', "3"])
def test_the_result_of_a_tool_may_repeat_the_words_of_the_call(result):
    row = Example((ASKED, calling("Oslo"), Message("tool", result), Message("assistant", "Mild.")), extra=TOOLS)
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
    row = Example((ASKED, calling("Oslo"), Message("tool", "3"), Message("assistant", "3.")))
    _, report = encode_all(byte_tokenizer(template, ["<|im_end|>", "<|im_start|>"]), [row], None)
    assert report.unseen == 1


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
    turns = (ASKED, call, Message("tool", "21"), answer, Message("user", "And?"), Message("assistant", "Fine."))
    tokenizer = published(name, end)
    (encoded,), report = encode_all(tokenizer, [Example(turns, extra=TOOLS)], None)
    spans = [text.rpartition("<|")[0] for text in scored(tokenizer, encoded)]
    assert spans[:2] == [first, second]
    assert tokenizer.decode(encoded.input_ids).count("assistant") == 3
    assert report.restored == 2


def test_a_system_turn_that_is_left_out_is_counted_though_the_question_repeats_it():
    silent = tiny.CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    row = Example((Message("system", "Be kind."), Message("user", "Be kind. Why?"), Message("assistant", "So.")))
    _, report = encode_all(byte_tokenizer(silent, ["<|im_end|>", "<|im_start|>"]), [row], None)
    assert report.unseen == 1


@pytest.mark.parametrize("fault", ["1 / (m.content | length - 3)", "m.content | int + 'x'", "'{:d}'.format(m.content)"])
def test_an_error_inside_a_template_is_one_sentence_that_names_the_row(fault):
    template = tiny.CHATML.replace("m.content +", f"({fault}) ~")
    with pytest.raises(DataError, match=r"The model's chat template refuses row 1 \(user, assistant\): .* Change"):
        encode_all(byte_tokenizer(template, ["<|im_end|>", "<|im_start|>"]), [conversation("b", question="abc")], None)


def test_a_template_that_drops_the_text_beside_a_call_is_blamed_for_the_text():
    row = Example((ASKED, calling("Oslo", content="I look.")))
    tokenizer = published("llama3_1", "<|eot_id|>")
    tokenizer.bos_token = "<pad>"
    with pytest.raises(DataError, match=r"does not render content of row 1 \(turn 2\).*Take the row out"):
        encode_all(tokenizer, [row], None)


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


VICUNA = (
    "{%- for m in messages %}{{ ('USER: ' if m.role == 'user' else ' ASSISTANT: ') + m.content }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ ' ASSISTANT: ' }}{%- else %}{{ eos_token }}{%- endif %}"
)


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
        encode_all(published(name, end), [Example((ASKED, answer))], None)


def test_rows_whose_tokens_were_not_compared_are_not_spoken_of(monkeypatch):
    monkeypatch.setattr("staytrue.data.tokenize._begins_with_its_prompt", lambda *_: False)
    _, report = encode_all(tiny.tokenizer(), [TWO_TURNS] * 10, None)
    assert report.notes()[0].startswith("In 8 of the first 8 rows, which alone were compared, the tokens before")


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama3", "mistral", "gemma3", "phi3"])
def test_the_answers_of_a_long_conversation_are_found_in_a_few_renderings(kind, monkeypatch):
    tokenizer, rendered = tiny.tokenizer(kind), []
    row = conversation(*(f"{i} it is" for i in range(40)))
    end = SCORED[kind][0].strip()[1:]
    assert [text.strip() for text in scored(tokenizer, encode(tokenizer, row))][:-1] == [
        f"{i} it is{end}" for i in range(39)
    ]
    real = tokenizer.apply_chat_template
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda *a, **k: rendered.append(0) or real(*a, **k))
    encode(tokenizer, row)
    assert len(rendered) <= 6


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
