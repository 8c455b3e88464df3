"""The reader answers for a file before any library sees it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staytrue.data.examples import Example, Message, read_examples, write_examples
from staytrue.data.row_checks import is_blank
from staytrue.errors import DataError

ROW = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


def turns(*roles):
    return {"messages": [{"role": r, "content": r} for r in roles]}


def answered(**answer):
    return {"messages": [ROW["messages"][0], {**ROW["messages"][1], **answer}]}


def write(folder, *lines):
    path = folder / "rows.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


def test_a_row_keeps_its_turns_and_its_other_columns(tmp_path):
    (row,) = read_examples(write(tmp_path, {**ROW, "license": "CC0", "n": 3}))
    assert row.question == "hi"
    assert row.answer == "ho"
    assert row.prompt == (Message("user", "hi"),)
    assert row.extra == {"license": "CC0", "n": 3}


@pytest.mark.parametrize(
    ("line", "pointer", "what"),
    [
        (b"{", "line 2:", "is not JSON"),
        (b"[1]", "line 2:", "is [1], not an object"),
        (b'{"messages": [], "messages": []}', "line 2:", "the key 'messages' occurs twice in one object; take one out"),
        (b'{"messages": NaN}', "line 2:", "NaN is not a JSON number; write null, or a number"),
        (b'{"x": 1e999, "messages": []}', "line 2:", "'1e999' is too large for a number; write a smaller number"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "line 2:", "nested more than 32 levels"),
        (b'{"messages": "\xff"}', "line 2:", "is not UTF-8 (byte 0xff at 14)"),
        (b'{"x": "' + b"a" * (1 << 20) + b'"}', "line 2:", "longer than 1,048,576 bytes"),
        ({"text": "hi"}, "line 2:", "no key 'messages' among ['text']"),
        ({"messages": "hi"}, "/messages:", "is 'hi', not a list of turns"),
        ({"messages": []}, "/messages:", "is [], not a list of turns"),
        ({"messages": ["hi"]}, "/messages/0:", "is 'hi'; a turn is"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "/messages/0/role:",
            "is 'bot'; use system, user, assistant or tool",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "/messages/0/content:", "is 3, not text"),
        ({"messages": [{"role": "user"}]}, "/messages/0/content:", "is None, not text"),
        (turns("assistant"), "/messages/0/role:", "'assistant' where user belongs"),
        (turns("user", "user"), "/messages/1/role:", "'user' where assistant belongs"),
        (turns("user", "system", "assistant"), "/messages/1/role:", "'system' where assistant belongs"),
        (turns("system"), "/messages:", "has a system turn only"),
        (turns("user"), "/messages/0:", "the row ends without an answer"),
        (
            {"messages": [ROW["messages"][0], {"role": "assistant", "content": " \n"}]},
            "/messages/1/content:",
            "is empty",
        ),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "/messages/0/content:", "half of a surrogate pair"),
        (answered(content="\u200b\ufeff"), "/messages/1/content:", "is empty ('\\u200b\\ufeff')"),
        ({"messages": [{"role": "system", "content": " "}, *ROW["messages"]]}, "/0/content:", "take the turn out"),
        (answered(weight=2), "/messages/1/weight:", "is 2; write 1 for an answer to learn and 0 for context"),
        (answered(weight=0), "/messages:", "has answers of weight 0 only"),
        (answered(tool_calls=[{"name": "look"}]), "/messages/1/tool_calls:", "write a list of"),
        (answered(reasoning_content=""), "/messages/1/reasoning_content:", "is empty (''); write something or take"),
        (answered(audio={}), "/messages/1/audio:", "is a key that staytrue would not train on"),
        ({"messages": [{**ROW["messages"][0], "weight": 1}]}, "/messages/0/weight:", "would not train on"),
        (turns("user", "tool", "assistant"), "/messages/1/role:", "'tool' where assistant belongs"),
        ({**ROW, "tools": "hammer"}, "/tools:", "is not JSON"),
    ],
)
def test_a_fault_is_reported_with_line_pointer_and_correction(tmp_path, line, pointer, what):
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, ROW, line, ROW))
    message = str(caught.value)
    assert "line 2" in message
    assert pointer in message
    assert what in message
    assert "line 1" not in message
    assert "line 3" not in message


def test_every_fault_is_reported_at_once_a_hundred_different_ones_and_a_count(tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, *[{f"x{i}": 1} for i in range(250)]))
    lines = str(caught.value).splitlines()
    assert "has 250 faults" in lines[0]
    assert len(lines) == 102
    assert lines[-1].strip() == "... and 150 more"


def test_a_fault_of_many_lines_is_written_once_with_its_first_lines(tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(write(tmp_path, {"x": 1}, ROW, turns("user"), *[{"x": 1}] * 248))
    first, *others = str(caught.value).splitlines()
    assert first.endswith("has 250 faults:")
    assert [line.partition(": ")[0].strip() for line in others] == ["lines 1, 4, 5 and 246 more", "line 3, /messages/0"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "has no rows"),
        (b"\n\n", "has no rows"),
        (b"\xef\xbb\xbf{}", "byte-order mark"),
        ("{}".encode("utf-16"), "is UTF-16"),
        (b"\x1f\x8b\x08\x00", "is gzip"),
        (b"PAR1....", "is Parquet"),
    ],
)
def test_another_kind_of_file_is_named(tmp_path, content, what):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=what):
        read_examples(tmp_path / "rows.jsonl")


def test_a_missing_file_and_a_folder_are_sentences(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="is a folder"):
        read_examples(tmp_path)


def test_prompts_may_be_questions_and_need_no_answer(tmp_path):
    path = write(tmp_path, {"question": "why?"}, turns("user"), ROW)
    assert [row.question for row in read_examples(path, prompts_only=True)] == ["why?", "user", "hi"]
    with pytest.raises(DataError, match="/question: is empty"):
        read_examples(write(tmp_path, {"question": " "}), prompts_only=True)


@pytest.mark.parametrize(
    ("row", "said", "extra"),
    [
        ({"prompt": "why?"}, "user why?", {}),
        ({"prompt": "why?", "answer": "so", "system": "be brief"}, "system be brief user why?", {"answer": "so"}),
        ({"prompt": turns("system", "user")["messages"], "id": 7}, "system system user user", {"id": 7}),
        ({"question": "why?", "answer": "so"}, "user why?", {"answer": "so"}),
        ({"instruction": "Sum up.", "input": "A text."}, "user Sum up.\nA text.", {}),
        ({"instruction": "why?", "system": "be brief", "history": []}, "system be brief user why?", {}),
    ],
)
def test_where_a_prompt_is_enough_its_column_alone_is(tmp_path, row, said, extra):
    (read,) = read_examples(write(tmp_path, row), prompts_only=True)
    assert " ".join(f"{turn.role} {turn.content}" for turn in read.messages) == said
    assert dict(read.extra) == extra
    with pytest.raises(DataError):
        read_examples(write(tmp_path, row | {"answer": None}))


def test_a_prompt_may_have_the_datas_own_name(tmp_path):
    path = write(tmp_path, {"problem": "1 + 1?", "answer": "2"})
    (read,) = read_examples(path, prompts_only=True, columns={"prompt": "problem"})
    assert (read.question, read.answer, dict(read.extra)) == ("1 + 1?", "", {"answer": "2"})


@pytest.mark.parametrize(
    "other",
    [
        {"question": "other", "answer": "a"},
        {"messages": turns("user", "assistant")["messages"]},
        {"conversations": [{"from": "human", "value": "other"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "other", "output": "a"},
        {"context": "other"},
    ],
)
def test_a_prompt_that_is_named_counts_whatever_other_columns_there_are(tmp_path, other):
    path = write(tmp_path, {"problem": "1 + 1?", "solution": "2"} | other)
    (read,) = read_examples(path, prompts_only=True, columns={"prompt": "problem"})
    assert [turn.content for turn in read.messages] == ["1 + 1?"]
    (read,) = read_examples(path, columns={"prompt": "problem", "completion": "solution"})
    assert [turn.content for turn in read.messages] == ["1 + 1?", "2"]
    with pytest.raises(DataError):  # to learn an answer, it has to be named too
        read_examples(path, columns={"prompt": "problem"})


def test_a_named_answer_belongs_to_the_question(tmp_path):
    path = write(tmp_path, {"question": "1 + 1?", "solution": "2"})
    (read,) = read_examples(path, columns={"completion": "solution"})
    assert [turn.content for turn in read.messages] == ["1 + 1?", "2"]


def test_rows_with_a_part_of_their_prompt_elsewhere_are_refused_where_answers_are_learnt_too(tmp_path):
    for row in ({"question": "Who?", "answer": "he"}, {"instruction": "Sum up.", "output": "So."}):
        assert len(read_examples(write(tmp_path, row | {"context": ""}))) == 1
        with pytest.raises(DataError, match="/context: may be a part of the prompt"):
            read_examples(write(tmp_path, row | {"context": "A text."}))


def test_the_way_out_of_a_prompt_in_two_columns_fits_the_file(tmp_path):
    path = write(tmp_path, {"question": "Who?", "context": "A text."})
    with pytest.raises(DataError, match=r"or name the prompt in the recipe: `columns: \{prompt: ...\}`$"):
        read_examples(path, columns={})  # a recipe's `data`
    with pytest.raises(DataError, match=r"join the columns or remove one, or write the row as `messages`$"):
        read_examples(path, prompts_only=True)
    messages = turns("user") | {"context": "A text."}
    assert len(read_examples(write(tmp_path, {"prompt": "A text. Who?"}, messages), prompts_only=True)) == 2


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"columns": {}}, r"Name them in the recipe: `columns: \{prompt: ..., completion: ...\}` or"),
        ({}, r"Rename them to `prompt` and `completion`, or to `messages`\."),
        ({"prompts_only": True}, r"Rename the prompt's column to `prompt`, or write `messages`\."),
    ],
)
def test_the_way_out_of_unknown_columns_fits_the_file(tmp_path, options, way):
    (tmp_path / "rows.csv").write_text("asked,said\nWhy?,So.\n")
    with pytest.raises(DataError, match=f"row 1 has the columns 'asked', 'said', which are no known form .* {way}"):
        read_examples(tmp_path / "rows.csv", **options)


@pytest.mark.parametrize("empty", ["", None, " ", []])
@pytest.mark.parametrize(
    "row",
    [
        lambda answer: {"question": "why?", "answer": answer},
        lambda answer: {"prompt": "why?", "completion": answer},
        lambda answer: {"instruction": "why?", "input": "", "output": answer},
        lambda answer: {"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": answer}]},
        lambda answer: {"prompt": turns("user")["messages"], "completion": [{"role": "assistant", "content": answer}]},
        lambda answer: {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": answer}]},
    ],
    ids=["question", "prompt", "instruction", "messages", "turns", "conversations"],
)
def test_an_empty_last_answer_is_left_out_where_prompts_are_read_and_refused_where_it_is_learnt(tmp_path, row, empty):
    path = write(tmp_path, row(empty))
    (read,) = read_examples(path, prompts_only=True)
    assert ([turn.role for turn in read.messages], read.answer) == (["user"], "")
    with pytest.raises(DataError, match=r"is empty|not text"):
        read_examples(path)


def test_an_answer_of_calls_alone_is_kept_where_prompts_are_read(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    path = write(tmp_path, {"messages": [{"role": "user", "content": "why?"}, answer]})
    (read,) = read_examples(path, prompts_only=True)
    assert len(read.messages) == 2


def test_a_question_beside_other_forms_is_the_prompt(tmp_path):
    row = {"question": "why?", "answer": "so", "prompt": "other", "completion": "other"}
    (read,) = read_examples(write(tmp_path, row), prompts_only=True)
    assert ([turn.content for turn in read.messages], read.extra["answer"]) == (["why?"], "so")


@pytest.mark.parametrize(
    ("row", "pointer", "what"),
    [
        ({"prompt": 3}, "/prompt:", "is 3, not text"),
        ({"prompt": [{"role": "user"}]}, "/prompt/0:", "is None, not text"),
        ({"instruction": " "}, "/instruction:", "is empty"),
        ({"question": "half \ud800"}, "/question:", "half of a surrogate pair"),
        ({"prompt": []}, "/prompt:", "is [], not text"),
        ({"instruction": "Sum up.", "context": "A text.", "response": "So."}, "/context:", "join the columns"),
        ({"question": "Who?", "context": "A text.", "answer": "he"}, "/context:", "or write the row as `messages`"),
        ({"prompt": "Below is ...", "instruction": "Sum up.", "input": "A text."}, "/instruction:", "would be lost"),
        ({"instruction": "why?", "history": "x"}, "/history:", "is 'x', not a list of [question, answer]"),
        ({"text": "why?", "context": "x"}, "line 1:", "no key 'messages' among"),
        (
            {"text": "why?"},
            "line 1:",
            'a row is {"messages": [{"role": "user", "content": "..."}]} or {"prompt": "..."}',
        ),
    ],
)
def test_a_fault_of_a_prompt_names_its_column(tmp_path, row, pointer, what):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        read_examples(tmp_path / "rows.jsonl", prompts_only=True)
    assert pointer in str(caught.value)
    assert what in str(caught.value)


def test_rows_that_are_the_same_to_a_model_have_one_identity():
    messages = (Message("user", "q"), Message("assistant", "a"))
    row = Example(messages, extra={"tools": TOOLS})
    assert row.identity == Example(messages, "rehearse", {"tools": json.dumps(TOOLS), "id": 7}).identity
    others = [
        Example(messages),
        Example(messages, extra={"tools": []}),
        Example((*messages[:1], Message("assistant", "b"))),
    ]
    weighted = Example((messages[0], Message("assistant", "a", weight=0)))
    assert [row.identity == other.identity for other in others] == [False] * 3
    assert others[0].identity == others[1].identity != weighted.identity


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALLED = {
    "messages": [
        {"role": "user", "content": "What is up?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": 0},
        {"role": "tool", "content": "clouds", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Clouds.", "reasoning_content": "I see clouds.", "weight": 1},
    ],
    "tools": TOOLS,
}


def test_tool_calls_reasoning_and_weights_are_read_and_written_again(tmp_path):
    (row,) = read_examples(write(tmp_path, CALLED))
    assert [(m.role, m.content, m.weight) for m in row.messages] == [
        ("user", "What is up?", 1),
        ("assistant", "", 0),
        ("tool", "clouds", 1),
        ("assistant", "Clouds.", 1),
    ]
    assert row.tools == TOOLS
    assert row.messages[1].to_template() == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{**CALL, "function": {"name": "look", "arguments": {"at": "sky"}}}],
    }
    assert row.messages[3].to_dict() == {
        "role": "assistant",
        "content": "Clouds.",
        "reasoning_content": "I see clouds.",
    }
    write_examples(tmp_path / "again.jsonl", [row])
    assert read_examples(tmp_path / "again.jsonl") == [row]


nonblank = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not is_blank(text))
conversations = st.tuples(st.booleans(), st.lists(st.tuples(nonblank, nonblank), min_size=1, max_size=3)).map(
    lambda drawn: (
        (Message("system", "be"),) * drawn[0]
        + tuple(m for q, a in drawn[1] for m in (Message("user", q), Message("assistant", a)))
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=4))
def test_what_is_written_is_read_again(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    examples = [Example(row) for row in rows]
    write_examples(path, examples)
    assert read_examples(path) == examples


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["messages", "role", "content"]), x),
    ).map(lambda v: json.dumps(v).encode())
)
def test_whatever_the_bytes_the_answer_is_rows_or_a_data_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(content)
    try:
        rows, refusal = read_examples(path), ""
    except DataError as error:
        rows, refusal = [], str(error)
    assert rows or str(path) in refusal
