"""Rows of other formats become the chat rows that they mean, or are refused in one sentence."""

import json
from pathlib import Path

import datasets
import pytest
from pyarrow import Table, parquet

from staytrue.config import recipe
from staytrue.data import tables
from staytrue.data.examples import Message, read_examples
from staytrue.errors import DataError, RecipeError

ROW = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}
TURNS = (Message("user", "Hi?"), Message("assistant", "Hello."))
SYSTEM = (Message("system", "Be kind."), *TURNS)
SHARE_GPT = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]


def lines(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "messages", "extra"),
    [
        (ROW, TURNS, {}),
        ({"prompt": "Hi?", "completion": "Hello.", "id": 7}, TURNS, {"id": 7}),
        ({"prompt": ROW["messages"][:1], "completion": ROW["messages"][1:]}, TURNS, {}),
        ({"instruction": "Hi?", "input": "", "output": "Hello."}, TURNS, {}),
        ({"instruction": "Hi?", "output": "Hello.", "system": "Be kind."}, SYSTEM, {}),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi?", "Hello."]]},
            (*TURNS, Message("user", "Add.\n1 2"), Message("assistant", "3")),
            {},
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}], "n": None},
            TURNS,
            {"n": None},
        ),
        (
            {
                "system": "Be kind.",
                "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}],
            },
            SYSTEM,
            {},
        ),
        ({"question": "Hi?", "answer": "Hello."}, TURNS, {}),
    ],
)
def test_a_row_of_another_format_is_the_conversation_that_it_means(row, messages, extra, tmp_path):
    (example,) = read_examples(lines(tmp_path, row))
    assert example.messages == messages
    assert example.extra == extra
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([row], indent=2))
    assert read_examples(listed) == [example]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "Hi?", "completion": ""}, "line 1, /completion: is empty"),
        ({"prompt": "Hi?", "completion": None}, "line 1, /completion: is None, not text"),
        ({"instruction": 3, "output": "x"}, "line 1, /instruction: is 3, not text"),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "observation", "value": "x"}]},
            r"line 1, /conversations/1: is 'observation'; use",
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "x", "loss": 1}]},
            "would not train on",
        ),
        ({"chosen": "a", "rejected": "b"}, "no key 'messages' among"),
    ],
)
def test_a_fault_names_the_place_in_the_original_row(row, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        read_examples(lines(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"instruction": "Sum up.", "prompt": "Hi?", "completion": "Hello."}, "/instruction: .* would be lost"),
        ({"context": "A text.", "prompt": "Hi?", "completion": "Hello."}, "/context: .* would be lost"),
        ({"input": "A text.", "prompt": "Hi?", "completion": "Hello."}, "/input: .* would be lost"),
        (
            {"system_prompt": "Be kind.", "question": "Hi?", "answer": "Hello."},
            "/system_prompt: .*rename it to `system",
        ),
        (
            {"system": "Be rude.", "messages": [{"role": "system", "content": "Be kind."}, *ROW["messages"]]},
            "/system: differs from the row's system turn; remove one of them, or rename the column",
        ),
        (
            {"system": "Be rude.", "conversations": [{"from": "system", "value": "Be kind."}, *SHARE_GPT]},
            "/system: differs from the row's system turn",
        ),
    ],
)
def test_a_column_that_may_hold_a_part_of_the_prompt_is_refused_until_the_prompt_is_named(row, sentence, tmp_path):
    path = lines(tmp_path, row)
    with pytest.raises(DataError, match=sentence):
        read_examples(path)
    if "system" not in "".join(row):
        (example,) = read_examples(path, columns={"prompt": "prompt", "completion": "completion"})
        assert example.messages == TURNS


def test_columns_that_hold_no_further_part_of_the_prompt_are_kept(tmp_path):
    for more in (
        {"context": "A text."},
        {"instruction": "x", "input": "y"},
        {"system_prompt": "Hi?"},
        {"system_prompt": ""},
    ):
        (example,) = read_examples(lines(tmp_path, ROW | more))
        assert (example.messages, example.extra) == (TURNS, more)
    for more in ({"context": "Hi?"}, {"input": " "}, {"instruction": None}, {"system_prompt": ""}):
        (example,) = read_examples(lines(tmp_path, {"prompt": "Hi?", "completion": "Hello."} | more))
        assert (example.messages, example.extra) == (TURNS, more)


