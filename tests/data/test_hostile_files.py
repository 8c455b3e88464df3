"""Files that a user may bring, broken or meant to break: each gets its fixed verdict within 5 s and 256 MiB."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from staytrue.data.examples import Example, Message, read_examples, write_examples
from staytrue.data.row_notes import row_notes
from staytrue.errors import DataError

BOM = b"\xef\xbb\xbf"


def row(question="hi", answer="ho", **columns):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **columns}).encode()


def lines(*rows, end=b"\n"):
    return b"".join(one + end for one in rows)


def nested(depth, opened=b'{"a":', closed=b"}"):
    return opened * depth + b"1" + closed * depth


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", b" " * (64 << 20))
    return buffer.getvalue()


def parquet():
    import pyarrow
    from pyarrow import parquet as writer

    buffer = io.BytesIO()
    writer.write_table(pyarrow.table({"text": ["a" * 1000] * 100_000}), buffer, compression="zstd")
    return buffer.getvalue()


def twenty_megabytes(**columns):
    return row("a" * (20 << 20), **columns)


ROW = row()
LONG = "line {}: is longer than 1,048,576 bytes; split or shorten the row"
DEEP = "line {}: is nested more than 32 levels deep; flatten the row"
HALF = "half of a surrogate pair, which no tokenizer can read; write the whole character"
BLANK_LINES = b"\n" * 1_000_000
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def turns(*pairs):
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]}).encode()


CASES = {
    # lengths
    "a line of 20 MB": (lambda: lines(ROW, twenty_megabytes(), ROW), LONG.format(2)),
    "a line of 20 MB without an end": (lambda: lines(ROW) + twenty_megabytes(), LONG.format(2)),
    "a line of 20 MB in CRLF": (lambda: lines(twenty_megabytes(), ROW, end=b"\r\n"), LONG.format(1)),
    "20 MB of blanks in a line": (lambda: lines(b" " * (20 << 20), ROW), LONG.format(1)),
    "20 MB of brackets": (lambda: lines(ROW, b"[" * (20 << 20)), LONG.format(2)),
    "two lines of 20 MB": (lambda: lines(twenty_megabytes(), twenty_megabytes()), "2 faults"),
    "a million empty lines": (lambda: BLANK_LINES, "has no rows"),
    "a million empty lines and a row": (lambda: BLANK_LINES + ROW, "accepted 1 rows"),
    "a million empty lines and a fault": (lambda: BLANK_LINES + b"{", "line 1000001: is not JSON"),
    "a million empty lines in CRLF": (lambda: b"\r\n" * 1_000_000 + b"[]", r"line 1000001: is \[\], not an object"),
    "a million wrong rows": (
        lambda: b"{}\n" * 1_000_000,
        r"has 10,000 faults or more:\n  lines 1, 2, 3 and 9,997 more: no key 'messages' among \[\]; .*$"),
    "a million lines that are no JSON": (
        lambda: b"{\n" * 1_000_000, r"has 10,000 faults or more:\n  lines 1, 2, 3 and 9,997 more: is not JSON: .*$"),
    "a row with 340,000 wrong turns": (
        lambda: lines(b'{"messages": [' + b"1, " * 340_000 + b"1]}"), r"line 1, /messages/0: is 1; a turn is"),
    "a row with 80,000 empty turns": (
        lambda: lines(b'{"messages": [' + b'{"a": 1},' * 80_000 + b"{}]}"), "line 1, /messages/0/a: is a key"),
    "a row with 340,000 lists": (
        lambda: lines(b'{"messages": [' + b"[]," * 340_000 + b"[]]}"), r"/messages/0: is \[\]; a turn is"),
    "a row with 60,000 columns and one twice": (
        lambda: lines(json.dumps({f"column {i}": 1 for i in range(45_000)}).encode()[:-1] + b', "column 44999": 1}'),
        "line 1: is not JSON: the key 'column 44999' occurs twice"),
    "a key of a megabyte twice": (
        lambda: lines(b'{"' + b"a" * 500_000 + b'": 1, "' + b"a" * 500_000 + b'": 1}'),
        r"the key '\w+\.\.\. occurs twice"),
    "a wrong key of a megabyte": (
        lambda: lines(b'{"messages": [{"role": "user", "content": "a", "' + b"b" * 900_000 + b'": 1}]}'),
        r"/messages/0/b{57}\.\.\.: is a key"),
    # ends of lines and encodings
    "no final newline": (lambda: ROW, "accepted 1 rows"),
    "CRLF": (lambda: lines(ROW, ROW, end=b"\r\n"), "accepted 2 rows"),
    "CRLF without the last": (lambda: ROW + b"\r\n" + ROW, "accepted 2 rows"),
    "CR alone": (lambda: lines(ROW, ROW, end=b"\r"), "line 1: is not JSON: Extra data at column"),
    "a byte-order mark": (lambda: BOM + lines(ROW), "begins with a byte-order mark. Save it as plain UTF-8"),
    "a byte-order mark in CRLF": (lambda: BOM + lines(ROW, end=b"\r\n"), "begins with a byte-order mark"),
    "a byte-order mark alone": (lambda: BOM, "begins with a byte-order mark"),
    "a byte-order mark in line 2": (
        lambda: lines(ROW, BOM + ROW),
        "line 2: is not JSON: it begins with a byte-order mark"),
    "UTF-16": (lambda: lines(ROW).decode().encode("utf-16"), "is UTF-16, not JSON lines in UTF-8"),
    "UTF-16, big end first": (lambda: b"\xfe\xff" + ROW.decode().encode("utf-16-be"), "is UTF-16, not JSON lines"),
    "UTF-16 without a mark": (lambda: ROW.decode().encode("utf-16-le"), "is UTF-16, UTF-32 or no text"),
    "UTF-32": (lambda: ROW.decode().encode("utf-32"), "is UTF-32, not JSON lines in UTF-8"),
    "Latin-1": (lambda: lines(ROW, '{"é": 1}'.encode("latin-1")), r"line 2: is not UTF-8 \(byte 0xe9 at 2\)"),
    "a surrogate in UTF-8": (lambda: lines(b'{"a": "\xed\xa0\x80"}'), r"line 1: is not UTF-8 \(byte 0xed at 7\)"),
    "an overlong slash": (lambda: lines(b'{"a": "\xc0\xaf"}'), r"line 1: is not UTF-8 \(byte 0xc0 at 7\)"),
    # characters
    "a lone surrogate": (lambda: lines(ROW, row("a\ud800")), f"line 2, /messages/0/content: holds {HALF}"),
    "a lone surrogate in another column": (lambda: lines(row(note="\udc00")), f"line 1, /note: holds {HALF}"),
    "a lone surrogate in a nested column": (lambda: lines(row(a={"b": ["\udc00"]})), f"line 1, /a: holds {HALF}"),
    "a lone surrogate in a column's name": (lambda: lines(row(**{"\ud800": 1})), rf"line 1, /\\ud800: holds {HALF}"),
    "a lone surrogate in a turn's key": (
        lambda: lines(b'{"messages": [{"role": "user", "content": "a", "\\ud800": 1}]}'),
        r"/messages/0/\\ud800: is a key"),
    "a pair of surrogates": (lambda: lines(row("\U0001f600")), "accepted 1 rows"),
    "a terminal's escapes in a key": (
        lambda: lines(b'{"messages": [{"role": "user", "content": "a", "\\u001b[2J\\n": 1}]}'),
        r"/messages/0/\\x1b\[2J\\n: is a key"),
    "a slash in a key": (
        lambda: lines(b'{"messages": [{"role": "user", "content": "a", "b/c~d": 1}]}'),
        "/messages/0/b~1c~0d: is a key"),
    "a NUL byte": (lambda: lines(ROW, b'{"a": "\0"}'), "line 2: is not JSON: Invalid control character at"),
    "a file of NULs": (lambda: b"\0" * 1_000_000, "is UTF-16, UTF-32 or no text"),
    "a NUL as an escape": (
        lambda: lines(ROW, row("a\0b")),
        r"accepted 2 rows\. 1 of 2 rows have a NUL .* asks 'a.x00b'"),
    "bidirectional text": (
        lambda: lines(row("\u202eolleh"), ROW),
        r"accepted 2 rows\. 1 of 2 rows have .*direction of text.*'.u202eolleh'"),
    "Hebrew, which needs no such characters": (lambda: lines(row("שלום")), r"accepted 1 rows\.$"),
    "invisible text": (lambda: lines(row("\u200b\u2060")), "line 1, /messages/0/content: is empty"),
    "100,000 combining marks": (lambda: lines(row("a" + "\u0301" * 100_000)), "accepted 1 rows"),
    # nesting
    "2,000 levels": (lambda: lines(ROW, nested(2000), ROW), DEEP.format(2)),
    "100,000 levels": (lambda: lines(nested(100_000)), DEEP.format(1)),
    "100,000 levels that are not closed": (lambda: lines(b"[" * 100_000), DEEP.format(1)),
    "2,000 levels and a key twice": (lambda: lines(b'{"a": 1, "a": ' + nested(2000) + b"}"), DEEP.format(1)),
    "2,000 levels in a content": (
        lambda: lines(b'{"messages": [{"role": "user", "content": ' + nested(2000, b"[", b"]") + b"}]}"),
        DEEP.format(1)),
    "2,000 brackets in a text": (lambda: lines(row("[" * 2000)), "accepted 1 rows"),
    # keys, ids and numbers
    "a key twice": (lambda: lines(ROW, ROW[:-1] + b', "messages": []}'), "line 2: .*the key 'messages' occurs twice"),
    "a nested key twice": (
        lambda: lines(b'{"messages": [{"role": "user", "role": "system", "content": "a"}]}'),
        "the key 'role' occurs twice"),
    "an escaped key twice": (lambda: lines(b'{"a": 1, "\\u0061": 2}'), "line 1: .*the key 'a' occurs twice"),
    "an id twice": (
        lambda: lines(row(id=1), row(id=1)),
        r"accepted 2 rows\. 2 of 2 rows have an `id` that another row"),
    "an id twice, and direction": (
        lambda: lines(row("\u2066a", id="x"), row(id="x")),
        "accepted 2 rows.*direction of text.*`id`"),
    "NaN": (lambda: lines(ROW, row(x=float("nan"))), "line 2: is not JSON: NaN is not a JSON number"),
    "Infinity and a key twice": (lambda: lines(b'{"a": -Infinity, "a": 1}'), "-Infinity is not a JSON number"),
    "10^400 as a float": (lambda: lines(b'{"x": 1e400}'), "line 1: is not JSON: '1e400' is too large for a number"),
    "10^400 in digits": (lambda: lines(ROW, b'{"x": 1' + b"0" * 400 + b"}"), "line 2: .*is too large for a number"),
    "minus 10^400 in digits": (lambda: lines(b'{"x": -1' + b"0" * 400 + b"}"), "line 1: .*is too large for a number"),
    "a million digits": (lambda: lines(b'{"x": ' + b"9" * 1_000_000 + b"}"), "line 1: .*is too large for a number"),
    "a million zeros": (lambda: lines(b'{"x": 0.' + b"0" * 1_000_000 + b"1}"), "line 1: no key 'messages'"),
    "2^63": (lambda: lines(row(x=1 << 63)), "accepted 1 rows"),
    "10^300 as a weight": (
        lambda: lines(row()[:-3] + b', "weight": 1e300}]}'), r"line 1, /messages/1/weight: is 1e\+300"),
    # types and roles
    "mixed types": (
        lambda: lines(turns(("user", 3)), turns(("user", ["a"])), turns((3, "a")), b"null"),
        r"line 1, /\S*content: is 3, not text(.|\n)*line 2, .* is \['a'\](.|\n)*line 3, .*role: is 3(.|\n)*e 4"),
    "NaN and mixed types": (lambda: lines(b'{"messages": [NaN, 3]}'), "NaN is not a JSON number"),
    "a role of an unknown name": (lambda: lines(turns(("root", "a"))), "/messages/0/role: is 'root'; use system, user"),
    "a role in capitals": (lambda: lines(turns(("User", "a"), ("assistant", "b"))), "/messages/0/role: is 'User'"),
    "a look-alike role": (lambda: lines(turns(("usеr", "a"))), "/messages/0/role: is 'us.r'; use"),
    "a role that is a list": (lambda: lines(turns((["user"], "a"))), r"/messages/0/role: is \['user'\]"),
    "an empty answer": (lambda: lines(turns(("user", "a"), ("assistant", ""))), "/messages/1/content: is empty"),
    "an empty question in CRLF": (
        lambda: lines(ROW, turns(("user", " "), ("assistant", "a")), end=b"\r\n"),
        "line 2, /messages/0/content: is empty"),
    "no turns": (lambda: lines(turns()), r"line 1, /messages: is \[\], not a list of turns"),
    # other kinds of files
    "nothing": (lambda: b"", "has no rows"),
    "a gzip bomb": (lambda: gzip.compress(b"\n" * (64 << 20)), "is gzip, not JSON lines in UTF-8. Unpack or convert"),
    "a zip bomb": (zipped, "is a zip archive or an Excel workbook, not JSON lines"),
    "a Parquet bomb": (parquet, "is Parquet, not JSON lines"),
    "a Zstandard file": (lambda: b"\x28\xb5\x2f\xfd\x04", "is Zstandard"),
    "an xz file": (lambda: b"\xfd7zXZ\0", "is xz"),
    "a bzip2 file": (lambda: b"BZh91AY", "is bzip2"),
    "a pickle": (lambda: b"\x80\x04\x95", "is a pickle"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n", r"line 1: is not UTF-8 \(byte 0x89 at 0\)"),
}  # fmt: skip

TABLES = {
    "list of 20 MB in an entry.json": (lambda: b"[" + twenty_megabytes() + b"]", "entry 1 of the list is longer than"),
    "list of 20 MB of brackets.json": (lambda: b"[" * (20 << 20), "cannot be read: it is nested too deeply"),
    "list of 20 MB of lists.json": (lambda: b"[" + b"[]," * 7_000_000 + b"[]]", r"entry 1 of the list is \[\], not an"),
    "list of a deep row.json": (
        lambda: b"[" + ROW[:-1] + b', "a": ' + nested(100) + b"}]", "row 1: is nested more than 32 levels deep"),
    "list with a key twice.json": (lambda: b"[" + ROW + b',{"a": 1, "a": 2}]', "entry 2 of the list: the key 'a' occ"),
    "list with 10^400.json": (
        lambda: b'[{"a": 1' + b"0" * 400 + b"}]",
        "entry 1 of the list: .*too large for a number"),
    "list that is cut.json": (lambda: b"[" + ROW + b",", "entry 2 of the list is not JSON"),
    "list without an end.json": (lambda: b"[" + ROW, "after entry 1 of the list belongs a comma or the list's end"),
    "list and more.json": (lambda: b"[" + ROW + b"] 1", "something follows the list"),
    "list with a byte-order mark.json": (lambda: BOM + b"[" + ROW + b"]", "begins with a byte-order mark"),
    "list of rows.json": (lambda: b"[" + b",\n".join([ROW] * 20_000) + b"]\n", "accepted 20000 rows"),
    "list with half a character.json": (lambda: b"[" + row(note="\udc00") + b"]", "row 1, /note: holds half of a surr"),
    "gzip.json": (lambda: gzip.compress(ROW), "is gzip"),
    "line of 20 MB.csv": (lambda: b"question,answer\n" + b"a" * (20 << 20), "line 2 is longer than 1,048,576 bytes"),
    "header of 20 MB.csv": (lambda: b"a," * (10 << 20), "line 1 is longer than 1,048,576 bytes"),
    "header with 100,000 columns.csv": (
        lambda: ",".join(f"c{i}" for i in range(100_000)).encode() + b",c99999\n", "two columns 'c99999'"),
    "quote without an end.csv": (lambda: b'question,answer\n"' + b"a\n" * (2 << 20), "field larger than field limit"),
    "UTF-16.csv": (lambda: "question,answer\na,b\n".encode("utf-16"), "Save it as UTF-8"),
    "CRLF and a byte-order mark.csv": (lambda: BOM + b"question,answer\r\na,b\r\n", "accepted 1 rows"),
}  # fmt: skip

NAMES = {name: f"{i}.jsonl" for i, name in enumerate(CASES)} | {
    name: f"t{i}{Path(name).suffix}" for i, name in enumerate(TABLES)
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """The verdict on every file, each read in a limited process of its own."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in {**CASES, **TABLES}.items():
        (folder / NAMES[name]).write_bytes(make())
    script = Path(__file__).with_name("limited_reader.py")
    source = Path(sys.modules["staytrue"].__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script, *(folder / file for file in NAMES.values())],
        env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    shutil.rmtree(folder)  # 400 MB
    return dict(zip(NAMES, map(json.loads, done.stdout.splitlines()), strict=True)), folder


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_gets_its_fixed_verdict_within_its_limits(verdicts, name):
    read, folder = verdicts
    expected = {**CASES, **TABLES}[name][1]
    accepted = expected.startswith("accepted")
    assert read[name]["verdict"].startswith("accepted" if accepted else f"refused: {folder / NAMES[name]}")
    assert re.search(expected, read[name]["verdict"]), read[name]["verdict"][:500]
    assert len(read[name]["verdict"]) < 20_000
    assert read[name]["verdict"].isprintable() or not accepted
    assert read[name]["seconds"] < 5
    assert read[name]["peak"] < 256 << 20


