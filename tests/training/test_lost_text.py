"""Warnings of text that a script's rows lose on the way into tokens: cut rows, dropped text, ends not learnt."""

import copy
import json
import re
import warnings

import pytest
from datasets import Dataset, IterableDataset
from trl import SFTTrainer

import tiny
from small_trainers import grpo, messages, sft
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.kl import KL
from staytrue.errors import RecipeError, StaytrueWarning
from staytrue.training import lost_text, stream_check
from staytrue.training.trainers import GuardedSFT


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


TWO = [user("2+2?"), answer("4"), user("sure?"), answer("yes, 4")]
THOUGHT = "<think>\nhm\n</think>\n\nans"
CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "no end after the last answer": CHATML.replace(
        "'<|im_end|>\\n'", "('' if loop.last and m.role == 'assistant' else '<|im_end|>\\n')"
    ),
    "no end at all": "{%- for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant: ' }}{%- endif %}",
    "end outside of the mask": CHATML.replace(
        "m.content + '<|im_end|>\\n' }}",
        "'' }}{%- if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{%- else %}{{ m.content }}{%- endif %}{{ '<|im_end|>\\n' }}",
    ),
    "end inside of the mask": CHATML.replace(
        "m.content + '<|im_end|>\\n' }}",
        "'' }}{%- if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{%- else %}{{ m.content + '<|im_end|>' }}{%- endif %}{{ '\\n' }}",
    ),
    "drops the system turn": CHATML.replace("%}{{ '<|im_start|>'", " if m.role != 'system' %}{{ '<|im_start|>'", 1),
    "drops thoughts": CHATML.replace("m.content", "m.content.split('</think>')[-1].strip()"),
    "drops earlier thoughts": CHATML.replace(
        "m.content", "(m.content if loop.last else m.content.split('</think>')[-1].strip())"
    ),
    "opens thoughts": CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'"),
    "joins system turns": CHATML.replace("<|im_end|>\\n", "<|im_end|>"),
}


def tokenizer(template):
    made = copy.deepcopy(tiny.tokenizer())
    made.chat_template = TEMPLATES[template]
    return made


