"""Labels on the answers only, for many kinds of chat template, worked out by hand."""

import json
import re
from dataclasses import replace

import pytest

import tiny
from chat_templates import CODER, FAMILIES, SCORED, TWO_TURNS, byte_tokenizer, conversation, family, scored
from staytrue.data.end_of_turn import end_of_turn
from staytrue.data.examples import Example, Message, read_examples
from staytrue.data.tokenize import IGNORED, encode, encode_all, encode_prompt
from staytrue.errors import DataError, ModelError


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


def test_a_tokenizer_without_a_template_is_refused():
    import copy

    bare = copy.deepcopy(tiny.tokenizer())
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        encode(bare, TWO_TURNS)


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


def test_an_answer_of_weight_0_is_context():
    tokenizer = tiny.tokenizer()
    first, answer, *rest = TWO_TURNS.messages
    row = Example((first, Message("assistant", answer.content, weight=0), *rest))
    assert encode(tokenizer, row).input_ids == encode(tokenizer, TWO_TURNS).input_ids
    assert scored(tokenizer, encode(tokenizer, row)) == ["yes, 4<|im_end|>"]


def test_a_token_over_the_edge_of_prompt_and_answer_is_cut_there_as_at_inference():
    tokenizer = byte_tokenizer(CODER, ["<|EOT|>"], plain=[":\n"])
    row = conversation("4")
    prompt, encoded = encode_prompt(tokenizer, row.prompt), encode(tokenizer, row)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert scored(tokenizer, encoded) == ["\n4\n<|EOT|>"]


@pytest.mark.parametrize("fault", ["1 / (m.content | length - 3)", "m.content | int + 'x'", "'{:d}'.format(m.content)"])
def test_an_error_inside_a_template_is_one_sentence_that_names_the_row(fault):
    template = tiny.CHATML.replace("m.content +", f"({fault}) ~")
    with pytest.raises(DataError, match=r"The model's chat template refuses row 1 \(user, assistant\): .* Change"):
        encode_all(byte_tokenizer(template, ["<|im_end|>", "<|im_start|>"]), [conversation("b", question="abc")], None)


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


def test_a_fault_of_a_row_names_its_file_and_line_wherever_the_row_went(tmp_path):
    answer = {"role": "assistant", "content": "b", "reasoning_content": "hm"}
    rows = [[{"role": "user", "content": "a"}, {**answer, **more}] for more in ({"reasoning_content": None}, {})]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n" + "".join(json.dumps({"messages": row}) + "\n" for row in rows))
    (_, second) = read_examples(file)
    with pytest.raises(DataError, match=re.escape(f"reasoning_content of line 3 of {file} (turn 2)")):
        encode_all(tiny.tokenizer(), [replace(second, source="interleaved")], None)
    with pytest.raises(DataError, match=re.escape(f"reasoning_content of line 3 of {file} (turn 2)")):
        encode(tiny.tokenizer(), second)
