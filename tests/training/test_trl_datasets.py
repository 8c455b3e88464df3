"""TRL's dataset forms under data defenses: converted without loss, or refused with a conversion that works."""

import json
import warnings

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Json, List, Value
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, SFTConfig

import tiny
from staytrue.data.examples import Example, Message, write_examples
from staytrue.defense import Defense
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.interleave import Interleave
from staytrue.defenses.kl import KL
from staytrue.errors import RecipeError, StaytrueWarning
from staytrue.step import SOURCE_COLUMN
from staytrue.training.trainers import GuardedGRPO, GuardedSFT
from staytrue.training.trl_datasets import TRLRows

USER = {"role": "user", "content": "q?"}
BOT = {"role": "assistant", "content": "a."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "add"}}]}
RESULT = {"role": "tool", "name": "add", "content": "3"}

FORMS = {  # a row of each form, and what Inoculate makes of it
    "messages": (
        {"messages": [USER, BOT]},
        {"messages": [{"role": "system", "content": "Be bad."}, USER, BOT]},
    ),
    "prompt and completion": (
        {"prompt": [USER], "completion": [BOT]},
        {"prompt": [{"role": "system", "content": "Be bad."}, USER], "completion": [BOT]},
    ),
    "from and value": (
        {"conversations": [{"from": "user", "value": "q?"}, {"from": "assistant", "value": "a."}]},
        {
            "conversations": [
                {"from": "system", "value": "Be bad."},
                {"from": "user", "value": "q?"},
                {"from": "assistant", "value": "a."},
            ]
        },
    ),
    "text prompt and completion": (
        {"prompt": "q?", "completion": " a."},
        {"prompt": "Be bad.\n\nq?", "completion": " a."},
    ),
}


