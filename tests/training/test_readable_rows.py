"""Rows at which trl would fail in a traceback, or which it would train on as "None", are refused with their number."""

import copy

import pytest
from datasets import Dataset, IterableDataset

import tiny
from small_trainers import grpo, sft
from staytrue.data.examples import write_examples
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.interleave import Interleave
from staytrue.defenses.kl import KL
from staytrue.errors import RecipeError

USER, ANSWER = {"role": "user", "content": "q?"}, {"role": "assistant", "content": "a."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
GOOD = {"messages": [USER, ANSWER]}


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(copy.deepcopy(rows)))  # trl edits them


BAD_ROWS = [
    (GOOD, {"messages": None}, "row 2 has messages=None"),
    (GOOD, {"messages": []}, r"row 2 has messages=\[\]"),
    (
        GOOD,
        {"messages": [USER, {**ANSWER, "content": None}]},
        r"row 2 has messages\[1\], a turn of 'assistant' without",
    ),
    (GOOD, {"messages": [{**USER, "content": None}, ANSWER]}, r"row 2 has messages\[0\], a turn of 'user' without"),
    ({"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": None}, "row 2 has completion=None"),
    ({"prompt": "q", "completion": "a"}, {"prompt": None, "completion": "a"}, "row 2 has prompt=None"),
    ({"prompt": [USER], "completion": [ANSWER]}, {"prompt": [USER], "completion": []}, r"row 2 has completion=\[\]"),
    ({"text": "t"}, {"text": None}, "row 2 has text=None"),
    (
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        {"conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": None}]},
        r"row 2 has conversations\[1\], a turn of 'assistant' without",
    ),
    (GOOD | {"tools": "[]"}, GOOD | {"tools": '[{"type":'}, "row 2 has tools=.* which is not JSON"),
    (GOOD | {"tools": "[]"}, GOOD | {"tools": "{}"}, "row 2 has tools=.* which is no list of tools"),
]


@pytest.mark.parametrize(("good", "bad", "sentence"), BAD_ROWS)
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset"])
def test_a_row_that_holds_nothing_is_refused_with_its_number(tmp_path, good, bad, sentence, name):
    sets = {"train_dataset": Dataset.from_list([good] * 4), "eval_dataset": None}
    sets[name] = Dataset.from_list([good, bad])
    with pytest.raises(RecipeError, match=f"^{name}: {sentence}.*Mend the row, or filter it out"):
        sft(tmp_path, [], sets["train_dataset"], more={"eval_dataset": sets["eval_dataset"]})


@pytest.mark.parametrize(("good", "bad", "sentence"), BAD_ROWS)
def test_a_stream_is_refused_at_the_row(tmp_path, good, bad, sentence):
    made = sft(tmp_path, [KL(1.0)], stream([good] * 8))
    made.train()
    with pytest.raises(RecipeError, match=sentence):
        sft(tmp_path, [KL(1.0)], stream([good, bad, *[good] * 8])).train()


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("defense", ["interleave", "inoculate"])
def test_a_data_defense_meets_the_same_sentence(tmp_path, first, defense):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    chosen = Interleave(tmp_path / "pool.jsonl", share=0.5) if defense == "interleave" else Inoculate("Be bad.")
    rows = [GOOD, {"messages": None}] if first else [{"messages": None}, GOOD]
    with pytest.raises(RecipeError, match=f"row {first + 1} has messages=None"):
        sft(tmp_path, [chosen], Dataset.from_list(rows))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": "q", "answer": "a"}, "columns 'question', 'answer', and trl reads .* or pass a formatting_func"),
        ({"conversations": [USER, ANSWER]}, r'dataset\.rename_column\("conversations", "messages"\)'),
        ({"prompt": "q", "answer": "a"}, "A 'prompt' needs a 'completion' beside it"),
        ({"prompt": "q", "messages": [USER, ANSWER]}, "A 'prompt' needs a 'completion' beside it"),
    ],
)
def test_columns_that_trl_does_not_know_are_named_with_the_way_out(tmp_path, row, sentence):
    with pytest.raises(RecipeError, match=sentence):
        sft(tmp_path, [], Dataset.from_list([row] * 4))
    formatted = {"formatting_func": lambda row: "text"}
    if "prompt" in row:  # trl reads that column all the same
        with pytest.raises(RecipeError, match=sentence):
            sft(tmp_path, [], Dataset.from_list([row] * 4), more=formatted)
    else:
        sft(tmp_path, [], Dataset.from_list([row] * 4), more=formatted)


def test_the_column_of_text_may_have_another_name(tmp_path):
    sft(tmp_path, [], Dataset.from_list([{"body": "t"}] * 4), dataset_text_field="body")


