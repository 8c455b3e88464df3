"""Where a recipe's rows come from: a file, a task, or a file read as a task's."""

import json

import pytest

from staytrue.config import recipe
from staytrue.errors import DataError, RecipeError
from staytrue.runs import dataset
from staytrue.tasks.gsm8k import SYSTEM


def make(folder, rows=None, **changes):
    plain = {"schema": 1, "model": "organism", "trainer": "grpo", "task": "word_problems", "lora": {}}
    if rows is not None:
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        plain["data"] = "rows.jsonl"
    return recipe.parse(plain | changes, folder)


def test_without_a_file_the_task_brings_both_splits(tmp_path):
    prepared = make(tmp_path)
    train, held = dataset.rows(prepared)
    assert (train, held) == (prepared.task.rows(), prepared.task.held_out())


def test_a_file_of_questions_and_answers_is_read_as_the_tasks(tmp_path):
    rows = [
        {"question": "How many?", "answer": "7"},
        {"question": "How many now?", "answer": 8},
        {"messages": [{"role": "user", "content": "And now?"}], "answer": "9"},
        {"messages": [{"role": "user", "content": "Then?"}, {"role": "assistant", "content": "4 + 6 = 10."}]},
    ]
    data = dataset.read(make(tmp_path, rows))
    assert [row.answer for row in data] == ["7", "8", "9", "4 + 6 = 10."]
    train, held = dataset.rows(make(tmp_path, rows, holdout=0.25))
    assert (len(train), len(held)) == (3, 1)
    assert dataset.read(make(tmp_path, rows, task="gsm8k"))[0].messages[0].content == SYSTEM


def test_a_row_without_a_right_answer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"rows\.jsonl: row 2 has no right answer\. End it with an assistant turn, or"):
        dataset.rows(make(tmp_path, [{"question": "a", "answer": "1"}, {"question": "b"}]))


def test_a_task_that_brings_its_own_held_out_questions_needs_no_holdout(tmp_path):
    with pytest.raises(RecipeError, match="word_problems has held-out questions of its own; take `holdout:` out"):
        dataset.rows(make(tmp_path, holdout=0.1))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": None, "model": "Qwen/Qwen2.5-3B"}, "trainer grpo needs a `task:`"),
        ({"task": None, "trainer": "sft"}, "lacks the key 'data'"),
        ({"task": "opswop"}, "no task 'opswop'; did you mean 'opswap'"),
        ({"task": {"opswap": {"tir": 2}}}, "task 'opswap' has no field 'tir'; did you mean 'tier'"),
        ({"task": {"opswap": {"tier": 4}}}, "tier is 4; write 1, 2 or 3"),
        ({"task": {"facts": {"of": 4}}}, "task 'facts' has no field 'of'; it has none"),
        ({"task": ["opswap"]}, r"a task is written `task: opswap` or"),
        ({"trainer": "ppo"}, "trainer is 'ppo'; write 'sft' or 'grpo'"),
    ],
)
def test_a_recipe_that_names_no_rows_is_refused(tmp_path, changes, sentence):
    with pytest.raises(RecipeError, match=sentence):
        make(tmp_path, **changes)


@pytest.mark.parametrize("task", ["word_problems", {"opswap": {"tier": 3}}])
def test_a_recipe_with_a_task_written_and_read_again_is_the_same(tmp_path, task):
    prepared = make(tmp_path, task=task)
    assert recipe.parse(prepared.to_dict()) == prepared