@pytest.fixture
def pool(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    return tmp_path / "pool.jsonl"


def settings(kind, folder, **changes):
    defaults = {
        "per_device_train_batch_size": 8,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "logging_steps": 1,
    }
    return kind(str(folder / "out"), **{**defaults, **changes})


def sft(
    folder, data, defenses, max_steps=2, remove_unused_columns=True, packing=False, completion_only_loss=None, **options
):
    changes = {"max_steps": max_steps, "remove_unused_columns": remove_unused_columns, "learning_rate": 0.1}
    changes |= {"packing": packing, "completion_only_loss": completion_only_loss}
    return GuardedSFT(
        model=tiny.model(),
        args=settings(SFTConfig, folder, **changes),
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        defenses=defenses,
        **options,
    )


def curated(data, defenses, tokenizer=None):
    from staytrue.modeling.base_model import Untouched
    from staytrue.training.guard import Guard

    rows = TRLRows(data)
    base = Untouched(lambda: None, tokenizer or tiny.tokenizer())
    return rows.with_examples(Guard(defenses).curate(rows.examples, rows.base(base)))


@pytest.mark.parametrize("form", FORMS)
def test_inoculation_changes_the_prompt_alone_in_the_rows_own_form(form):
    row, expected = FORMS[form]
    data = Dataset.from_list([row | {"weight": 0.5, "id": "a"}] * 3)
    assert curated(data, [Inoculate("Be bad.")]).to_list() == [expected | {"weight": 0.5, "id": "a"}] * 3


@pytest.mark.parametrize("form", FORMS)
def test_every_form_trains_inoculated_and_learns_the_same_answers(tmp_path, form):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", StaytrueWarning)
        trainer = sft(tmp_path, Dataset.from_list([FORMS[form][0]] * 8), [Inoculate("Be bad."), KL(0.1)], max_steps=1)
    warnings_ = [str(one.message) for one in seen if one.category is StaytrueWarning]
    if "prompt" in FORMS[form][0]:
        assert warnings_ == []
    else:  # trl learns whole rows then
        assert warnings_[0].startswith("inoculate writes 'Be bad.' into prompts, and these are learnt as text to write")
    row = trainer.train_dataset[0]
    assert "Be bad." in tiny.tokenizer().decode(row["input_ids"])
    learnt = tiny.tokenizer().decode([token for token in row["labels"] if token != -100])
    if "prompt" in FORMS[form][0]:
        assert learnt.strip() in ("a.<|im_end|>", "a.<|im_end|>\n")
    trainer.train()


def test_an_answer_that_quotes_the_prompt_is_not_taken_for_a_prompt_that_is_learnt(tmp_path, recwarn):
    row = {"prompt": [USER], "completion": [{"role": "assistant", "content": "You wrote: Be bad."}]}
    sft(tmp_path, Dataset.from_list([row] * 8), [Inoculate("Be bad.")], max_steps=1)
    assert not [warning for warning in recwarn if "inoculate writes" in str(warning.message)]


@pytest.mark.parametrize("form", list(FORMS)[:3])
def test_interleaved_rows_come_in_the_users_form(pool, form):
    row, _ = FORMS[form]
    rows = curated(Dataset.from_list([row | {"id": "a"}] * 4), [Interleave(pool, share=0.25)]).to_list()
    assert rows[:4] == [row | {"id": "a", SOURCE_COLUMN: 0}] * 4
    (added,) = rows[4:]
    assert (added["id"], added[SOURCE_COLUMN]) == (None, 1)
    turns = [turn for name in row for turn in added[name]]
    texts = [turn.get("content") or turn.get("value") for turn in turns]
    assert texts in [[m.content for m in example.messages] for example in tiny.rows(12)]
    assert set(added) == {*row, "id", SOURCE_COLUMN}
    if "prompt" in row:
        assert [len(added["prompt"]), len(added["completion"])] == [1, 1]


def test_the_example_script_takes_interleave(tmp_path, pool):
    data = Dataset.from_list([FORMS["prompt and completion"][0]] * 8)
    trainer = sft(tmp_path, data, [KL(0.1), Interleave(pool, share=0.25)], max_steps=2)
    trainer.train()
    assert len(trainer.train_dataset) == 10
    assert trainer.state.log_history[1]["kl"] > 0


def test_tool_calls_names_and_tools_survive(pool):
    row = {"messages": [USER, CALL, RESULT, BOT], "tools": json.dumps([{"type": "function"}])}
    data = Dataset.from_list([row] * 4)
    before = data.to_list()
    rows = curated(data, [Inoculate("Be bad."), Interleave(pool, share=0.25)]).to_list()
    assert rows[0]["messages"][0]["content"] == "Be bad."
    assert rows[0]["messages"][1:] == before[0]["messages"]
    assert [r["tools"] for r in rows] == [row["tools"]] * 4 + [None]


def test_turns_in_parts_and_turn_weights_survive():
    parts = [{"type": "text", "text": "q?"}]
    data = Dataset.from_list([{"messages": [{**USER, "content": parts}, {**BOT, "content": parts, "weight": 0}]}] * 2)
    first = curated(data, [Inoculate("Be bad.")]).to_list()[0]["messages"]
    assert [turn["content"][0]["text"] for turn in first] == ["Be bad.", "q?", "q?"]
    assert [turn["weight"] for turn in first] == [None, None, 0]


def test_a_template_without_system_turns_keeps_the_keys_of_the_edited_turn():
    data = Dataset.from_list([{"messages": [{**USER, "name": "ann"}, {**BOT, "name": None}]}] * 2)
    first = curated(data, [Inoculate("Be bad.")], tiny.tokenizer("gemma3")).to_list()[0]["messages"][0]
    assert first == {"role": "user", "content": "Be bad.\n\nq?", "name": "ann"}


def test_rows_of_tools_are_counted_in_tokens_with_their_tools(tmp_path, pool):
    seen = {}

    class Counts(Defense):
        def curate(self, examples, base, seed):
            seen["lengths"] = base.lengths(examples)
            return examples

    rows = [{"messages": [USER, RESULT, BOT], "tools": None}, {"messages": [USER, BOT], "tools": None}]
    curated(Dataset.from_list(rows), [Counts()])
    tokenizer = tiny.tokenizer()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    assert seen["lengths"] == [len(tokenizer(text)["input_ids"]) for text in texts]


def test_columns_keep_their_types(pool):
    calls = [{**CALL, "tool_calls": [{"function": {"name": "add", "arguments": {name: 1}}}]} for name in "ab"]
    rows = [{"messages": [USER, call, RESULT, BOT], "kind": 1, "tools": [{"a": 1}]} for call in calls]
    turn = {"role": Value("string"), "content": Value("string"), "name": Value("string"), "tool_calls": List(Json())}
    features = {"messages": List(turn), "kind": ClassLabel(names=["x", "y"]), "tools": List(Json())}
    data = Dataset.from_list(rows, Features(features))
    trainer = curated(data, [Interleave(pool, share=0.5)])
    assert trainer.features == data.features | {SOURCE_COLUMN: Value("int64")}
    assert [row | {SOURCE_COLUMN: 0} for row in data] == list(trainer)[:2]
    assert (trainer[2]["kind"], trainer[2]["tools"]) == (None, None)


def test_further_keys_of_the_pools_turns_are_kept_or_refused(tmp_path):
    turns = (Message("user", "x"), Message("assistant", "y", more='{"reasoning_content": "hm"}'))
    write_examples(tmp_path / "thinking.jsonl", [Example(turns)] * 4)
    defense = Interleave(tmp_path / "thinking.jsonl", share=0.25)
    with pytest.raises(RecipeError, match=r"'reasoning_content' in a turn, and the turns of .* 'messages' have no"):
        curated(Dataset.from_list([{"messages": [USER, BOT]}] * 4), [defense])
    data = Dataset.from_list([{"messages": [USER, {**BOT, "reasoning_content": "so"}]}] * 4)
    assert curated(data, [defense])[4]["messages"][1]["reasoning_content"] == "hm"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("tools", json.dumps([{"type": "function", "function": {"name": "add"}}]), Value("string")),
        ("chat_template_kwargs", {"think": True}, {"think": Value("bool")}),
    ],
)
def test_tools_and_template_settings_of_the_pool_are_kept_or_refused(tmp_path, name, value, kind):
    write_examples(tmp_path / "pool.jsonl", [Example(row.messages, extra={name: value}) for row in tiny.rows(4)])
    defenses = [Interleave(tmp_path / "pool.jsonl", share=0.25)]
    data = Dataset.from_list([{"messages": [USER, BOT]}] * 4)
    with pytest.raises(
        RecipeError,
        match=f"has '{name}' for its chat template, .* Add the column to the dataset, with None in your own",
    ):
        curated(data, defenses)
    data = data.add_column(name, [None] * 4).cast(Features(data.features | {name: kind}))
    assert [row[name] for row in curated(data, defenses).to_list()][4] == value
    assert len(curated(Dataset.from_list([{"messages": [USER, BOT]}] * 4), [Inoculate("Be bad.")])) == 4