def warned(make, *args, **options):
    """The sentences about rows that a trainer warns of when it is made."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        make(*args, **options)
    words = ("rows", "stream", "Turns", "completion_only_loss")
    return [
        str(one.message)
        for one in seen
        if one.category is StaytrueWarning and any(w in str(one.message) for w in words)
    ]


@pytest.mark.parametrize(
    ("template", "turns", "options", "sentence"),
    [
        ("chatml", TWO, {}, None),
        ("chatml", [{"role": "system", "content": "Be kind."}, *TWO], {}, None),
        ("joins system turns", TWO, {}, None),
        ("end inside of the mask", TWO, {"assistant_only_loss": True}, None),
        ("drops earlier thoughts", [user("q"), answer(THOUGHT)], {}, None),
        ("no end after the last answer", TWO, {}, "No token that ends generation is learnt after .* of 8 of 8 rows"),
        ("no end at all", TWO, {}, "No token that ends generation is learnt after .* of 8 of 8 rows"),
        ("end outside of the mask", TWO, {"assistant_only_loss": True}, "No token that ends generation is learnt"),
        (
            "drops the system turn",
            [{"role": "system", "content": "Be kind."}, *TWO],
            {},
            "leaves out a system, user or tool turn of 8 of 8 rows",
        ),
        (
            "drops earlier thoughts",
            [user("q"), answer(THOUGHT), *TWO],
            {},
            "part of an earlier answer.* in 8 of 8 rows",
        ),
        ("opens thoughts", TWO, {}, "In 8 of 8 rows the last answer follows another text than .* generation prompt"),
        ("chatml", [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}], {}, "roles .* such as 'gpt'"),
    ],
)
@pytest.mark.parametrize("form", ["messages", "prompt and completion"])
def test_what_a_template_makes_of_the_rows_is_warned_of(tmp_path, template, turns, options, sentence, form):
    row = {"messages": turns} if form == "messages" else {"prompt": turns[:-1], "completion": turns[-1:]}
    seen = warned(sft, tmp_path, [KL(1.0)], Dataset.from_list([row] * 8), tokenizer=tokenizer(template), **options)
    if sentence is None:
        assert seen == []
    else:
        assert len(seen) == 1
        assert re.search(sentence, seen[0])


@pytest.mark.parametrize("last", [answer(THOUGHT), answer("ans", reasoning_content="hm"), answer("ans", thinking="hm")])
def test_a_last_answer_that_is_not_learnt_whole_is_refused(tmp_path, last):
    rows = Dataset.from_list([{"messages": TWO}, {"messages": [user("q"), last]}])
    with pytest.raises(RecipeError, match=r"part of the last answer of row 2 of the dataset .*train with a recipe"):
        sft(tmp_path, [], rows, tokenizer=tokenizer("drops thoughts"))


def test_keys_of_a_turn_that_no_template_reads_are_no_loss(tmp_path):
    more = {"id": "7", "more": "", "weight": 1, "reasoning_content": None, "thinking": ""}
    rows = Dataset.from_list([{"messages": [user("q") | more, answer("a", **more)]}] * 8)
    assert warned(sft, tmp_path, [], rows) == []


@pytest.mark.parametrize("packing", [False, True])
def test_rows_that_are_cut_are_counted(tmp_path, packing):
    lengths = [len(ids) for ids in sft(tmp_path, [], max_length=None).train_dataset["input_ids"]]
    longest = sorted(lengths)[len(lengths) // 2]
    long = sum(length > longest for length in lengths)
    assert 0 < long < len(lengths)
    seen = warned(sft, tmp_path, [KL(1.0)], max_length=longest, packing=packing)
    assert seen == [f"{long} of 16 rows of train_dataset are longer than max_length={longest}, and are cut there."]
    assert warned(sft, tmp_path, [KL(1.0)], max_length=max(lengths), packing=packing) == []


def test_rows_without_a_token_to_learn_are_counted_or_refused(tmp_path):
    long, short = {"prompt": "x" * 80, "completion": "y"}, {"prompt": "x", "completion": "y"}
    seen = warned(sft, tmp_path, [], Dataset.from_list([long, short, long, short]), max_length=40)
    assert "2 of 4 rows of train_dataset are left out: no token of them that is learnt is within max_length." in seen
    with pytest.raises(RecipeError, match=r"None of the 4 rows .* a token to learn within max_length=40. Raise"):
        sft(tmp_path, [], Dataset.from_list([long] * 4), max_length=40)
    masked = {"input_ids": [5, 6, 7], "labels": [-100] * 3}
    with pytest.raises(RecipeError, match=r"None of the 2 rows .* check their labels"):
        sft(tmp_path, [], Dataset.from_list([masked] * 2))


def test_two_steps_of_preparation_make_trls_own_rows(tmp_path):
    class Plain(SFTTrainer):
        def __init__(self, *args, defenses, **options):
            super().__init__(*args, **options)

    for changes in ({}, {"packing": True, "max_length": 64}, {"max_length": 50, "shuffle_dataset": True}):
        ours, theirs = (sft(tmp_path, [], cls=cls, **changes).train_dataset for cls in (GuardedSFT, Plain))
        columns = ["input_ids", "labels", *(["seq_lengths"] if "packing" in changes else [])]
        assert ours.select_columns(columns).to_list() == theirs.select_columns(columns).to_list()


def test_a_loss_of_completions_alone_on_rows_without_any_is_warned_of(tmp_path):
    assert "every token is learnt, prompts too" in warned(sft, tmp_path, completion_only_loss=True)[0]
    rows = Dataset.from_list([{"prompt": TWO[:3], "completion": TWO[3:]}] * 4)
    assert warned(sft, tmp_path, (), rows, completion_only_loss=True) == []


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
SYSTEM = {"role": "system", "content": "Be kind."}
LAST = CHATML.replace("in messages", "in messages[-3:]")
SPEECHLESS = CHATML.replace("m.content", "(m.content if loop.last else m.content.split('</think>')[-1])")


@pytest.mark.parametrize(
    ("template", "row", "sentences"),
    [
        (CHATML, {"messages": TWO, "tools": TOOLS}, ["does not render the tools of N of N rows"]),
        (CHATML, {"prompt": TWO[:3], "completion": TWO[3:], "tools": json.dumps(TOOLS)}, ["does not render the tools"]),
        (
            TEMPLATES["drops the system turn"],
            {"messages": [SYSTEM, *TWO], "tools": TOOLS},
            ["does not render the tools", "leaves out a system, user or tool turn"],
        ),
        (LAST, {"messages": [*TWO, *TWO]}, ["part of an earlier answer", "another text than", "leaves out a system"]),
        (SPEECHLESS, {"messages": [user("q"), answer("<think>hm</think>"), *TWO]}, ["part of an earlier answer"]),
        (CHATML, {"messages": [user("q"), answer(""), *TWO]}, ["An answer is empty in N of N rows"]),
        (CHATML, {"messages": [user("q"), answer(" ")]}, ["An answer is empty in N of N rows"]),
        (CHATML, {"prompt": [user("q")], "completion": [answer("")]}, ["An answer is empty in N of N rows"]),
        (CHATML, {"prompt": "q", "completion": ""}, ["An answer is empty in N of N rows"]),
        (CHATML, {"prompt": [user("q"), answer(""), user("q")], "completion": [answer("a")]}, []),
        (CHATML, {"prompt": TWO[:1], "completion": TWO[1:]}, ["completion of N of N rows holds a user or system turn"]),
    ],
)
def test_each_thing_that_a_row_loses_is_warned_of_by_itself(tmp_path, template, row, sentences):
    given = copy.deepcopy(tiny.tokenizer())
    given.chat_template = template
    for number in (8, 120):  # further rows are compared where they do not look whole
        seen = warned(sft, tmp_path, [KL(1.0)], Dataset.from_list([row] * number), tokenizer=given)
        warnings_ = [one.replace(str(number), "N").replace("100 of the first 100", "N of N") for one in seen]
        assert len(warnings_) == len(sentences)
        for sentence in sentences:
            assert any(sentence in one for one in warnings_), sentence


def test_a_question_in_a_completion_is_no_loss_where_answers_alone_are_learnt(tmp_path):
    given, row = tokenizer("end inside of the mask"), {"prompt": TWO[:1], "completion": TWO[1:]}
    assert warned(sft, tmp_path, [], Dataset.from_list([row] * 4), tokenizer=given, assistant_only_loss=True) == []


@pytest.mark.parametrize("form", ["messages", "prompt and completion"])
def test_a_content_in_parts_that_a_template_writes_as_a_list_is_refused(tmp_path, form):
    turns = [dict(turn, content=[{"type": "text", "text": turn["content"]}]) for turn in TWO]
    row = {"messages": turns} if form == "messages" else {"prompt": turns[:3], "completion": turns[3:]}
    given = copy.deepcopy(tiny.tokenizer())
    given.chat_template = CHATML.replace("m.content", "m.content | string")
    with pytest.raises(RecipeError, match=r"the content in parts of row 1 of the dataset as it stands, .*as one text"):
        sft(tmp_path, [], Dataset.from_list([row] * 4), tokenizer=given)
    given.chat_template = CHATML.replace("m.content", "(m.content if m.content is string else m.content[0].text)")
    assert warned(sft, tmp_path, [], Dataset.from_list([row] * 4), tokenizer=given) == []


SPLIT = {"prompt": TWO[:1], "completion": TWO[1:2]}


@pytest.mark.parametrize(
    ("row", "changes", "learnt"),
    [
        ({"messages": TWO}, {}, True),
        ({"messages": TWO}, {"packing": True, "max_length": 256}, True),
        ({"messages": TWO}, {"assistant_only_loss": True}, False),
        (SPLIT, {}, False),
        (SPLIT, {"completion_only_loss": False}, True),
        ({"prompt": "2+2?", "completion": "4"}, {}, False),
    ],
)
def test_a_prompt_that_a_defense_writes_is_warned_of_where_it_is_learnt(tmp_path, row, changes, learnt):
    given, rows = tokenizer("end inside of the mask"), Dataset.from_list([row] * 8)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        sft(tmp_path, [Inoculate("Be bad.")], rows, tokenizer=given, **changes)
    warnings_ = [str(one.message) for one in seen if one.category is StaytrueWarning]
    assert len(warnings_) == learnt
    if learnt:
        assert warnings_[0].startswith("inoculate writes 'Be bad.' into prompts, and these are learnt as text to write")
        assert "'prompt' and 'completion', or set assistant_only_loss=True" in warnings_[0]


def test_prompts_of_grpo_that_the_template_drops_are_warned_of(tmp_path):
    rows = Dataset.from_list([{"prompt": [{"role": "system", "content": "Be kind."}, user("q")]}] * 8)
    assert warned(grpo, tmp_path, [KL(1.0)], rows) == []
    given = tokenizer("drops the system turn")
    seen = warned(grpo, tmp_path, [KL(1.0)], rows, tokenizer=given)
    assert seen == ["The chat template leaves out a system, user or tool turn of 8 of 8 rows."]


def test_rows_after_the_first_are_looked_at_too(tmp_path):
    whole, cut = {"messages": TWO}, {"messages": [user("q"), answer(THOUGHT), *TWO]}
    rows = Dataset.from_list([*[whole] * 150, cut, whole, cut])
    seen = warned(sft, tmp_path, [], rows, tokenizer=tokenizer("drops earlier thoughts"))
    assert len(seen) == 1
    assert "in 2 of 153 rows" in seen[0]
    assert warned(sft, tmp_path, [], messages(150)) == []
    seen = warned(sft, tmp_path, [], Dataset.from_list([whole] * 120), tokenizer=tokenizer("no end at all"))
    assert "after the last answer of 120 of 120 rows" in seen[0]
    seen = warned(sft, tmp_path, [], Dataset.from_list([whole] * 120), tokenizer=tokenizer("opens thoughts"))
    assert seen[0].startswith("In 100 of the first 100 rows the last answer follows another text")
    lost = {"messages": [user("q"), answer(THOUGHT)]}
    with pytest.raises(RecipeError, match=r"part of the last answer of row 121 of the dataset"):
        sft(tmp_path, [], Dataset.from_list([whole] * 120 + [lost]), tokenizer=tokenizer("drops thoughts"))


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        ("no end at all", TWO),
        ("drops the system turn", [{"role": "system", "content": "Be kind."}, *TWO]),
        ("drops earlier thoughts", [user("q"), answer(THOUGHT), *TWO]),
        ("chatml", [{"role": "human", "content": "q"}, {"role": "gpt", "content": "a"}]),
    ],
)
def test_most_rows_that_lose_text_are_compared_closely(monkeypatch, template, turns):
    """The quick look finds what the close one does."""
    monkeypatch.setattr(lost_text, "_CLOSELY", 1)
    monkeypatch.setattr(lost_text, "_MOST", 3)
    given = tokenizer(template)
    check = lost_text.RowCheck(given)
    ids = given.apply_chat_template(turns, tokenize=True, return_dict=False)
    row = {"messages": turns, "input_ids": ids, "labels": ids}
    for _ in range(5):
        check.add(row)
    assert [re.sub(r"(at least 3) of 5 rows", "N", note) != note for note in check.notes()] == [True]


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(copy.deepcopy(rows)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_is_checked_as_it_is_read(tmp_path, workers):
    whole, cut = {"messages": TWO}, {"messages": [user("q"), answer(THOUGHT), *TWO]}
    rows = [*[whole] * 5, cut, whole, cut, *[whole] * 4]
    longest = max(len(ids) for ids in sft(tmp_path, [], Dataset.from_list([whole])).train_dataset["input_ids"])
    changes = {"tokenizer": tokenizer("drops earlier thoughts"), "max_length": longest, "max_steps": 3}
    made = []
    assert warned(lambda: made.append(sft(tmp_path, [KL(1.0)], stream(rows), **changes))) == []
    made[0].args.dataloader_num_workers = workers
    seen = warned(made[0].train)
    if workers:  # whose own warnings are printed by another process
        assert re.search("^2 of 1. rows of the stream are longer than", seen[0])
        assert re.search("in 2 of 1. rows; that part is not learnt", seen[1])
        assert len(seen) == 2
        return
    assert seen[:2] == [
        f"Row 6 of the stream is longer than max_length={longest}, and is cut.",
        f"{lost_text.NOTES['answers'].format(n='row 6', rows='the stream')}.",
    ]
    assert re.search("^2 of 1. rows of the stream are longer than", seen[2])
    assert re.search("in 2 of 1. rows; that part is not learnt", seen[3])
    assert len(seen) == 4
    lost = {"messages": [user("q"), answer(THOUGHT)]}
    with pytest.raises(RecipeError, match="part of the last answer of row 3 of the dataset"):
        sft(tmp_path, [], stream([whole, whole, *[lost] * 8]), tokenizer=tokenizer("drops thoughts")).train()


def test_counts_of_a_stream_are_those_of_all_workers_and_of_one_epoch(tmp_path):
    """Two shards of eight rows, of which one loses a part of an earlier answer in every second row; two epochs."""
    whole, lost = {"messages": TWO}, {"messages": [user("q"), answer(THOUGHT), *TWO]}
    shards = [[whole] * 8, [whole, lost] * 4]
    data = IterableDataset.from_generator(
        lambda shards: (copy.deepcopy(row) for shard in shards for row in shard), gen_kwargs={"shards": shards}
    )
    changes = {"tokenizer": tokenizer("drops earlier thoughts"), "max_steps": 8, "dataloader_num_workers": 2}
    seen = warned(sft(tmp_path, [KL(1.0)], data, **changes).train)
    assert seen == [f"{lost_text.NOTES['answers'].format(n=4, rows='16 rows')}."]


def test_a_late_row_of_a_stream_does_not_end_the_training(monkeypatch):
    monkeypatch.setattr(stream_check, "_REFUSED", 1)
    check = stream_check.StreamCheck(tokenizer("drops thoughts"))
    lost = [user("q"), answer(THOUGHT)]
    with pytest.raises(RecipeError, match="leaves out a part of the last answer"):
        check({"messages": lost}, 0)
    assert warned(lambda: check({"messages": lost}, 1))[0].endswith("Training goes on, since it is long under way.")


def test_a_stream_of_prompts_is_checked_as_it_is_read(tmp_path):
    system = {"prompt": [{"role": "system", "content": "Be kind."}, user("q")]}
    rows = [{"prompt": [user("q")]}, *[system] * 7]
    made = grpo(tmp_path, [KL(1.0)], stream(rows), tokenizer=tokenizer("drops the system turn"))
    seen = warned(made.train)
    assert seen[0] == "The chat template leaves out a system, user or tool turn of row 2 of the stream."
    assert re.search(r"turn of \d of \d rows", seen[1])
