"""The run folder: whole files, rows that survive a torn line, and a manifest that says how it ended."""

import json

import pytest

from staytrue.errors import RequestError
from staytrue.utils.files import append_row, read_rows, refuse_existing, sha256_of, write_atomic
from staytrue.utils.run_dir import RunDir


def test_a_torn_last_line_is_left_out_and_the_rest_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"a": 1})
    append_row(path, {"a": 2})
    with path.open("a") as file:
        file.write('{"a": 3')
    assert read_rows(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"a" 1}', "line 3 is no JSON: Expecting ':' delimiter at column 6"),
        ("null", "line 3 is null, not an object"),
        ("[1]", r"line 3 is \[1\], not an object"),
        ('{"a": NaN}', "line 3 is no JSON: NaN is not a JSON number"),
        ("[" * 100_000, "line 3 is no JSON: "),
        ("\ufeff{}", "line 3 begins with a byte-order mark; save the file as plain UTF-8"),
    ],
    ids=lambda text: text[:10],
)
def test_a_damaged_line_is_named_by_its_number_in_the_file(tmp_path, line, fault):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n\n{line}\n{{"a": 2}}\n')  # the second line is blank, and no row
    with pytest.raises(ValueError, match=fault):
        read_rows(path)


def test_writing_whole_leaves_no_scratch_file_and_replaces(tmp_path):
    write_atomic(tmp_path / "x" / "f", "one")
    write_atomic(tmp_path / "x" / "f", "two")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["f"]
    assert (tmp_path / "x" / "f").read_text() == "two"


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_row(tmp_path / "rows.jsonl", {"loss": float("nan")})


@pytest.mark.parametrize(
    ("error", "state"), [(KeyboardInterrupt(), "stopped"), (RuntimeError("boom"), "failed"), (None, "done")]
)
def test_the_manifest_says_how_the_run_ended(tmp_path, error, state):
    run = RunDir.create(tmp_path / "run", {"seed": 1})
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "running"
    try:
        with run.until_done():
            if error is not None:
                raise error
    except type(error):
        pass
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["state"] == state
    assert manifest.get("reason") == ("RuntimeError: boom" if state == "failed" else None)
    assert manifest["schema"] == 1


def test_an_existing_folder_is_refused_but_an_empty_one_is_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    refuse_existing(tmp_path / "empty", allow_empty_folder=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(RequestError, match="exists already"):
        refuse_existing(tmp_path / "full", allow_empty_folder=True)
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="exists already"):
        refuse_existing(tmp_path / "file", allow_empty_folder=True)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no manifest\.json"):
        RunDir.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        *(({key: None}, f"it has null as '{key}', not an object") for key in ("versions", "model", "data", "logs")),
        ({"rows": [1]}, r"it has \[1\] as 'rows', not an object"),
        ({"start": "x"}, "it has \"x\" as 'start', not an object"),
        ({"id": 3}, "it has 3 as 'id', not text"),
        ({"early_stop": "x"}, "it has \"x\" as 'early_stop', not an object or null"),
    ],
    ids=str,
)
def test_a_manifest_with_a_value_of_another_kind_is_refused_with_the_key_and_the_value(tmp_path, change, fault):
    RunDir.create(tmp_path / "run", {"data": {}, "early_stop": None, **change})
    with pytest.raises(RequestError, match=rf"manifest\.json cannot be read \({fault}\)\. Restore it, or train"):
        RunDir.open(tmp_path / "run")


def test_a_key_of_the_manifest_that_is_needed_and_missing_is_named(tmp_path):
    RunDir.create(tmp_path / "run", {"data": {}})
    assert RunDir.open(tmp_path / "run", "data").manifest["data"] == {}
    with pytest.raises(RequestError, match=r"manifest\.json cannot be read \(it has no 'model'\)"):
        RunDir.open(tmp_path / "run", "data", "model")


def test_the_hash_of_a_folder_is_that_of_its_weights_and_config(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    before = sha256_of(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert sha256_of(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert sha256_of(tmp_path) != before