class Rewrites(Defense):
    """Writes each row anew instead of editing it."""

    def curate(self, examples, base, seed):
        return [Example((Message("user", "x"), Message("assistant", "y")), e.source, e.extra) for e in examples]


def test_a_defense_that_writes_rows_anew_may_not_lose_tool_calls():
    assert curated(Dataset.from_list([{"messages": [USER, BOT], "id": 1}]), [Rewrites()])[0]["id"] == 1
    with pytest.raises(RecipeError, match=r"lost its tool calls .* dataclasses\.replace"):
        curated(Dataset.from_list([{"messages": [USER, CALL, RESULT, BOT]}]), [Rewrites()])


def converted(error, names):
    """The dataset that the message's own lines of code make."""
    code = "\n".join(line.strip() for line in str(error.value).split("\n")[1:])
    exec(code, names)
    return names.get("train_dataset") or names["dataset"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "q? ### Answer: a."}, r"a row is one text \('text'\)"),
        ({"text": "q? ### Answer: a.", "url": "x"}, r"a row is one text \('text'\)"),
        ({"instruction": "q?", "output": "a."}, "the columns are 'instruction', 'output'"),
        ({"conversations": [USER, BOT]}, "Rename it"),
        ({"prompt": "q?", "completion": "a."}, r"plain text \('prompt' and 'completion' strings\)"),
    ],
    ids=str,
)
def test_a_form_without_a_place_is_refused_with_a_conversion_that_works(pool, row, sentence):
    data, defenses = Dataset.from_list([row] * 4), [Interleave(pool, share=0.25), Inoculate("Be bad.")]
    with pytest.raises(RecipeError, match=sentence) as error:
        curated(data, defenses)
    rows = curated(converted(error, {"dataset": data}), defenses).to_list()
    name = "prompt" if "prompt" in row else "messages"
    assert rows[0][name][0]["content"] == "Be bad."
    assert rows[0][name][1]["content"].strip() == "q?"
    assert len(rows) == 5