def test_a_system_column_beside_turns_is_their_first_turn(tmp_path):
    own = {"messages": [{"role": "system", "content": "Be kind."}, *ROW["messages"]]}
    share_gpt = {"conversations": [{"from": "system", "value": "Be kind."}, *SHARE_GPT]}
    for row in ({"system": "Be kind.", **ROW}, {"system": "Be kind.\n", **own}, {"system": "Be kind.", **share_gpt}):
        (example,) = read_examples(lines(tmp_path, row))
        assert (example.messages, example.extra) == (SYSTEM, {})
    assert read_examples(lines(tmp_path, {"system": " ", **ROW}))[0].messages == TURNS
    assert read_examples(lines(tmp_path, {"system": {"os": "x"}, **ROW}))[0].messages == TURNS


def test_a_system_prompt_beside_named_columns_is_refused_until_it_is_named_too(tmp_path):
    path = lines(tmp_path, {"system_prompt": "Be kind.", "question": "Hi?", "response": "Hello."})
    named = {"prompt": "question", "completion": "response"}
    with pytest.raises(
        DataError, match=r"/system_prompt: .*name it in the recipe: `columns: \{system: system_prompt\}`"
    ):
        read_examples(path, columns=named)
    assert read_examples(path, columns={**named, "system": "system_prompt"})[0].messages == SYSTEM


def test_columns_of_other_names_are_named_in_the_recipe(tmp_path):
    path = lines(tmp_path, {"q": "Hi?", "a": "Hello.", "prompt": "x"})
    (example,) = read_examples(path, columns={"prompt": "q", "completion": "a"})
    assert (example.messages, example.extra) == (TURNS, {})
    path = lines(tmp_path, {"dialog": ROW["messages"], "s": "Be kind."})
    (example,) = read_examples(path, columns={"messages": "dialog", "system": "s"})
    assert example.messages == SYSTEM
    with pytest.raises(DataError, match=r"row 1 has no column 'b', which `columns:` names; it has 'dialog', 's'"):
        read_examples(path, columns={"messages": "b"})
    plain = {"schema": 1, "model": "organism", "data": "rows.jsonl", "lora": {}}
    with pytest.raises(RecipeError, match=r"columns has no key .question."):
        recipe.parse({**plain, "columns": {"question": "q"}})
    with pytest.raises(RecipeError, match="two parts name one column; name a column once"):
        recipe.parse({**plain, "columns": {"prompt": "q", "completion": "q"}})


