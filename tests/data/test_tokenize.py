"""Labels on the answers only, for six kinds of chat template, worked out by hand."""

import pytest

import tiny
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