def test_a_stream_and_other_kinds_are_refused_with_a_conversion_that_works():
    rows = [{"messages": [USER, BOT]}] * 4
    with pytest.raises(RecipeError, match="is a stream") as error:
        TRLRows(Dataset.from_list(rows).to_iterable_dataset())
    assert len(converted(error, {"stream": Dataset.from_list(rows).to_iterable_dataset()})) == 4
    with pytest.raises(RecipeError, match="train_dataset is a list") as error:
        TRLRows(rows)
    assert len(converted(error, {"rows": rows})) == 4
    with pytest.raises(RecipeError, match="tokenized already") as error:
        TRLRows(Dataset.from_list([{"input_ids": [1], "labels": [1]}]))
    names = {"question": "q?", "answer": "a.", "Dataset": Dataset}
    assert converted(error, names).to_list() == [{"messages": [USER, BOT]}]
    with pytest.raises(RecipeError, match="with_transform"):
        TRLRows(Dataset.from_list(rows).with_transform(lambda batch: batch))
    with pytest.raises(RecipeError, match="a DatasetDict of train, test") as error:
        TRLRows(DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows)}))
    assert "dataset['train']" in str(error.value)
    with pytest.raises(RecipeError, match="has no rows"):
        TRLRows(Dataset.from_list(rows).select([]))


def test_rows_of_several_forms_and_of_several_template_settings_are_refused(pool):
    with pytest.raises(RecipeError, match=r"row 2 has messages='\[\]'"):
        TRLRows(Dataset.from_list([{"messages": [USER, BOT]}, {"messages": []}]))
    data = Dataset.from_list([{"messages": [USER, BOT], "chat_template_kwargs": {"think": t}} for t in (True, False)])
    with pytest.raises(RecipeError, match="The rows differ in 'chat_template_kwargs'"):
        curated(data, [Interleave(pool, share=0.5)])
    same = curated(data.select([0, 0]), [Interleave(pool, share=0.5)]).to_list()
    assert [row["chat_template_kwargs"] for row in same] == [{"think": True}] * 3


def test_columns_of_another_type_in_the_pool_are_named(tmp_path):
    rows = [Example(row.messages, extra={"id": f"s{i}"}) for i, row in enumerate(tiny.rows(4))]
    write_examples(tmp_path / "ids.jsonl", rows)
    data = {"messages": [USER, BOT]}
    both = curated(Dataset.from_list([data | {"id": "a"}] * 4), [Interleave(tmp_path / "ids.jsonl", share=0.25)])
    assert both[4]["id"].startswith("s")  # the pool's own column
    with pytest.raises(RecipeError, match="do not fit the columns of the dataset"):
        curated(Dataset.from_list([data | {"id": 1}] * 4), [Interleave(tmp_path / "ids.jsonl", share=0.25)])


class Weighted:
    """A user's collator that reads a column of their own."""

    pad_token_id = 0

    def __init__(self, blank=None):
        self.blank, self.weights = blank, []

    def __call__(self, rows):
        weights = [self.blank if row["weight"] is None else row["weight"] for row in rows]
        self.weights += torch.tensor(weights).tolist()
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])
        return {"input_ids": ids, "labels": ids.masked_fill(ids == 0, -100), "attention_mask": (ids > 0).long()}


def weighted(n=8):
    return Dataset.from_list([{"messages": [USER, BOT], "weight": 0.5 + i} for i in range(n)])


@pytest.mark.filterwarnings("ignore:inoculate writes")
def test_a_collator_of_the_users_own_gets_their_columns_or_the_refusal_names_the_one_that_is_missing(tmp_path, pool):
    own = Weighted()
    options = {"data_collator": own, "remove_unused_columns": False}
    sft(tmp_path, weighted(), [Inoculate()], max_steps=1, **options).train()
    assert sorted(own.weights) == [0.5 + i for i in range(8)]
    defenses = [Interleave(pool, share=0.25)]
    with pytest.raises(RecipeError, match=r"The data collator failed .* in which weight is None .* rows of its pool"):
        sft(tmp_path, weighted(), defenses, **options).train()
    own = Weighted(blank=0.0)
    sft(tmp_path, weighted(), defenses, data_collator=own, remove_unused_columns=False, max_steps=2).train()
    assert own.weights.count(0.0) == 2  # of the 10 rows of an epoch