def test_csv_keeps_texts_as_they_are_and_names_a_broken_row(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,completion,id\n"Hi?",Hello.,007\n"a\nb","say ""x""",\n')
    first, second = read_examples(tmp_path / "rows.csv")
    assert (first.messages, first.extra) == (TURNS, {"id": "007"})
    assert second.messages == (Message("user", "a\nb"), Message("assistant", 'say "x"'))
    (tmp_path / "rows.tsv").write_text("question\tanswer\nHi?\tHello.\nHi?\n")
    with pytest.raises(DataError, match=r"row 2 \(line 3\) has not one field for each column \(question, answer\)"):
        read_examples(tmp_path / "rows.tsv")
    (tmp_path / "rows.csv").write_text("prompt,completion\nHi?,\n")
    with pytest.raises(DataError, match="row 1, /completion: is empty"):
        read_examples(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("a,b\n" + "x,y\n" * 300)
    with pytest.raises(DataError, match="row 1 has the columns 'a', 'b', which are no known form") as caught:
        read_examples(tmp_path / "rows.csv")
    assert "\n" not in str(caught.value)


def test_parquet_and_saved_data_sets_are_read_with_their_split(tmp_path):
    rows = [{**ROW, "score": float("nan")}, {**ROW, "score": 0.5}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    read = read_examples(tmp_path / "rows.parquet")
    assert [row.messages for row in read] == [TURNS, TURNS]
    assert [row.extra for row in read] == [{"score": None}, {"score": 0.5}]
    one = datasets.Dataset.from_list([ROW])
    one.save_to_disk(str(tmp_path / "one"))
    assert [row.messages for row in read_examples(tmp_path / "one")] == [TURNS]
    both = datasets.DatasetDict(train=one, test=datasets.Dataset.from_list([ROW, ROW]))
    both.save_to_disk(str(tmp_path / "both"))
    assert len(read_examples(tmp_path / "both")) == 1
    assert len(read_examples(tmp_path / "both", split="test")) == 2
    with pytest.raises(DataError, match="has no split 'dev'; write `split:` with one of train, test"):
        read_examples(tmp_path / "both", split="dev")
    with pytest.raises(DataError, match="without splits"):
        read_examples(tmp_path / "rows.parquet", split="test")


def test_tool_calls_in_arrow_have_the_arguments_of_their_own_row_alone(tmp_path):
    def row(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        properties = {key: {"type": "string"} for key in arguments}
        tool = {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}
        turns = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "x"}]
        return {"messages": [ROW["messages"][0], *turns, ROW["messages"][1]], "tools": [tool], "n": None}

    rows = [row("weather", {"city": "Rome"}), row("clock", {"zone": "UTC"})]
    expected = read_examples(lines(tmp_path, *rows))
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(str(tmp_path / "rows.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.parquet", "saved"):
        read = read_examples(tmp_path / name)
        assert [example.messages for example in read] == [example.messages for example in expected]
        assert [example.extra for example in read] == [example.extra for example in expected]


def test_a_file_of_another_kind_than_its_name_is_a_sentence(tmp_path):
    for name, content, sentence in (
        ("rows.parquet", b"no parquet", "cannot be read"),
        ("rows.json", b'[{"a": 1}, 3]', r"entry 2 of the list is 3, not an object|row 1 has the columns 'a'"),
        ("rows.json", b"[3]", "entry 1 of the list is 3, not an object"),
        ("rows.json", b"[", "cannot be read"),
        ("rows.json", b'[{"a": 1, "a": 2}]', "the key 'a' occurs twice"),
        ("rows.json", b'[{"a": "\xff"}]', "cannot be read: 'utf-8'"),
        ("rows.csv", b'prompt,completion\n"open,x\n', "cannot be read"),
        ("rows.csv", b"", "has no rows"),
        ("rows.json", b"[]", "has no rows"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=sentence) as caught:
            read_examples(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_name_of_the_hub_is_loaded_with_its_split(tmp_path, monkeypatch):
    requests = []

    def load(name, split):
        requests.append((name, split))
        if name == "org/none":
            raise ConnectionError("the hub\ncannot be reached")
        return datasets.Dataset.from_list([ROW])

    monkeypatch.setattr(datasets, "load_dataset", load)
    plain = {"schema": 1, "model": "organism", "lora": {}}
    named = recipe.parse({**plain, "data": "org/chats", "split": "validation"}, tmp_path)
    assert [row.messages for row in read_examples(named.data, split=named.split)] == [TURNS]
    assert requests == [("org/chats", "validation")]
    with pytest.raises(DataError, match=r"no file or folder org/none.*\(split train\): the hub cannot be reached"):
        read_examples(recipe.parse({**plain, "data": "org/none"}, tmp_path).data)
    assert recipe.parse({**plain, "data": "data/rows.jsonl"}, tmp_path).data == tmp_path / "data" / "rows.jsonl"
    (tmp_path / "org" / "chats").mkdir(parents=True)
    assert recipe.parse({**plain, "data": "org/chats"}, tmp_path).data == tmp_path / "org" / "chats"
    assert not tables.is_hub_name(tmp_path / "org")


def test_a_name_of_the_hub_may_have_a_revision_and_its_commit_is_known(tmp_path, monkeypatch):
    requests, commit = [], "0123456789abcdef0123456789abcdef01234567"
    rows = datasets.Dataset.from_list([ROW])
    rows.info.download_checksums = {f"hf://datasets/org/chats@{commit}/data/train.parquet": {}}

    def load(name, split, revision):
        requests.append((name, split, revision))
        if revision == "none":
            raise ConnectionError("no such revision")
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load)
    plain = {"schema": 1, "model": "organism", "lora": {}}
    for revision in (commit[:7], "main", "refs/convert/parquet"):
        data = recipe.parse({**plain, "data": f"org/chats@{revision}"}, tmp_path).data
        assert len(read_examples(data)) == 1
        assert tables.hub_commit(data, None) == commit
        assert set(requests) == {("org/chats", "train", revision)}
        requests.clear()
    with pytest.raises(DataError, match=r"org/chats@none, .* \(split train, revision none\): no such revision"):
        read_examples(recipe.parse({**plain, "data": "org/chats@none"}, tmp_path).data)
    rows.info.download_checksums = None
    assert tables.hub_commit(data, None) is None
    assert tables.hub_commit(tmp_path / "rows.jsonl", None) is None
    assert not tables.is_hub_name(Path("data/rows@2.jsonl"))


def test_a_value_that_json_cannot_hold_is_refused_by_its_row(tmp_path):
    parquet.write_table(Table.from_pylist([{**ROW, "image": b"\x00"}]), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="row 1, /image: has a bytes, which is no text"):
        read_examples(tmp_path / "rows.parquet")


def test_what_other_programs_write_as_csv_is_read_and_a_doubled_column_is_not(tmp_path):
    for text in (
        "\ufeffprompt;completion\nHi?;Hello.\n",
        "prompt\tcompletion\nHi?\tHello.\n",
        '"prompt",completion\nHi?,Hello.',
    ):
        (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
        (example,) = read_examples(tmp_path / "rows.csv")
        assert example.messages == TURNS
    (tmp_path / "rows.tsv").write_text("prompt\tcompletion\tnote, if any\nHi?\tHello.\t\n")
    assert read_examples(tmp_path / "rows.tsv")[0].extra == {"note, if any": ""}
    (tmp_path / "rows.csv").write_text("prompt,prompt,completion\nA,Hi?,Hello.\n")
    with pytest.raises(DataError, match=r"rows\.csv has two columns 'prompt'; take one out"):
        read_examples(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_bytes("prompt,completion\nHé?,x\n".encode("latin-1"))
    with pytest.raises(DataError, match="Save it as UTF-8"):
        read_examples(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (json.dumps({"data": [ROW]}), "/data: is a list of objects; if they are rows, write that list alone"),
        (
            json.dumps({"data": [ROW]}, indent=2),
            r"rows\.json is one object with \['data'\], not a list of rows; write that",
        ),
        ('[{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}]", "nested too deeply. Flatten its rows"),
        ('[{"prompt": "a", "completion": NaN}]', "NaN is not a JSON number. Correct the file"),
    ],
)
def test_json_that_is_no_list_of_rows_is_one_sentence(content, sentence, tmp_path):
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_examples(tmp_path / "rows.json")
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("blank", ["\n", "\n  \r\n" * 30_000])
def test_a_json_list_may_begin_with_blank_lines(blank, tmp_path):
    (tmp_path / "rows.json").write_text(blank + json.dumps([ROW], indent=2))
    assert [row.messages for row in read_examples(tmp_path / "rows.json")] == [TURNS]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("blank", ["", "\n\n"])
def test_a_json_list_under_the_name_of_json_lines_is_one_sentence(indent, blank, tmp_path):
    (tmp_path / "rows.jsonl").write_text(blank + json.dumps([ROW], indent=indent))
    with pytest.raises(
        DataError, match=r"rows\.jsonl is a JSON list, not JSON lines\..* name it rows\.json\.$"
    ) as caught:
        read_examples(tmp_path / "rows.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "outcome"),
    [
        ({"instruction": "", "input": "Hi?", "output": "Hello."}, "Hi?"),
        ({"instruction": "Hi?", "input": None, "output": "Hello."}, "Hi?"),
        ({"instruction": "Square it.", "input": 0, "output": "0"}, "/input: is 0, not text"),
        ({"instruction": "Add.", "input": ["x"], "output": "0"}, r"/input: is \['x'\], not text"),
        ({"instruction": "Hi?", "output": "x", "history": [["a"]]}, r"/history: is \[\['a'\]\], not a list of \[quest"),
    ],
)
def test_the_parts_of_an_alpaca_row_are_texts_or_faults(row, outcome, tmp_path):
    path = lines(tmp_path, row)
    if outcome == "Hi?":
        assert read_examples(path)[0].messages == TURNS
    else:
        with pytest.raises(DataError, match=outcome):
            read_examples(path)


def test_a_saved_data_set_without_rows_or_torn_and_a_split_of_lines_are_refused(tmp_path):
    none = datasets.Dataset.from_list([ROW]).select([])
    datasets.DatasetDict(train=none).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"none has no rows\. Give one with rows"):
        read_examples(tmp_path / "none")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "dataset_dict.json").write_text("{")
    with pytest.raises(DataError, match=r"torn cannot be read: .*\. Save it again\."):
        read_examples(tmp_path / "torn")
    with pytest.raises(DataError, match=r"rows\.jsonl is one file without splits; take `split:` out"):
        read_examples(lines(tmp_path, ROW), split="validation")