def test_each_note_names_the_first_row_and_counts():
    rows = [
        Example((Message("user", q),), extra={"id": i}) for q, i in (("a", 1), ("b\u202e", 2), ("c\0", 1), ("d", True))
    ]
    direction, nul, ids = row_notes(rows)
    assert direction.startswith("1 of 4 rows have characters that change the direction")
    assert direction.endswith(r"the first one asks 'b\u202e'.")
    assert nul.startswith("1 of 4 rows have a NUL character")
    assert ids == "2 of 4 rows have an `id` that another row has too; the first one asks 'a'."
    assert row_notes(rows[:1]) == []


texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["", " ", "\u200b", "\ud800", "\0", "\u202e"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
one_turn = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "User", 3]), "content": texts | values},
    optional={"weight": values, "tool_calls": values, "name": values, "thinking": values},
)
forms = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(one_turn, max_size=4) | values,
        "conversations": values,
        "prompt": texts | values,
        "completion": texts | values,
        "history": values,
        "instruction": texts | values,
        "output": texts | values,
        "input": values,
        "system": values,
        "tools": values,
        "id": values,
    },
)
one_line = (
    forms.map(lambda value: json.dumps(value).encode())
    | values.map(lambda value: json.dumps(value, ensure_ascii=True).encode())
    | st.binary(max_size=40)
    | st.sampled_from([ROW, b"", b" ", b"{", BOM, b"\xff", b'{"a": 1, "a": 2}', nested(60), b'{"x": 1e999}'])
)
files = st.tuples(st.lists(one_line, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans())


def check_reader(folder, drawn, suffix=".jsonl"):
    """Whatever the bytes: rows that are written and read again as they are, or a sentence with the file's name."""
    rows, end, last = drawn
    path = folder / f"rows{suffix}"
    path.write_bytes(end.join(rows) + (end if last else b""))
    try:
        read = read_examples(path)
    except DataError as error:
        assert str(error).encode().startswith(str(path).encode())  # noqa: PT017
        return
    write_examples(folder / "again.jsonl", read)
    assert read_examples(folder / "again.jsonl") == read
    for row_ in read:
        assert [turn.to_template() for turn in row_.messages]
    row_notes(read)


@settings(max_examples=300, deadline=None)
@given(files, st.sampled_from([".jsonl", ".json", ".csv"]))
def test_whatever_the_lines_are_the_answer_is_whole_rows_or_a_sentence(tmp_path_factory, drawn, suffix):
    check_reader(tmp_path_factory.getbasetemp(), drawn, suffix)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=20_000, deadline=None)
@given(files, st.sampled_from([".jsonl", ".json", ".csv"]))
def test_twenty_thousand_files(tmp_path_factory, drawn, suffix):
    check_reader(tmp_path_factory.getbasetemp(), drawn, suffix)