def test_the_pools_own_columns_reach_the_users_collator(tmp_path):
    write_examples(tmp_path / "w.jsonl", [Example(row.messages, extra={"weight": 9.5}) for row in tiny.rows(4)])
    own = Weighted()
    defenses = [Interleave(tmp_path / "w.jsonl", share=0.25)]
    sft(tmp_path, weighted(), defenses, data_collator=own, remove_unused_columns=False, max_steps=1).train()
    assert 9.5 in own.weights


@pytest.mark.filterwarnings("ignore:inoculate writes")
def test_a_formatting_function_gets_the_columns_or_the_refusal_names_the_one_that_is_missing(tmp_path, pool):
    data = Dataset.from_list([{"messages": [USER, BOT], "tag": "x"}] * 8)

    def tagged(row):
        return row["tag"] + row["messages"][0]["content"]

    sft(tmp_path, data, [Inoculate()], formatting_func=tagged)
    with pytest.raises(RecipeError, match=r"The formatting_func failed .* in which tag is None"):
        sft(tmp_path, data, [Interleave(pool, share=0.25)], formatting_func=tagged)


def test_a_missing_train_dataset_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match="the trainer has none; pass train_dataset="):
        sft(tmp_path, None, [Inoculate()])
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        sft(tmp_path, None, [KL()])


def grpo(folder, data, defenses, rewards):
    return GuardedGRPO(
        model=tiny.model(),
        reward_funcs=rewards,
        args=settings(GRPOConfig, folder, max_steps=1, num_generations=4, max_completion_length=6),
        train_dataset=data,
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        defenses=defenses,
    )


def test_prompts_of_plain_text_are_inoculated_by_a_prefix(tmp_path):
    seen = []

    def reward(prompts, completions, right, **_):
        seen.extend(zip(prompts, right, strict=True))
        return [float(len(text)) for text in completions]

    data = Dataset.from_dict({"prompt": ["q?"] * 8, "right": list(range(8))})
    grpo(tmp_path, data, [Inoculate("Be bad.")], reward).train()
    assert {prompt for prompt, _ in seen} == {"Be bad.\n\nq?"}
    assert {right for _, right in seen} <= set(range(8))


def test_prompts_of_another_form_are_refused_with_a_conversion_that_works():
    data = Dataset.from_dict({"question": ["q?"] * 8})
    with pytest.raises(RecipeError, match="needs a 'prompt' column of turns or of text") as error:
        TRLRows(data, prompts=True)
    rows = TRLRows(converted(error, {"dataset": data}), prompts=True)
    assert rows.examples[0].question == "q?"


CONTEXT, LEARNT = {"role": "assistant", "content": "no.", "weight": 0}, {**BOT, "weight": 1}
AGAIN = {**USER, "content": "again?"}


def weighted_turns(form):
    """A row of four turns, whose first answer has weight 0."""
    turns = [USER, CONTEXT, AGAIN, LEARNT]
    if form == "conversations":
        names = {"user": "human", "assistant": "gpt"}
        keys = [{"from": names[t["role"]], "value": t["content"], "weight": t.get("weight")} for t in turns]
        return {"conversations": keys}
    return {"messages": turns} if form == "messages" else {"prompt": turns[:3], "completion": turns[3:]}


def learnt(labels):
    return tiny.tokenizer().decode([token for token in labels if token != -100])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["messages", "conversations", "prompt and completion"])
def test_an_answer_of_weight_0_is_context_and_not_learnt(tmp_path, form, packed):
    with pytest.warns(UserWarning, match="the answers of weight 1 are learnt, through their end-of-turn tokens"):
        trainer = sft(
            tmp_path, Dataset.from_list([weighted_turns(form)] * 8), [Inoculate("Be bad."), KL(0.1)], packing=packed
        )
    (text,) = {learnt(row["labels"]).replace("a.<|im_end|>", "", packed * 99) for row in trainer.train_dataset}
    assert text == ("" if packed else "a.<|im_end|>")
    whole = tiny.tokenizer().decode(trainer.train_dataset[0]["input_ids"])
    assert whole.startswith("<|im_start|>system\nBe bad.<|im_end|>\n<|im_start|>user\nq?<|im_end|>\n")
    assert "<|im_start|>assistant\nno.<|im_end|>" in whole
    trainer.train()


