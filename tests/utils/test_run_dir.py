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


def test_the_hash_of_a_folder_is_that_of_its_weights_and_config(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    before = sha256_of(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert sha256_of(tmp_path) == before
    (tmp_path / "config.json").write_text("{ }")
    assert sha256_of(tmp_path) != before