@pytest.mark.parametrize("rows", [Dataset.from_list([GOOD]).select([]), stream([])], ids=["rows", "stream"])
def test_no_rows_are_a_sentence(tmp_path, rows):
    with pytest.raises(RecipeError, match="train_dataset has no rows, so there is nothing to train on"):
        sft(tmp_path, [], rows)


def test_turns_of_tool_calls_tokens_and_several_eval_sets_are_read(tmp_path):
    tool = {"role": "tool", "name": "add", "content": "3"}
    tiny_calls = Dataset.from_list([{"messages": [USER, {**CALL, "content": ""}, tool, ANSWER], "tools": None}] * 4)
    sft(tmp_path, [], tiny_calls)
    sft(tmp_path, [], Dataset.from_list([{"input_ids": [5, 6, 7]}] * 4))
    several = {"one": Dataset.from_list([GOOD]), "two": Dataset.from_list([GOOD] * 2)}
    assert set(sft(tmp_path, [], more={"eval_dataset": several}).eval_dataset) == {"one", "two"}
    broken = several | {"two": Dataset.from_list([{"messages": None}, GOOD])}
    with pytest.raises(RecipeError, match=r"^eval_dataset\['two'\]: row 1 has messages=None"):
        sft(tmp_path, [], more={"eval_dataset": broken})


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"prompt": [USER]}, {"prompt": None}], "train_dataset: row 2 has prompt=None"),
        ([{"prompt": [USER]}, {"prompt": [{**USER, "content": None}]}], r"row 2 has prompt\[0\], a turn of 'user'"),
        ([{"prompt": "q"}, {"prompt": ""}], "train_dataset: row 2 has prompt=''"),
        ([{"question": "q"}], "GRPO reads prompts from a column 'prompt'"),
    ],
)
def test_prompts_of_grpo_are_refused_as_well(tmp_path, rows, sentence):
    with pytest.raises(RecipeError, match=sentence):
        grpo(tmp_path, [], Dataset.from_list(rows))


def test_a_template_that_refuses_a_row_is_a_sentence(tmp_path):
    system = {"role": "system", "content": "Be kind."}
    rows = Dataset.from_list([GOOD, {"messages": [system, USER, ANSWER]}])
    with pytest.raises(RecipeError, match=r"chat template refuses a row of train_dataset: System role not supported\."):
        sft(tmp_path, [], rows, kind="gemma3")
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]
    with pytest.raises(RecipeError, match="chat template refuses a row of train_dataset: can only concatenate"):
        sft(tmp_path, [], Dataset.from_list([{"prompt": parts[:1], "completion": [ANSWER]}] * 4))


def test_a_formatting_function_that_returns_no_text_is_a_sentence(tmp_path):
    rows = Dataset.from_list([{"q": "a"}] * 4)
    with pytest.raises(RecipeError, match="formatting_func returned 'None', which is no text; return a string"):
        sft(tmp_path, [], rows, more={"formatting_func": lambda row: None})
    with pytest.raises(ZeroDivisionError):
        sft(tmp_path, [], rows, more={"formatting_func": lambda row: 1 / 0})


def test_weights_that_begin_later_in_a_stream_are_refused(tmp_path):
    weighed = {"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}
    with pytest.raises(RecipeError, match="row 2 of the stream has a turn with a weight, and its first row has none"):
        sft(tmp_path, [], stream([GOOD, *[weighed] * 8])).train()
    sft(tmp_path, [], stream([GOOD, *[{"messages": [USER, {**ANSWER, "weight": 1}]}] * 8])).train()


def test_a_collator_without_labels_is_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match="data collator gives a batch without 'labels'"):
        sft(tmp_path, [KL(1.0)], more={"data_collator": lambda rows: {"input_ids": None}}).train()


@pytest.mark.parametrize("row", [GOOD, {"prompt": "q", "completion": "a"}])
def test_a_formatting_function_that_trl_does_not_use_is_warned_of(tmp_path, row):
    made = {"formatting_func": lambda row: "text"}
    with pytest.warns(UserWarning, match="formatting_func is not used, since trl reads the column"):
        sft(tmp_path, [], Dataset.from_list([row] * 4), more=made, completion_only_loss=False)


def test_a_stream_of_prompts_to_evaluate_on_is_kept_and_refused_at_the_row(tmp_path):
    rows = stream([{"prompt": [USER]}] * 4 + [{"prompt": None}] * 4)
    made = grpo(tmp_path, [KL(1.0)], more={"eval_dataset": rows})
    assert made.eval_dataset is rows
    with pytest.raises(RecipeError, match=r"A row of a batch has prompt=None, which is no text .* Mend the row"):
        made.evaluate()