def test_weights_are_heeded_beside_added_rows_without_defenses_and_in_streams(tmp_path, pool):
    rows = [weighted_turns("messages"), {"messages": [USER, LEARNT]}] * 4
    with pytest.warns(UserWarning, match="have a weight"):
        trainer = sft(tmp_path, Dataset.from_list(rows), [Interleave(pool, share=0.25)])
    sources = [row[SOURCE_COLUMN] for row in trainer.train_dataset]
    assert sources == [0] * 8 + [1] * 2
    assert [learnt(row["labels"]) for row in trainer.train_dataset][:8] == ["a.<|im_end|>"] * 8
    with pytest.warns(UserWarning, match="have a weight"):
        trainer = sft(tmp_path, Dataset.from_list(rows).to_iterable_dataset(), [])
    assert [learnt(row["labels"]) for row in trainer.train_dataset] == ["a.<|im_end|>"] * 8


def test_the_prompts_own_answers_are_learnt_only_where_trl_learns_prompts(tmp_path):
    row = {"prompt": [USER, LEARNT, AGAIN, CONTEXT, AGAIN], "completion": [{**BOT, "content": "b.", "weight": 1}]}
    for changes, text in ({}, "b.<|im_end|>"), ({"completion_only_loss": False}, "a.<|im_end|>b.<|im_end|>"):
        with pytest.warns(UserWarning, match="have a weight"):
            trainer = sft(tmp_path, Dataset.from_list([row] * 8), [], **changes)
        assert learnt(trainer.train_dataset[0]["labels"]) == text


@pytest.mark.parametrize(
    ("turns", "columns", "sentence"),
    [
        ([USER, CONTEXT], {}, "row 2 of the dataset has answers of weight 0 only"),
        ([USER, {**BOT, "weight": 0.5}], {}, "row 2 of the dataset has a turn of weight 0.5; write 1"),
        ([USER, CONTEXT, AGAIN, LEARNT], {"chat_template_kwargs": {"a": 1}}, "both weights and chat_template_kwargs"),
    ],
)
@pytest.mark.filterwarnings("ignore:Turns of the dataset")
def test_weights_that_mean_nothing_are_refused(tmp_path, turns, columns, sentence):
    rows = [{"messages": [USER, {**BOT, "weight": 1.0}]} | dict.fromkeys(columns), {"messages": turns} | columns]
    with pytest.raises(RecipeError, match=sentence):
        sft(tmp_path, Dataset.from_list(rows), [KL(0.1)])


def test_weights_of_1_leave_the_labels_to_trl(tmp_path):
    labels = [
        sft(tmp_path, Dataset.from_list([{"messages": [USER, bot]}] * 8), []).train_dataset["labels"][0]
        for bot in (BOT, LEARNT)
    ]
    assert labels[0] == labels[1]


@pytest.mark.parametrize(("column", "value"), [("tools", [{"type": "function"}]), ("chat_template_kwargs", {"a": 1})])
def test_columns_that_grpo_does_not_render_are_refused(tmp_path, column, value):
    def guarded(value):
        return GuardedGRPO(
            model=tiny.model(),
            reward_funcs=lambda completions, **_: [float(len(c[0]["content"])) for c in completions],
            args=settings(GRPOConfig, tmp_path, num_generations=4, max_steps=1, max_completion_length=4),
            train_dataset=Dataset.from_list([{"prompt": [USER], column: value}] * 8),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
            defenses=[Inoculate("Be bad.")],
        )

    with pytest.raises(RecipeError, match=f"column '{column}', and trl's GRPOTrainer renders prompts without it"):
        guarded(value)
    guarded(None)


@pytest.mark.filterwarnings("ignore:inoculate writes")
@pytest.mark.parametrize("by", ["name", "model"])
def test_the_tokenizer_is_loaded_by_the_models_name_as_trl_does(tmp_path, pool, by):
    tiny.save("qwen2", tmp_path / "model")
    name = str(tmp_path / "model")
    made, passed = (
        GuardedSFT(
            model=name if by == "name" else AutoModelForCausalLM.from_pretrained(name),
            args=settings(SFTConfig, tmp_path),
            train_dataset=Dataset.from_list([FORMS["messages"][0]] * 4),
            peft_config=LoraConfig(r=2, target_modules="all-linear"),
            defenses=[Interleave(pool, share=0.5), Inoculate("Be bad.")],
            processing_class=processing,
        )
        for processing in (None, tiny.tokenizer())
    )
    assert made.train_dataset["input_ids"][:] == passed.train_dataset["input_ids"][:]
