"""What a tokenizer's report counts of the rows, and its sentences."""

import tiny
from chat_templates import TWO_TURNS, byte_tokenizer, conversation
from staytrue.data.examples import Example, Message
from staytrue.data.tokenize import encode_all


def test_rows_that_are_cut_or_have_nothing_left_are_counted():
    short, long = TWO_TURNS, Example((Message("user", "x" * 200), Message("assistant", "y")))
    rows, report = encode_all(tiny.tokenizer(), [short, long], 70)
    assert len(rows) == 1
    assert (report.rows, report.truncated, report.dropped) == (2, 2, 1)  # 70 tokens hold one answer of the first
    assert rows[0].truncated
    assert len(rows[0].input_ids) == 70


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


def test_a_system_turn_that_is_left_out_is_counted_though_the_question_repeats_it():
    silent = tiny.CHATML.replace("for m in messages", "for m in messages if m.role != 'system'")
    row = Example((Message("system", "Be kind."), Message("user", "Be kind. Why?"), Message("assistant", "So.")))
    _, report = encode_all(byte_tokenizer(silent, ["<|im_end|>", "<|im_start|>"]), [row], None)
    assert report.unseen == 1


def test_rows_whose_tokens_were_not_compared_are_not_spoken_of(monkeypatch):
    monkeypatch.setattr("staytrue.data.tokenize._begins_with_its_prompt", lambda *_: False)
    _, report = encode_all(tiny.tokenizer(), [TWO_TURNS] * 10, None)
    assert report.notes()[0].startswith("In 8 of the first 8 rows, which alone were compared, the tokens before")
