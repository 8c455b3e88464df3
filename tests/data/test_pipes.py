"""Files that a user names are files: a pipe is refused at once, and never waited for."""

import os
import sys
from pathlib import Path

import pytest

from staytrue import cli
from staytrue.config import recipe
from staytrue.data.examples import Example, Message, read_examples, write_examples
from staytrue.errors import RequestError
from staytrue.evals.questions import answer_pairs, user_files
from staytrue.persona_vectors import traits, vectorfile
from staytrue.studies import config as studies

pytestmark = pytest.mark.timeout(60)  # what waits for a pipe waits for ever

READERS = {
    "data": (read_examples, "p.jsonl"),
    "a table": (read_examples, "p.csv"),
    "a list": (read_examples, "p.json"),
    "pairs": (answer_pairs.read, "p.jsonl"),
    "questions": (user_files.read, "p.yaml"),
    "question rows": (user_files.read, "p.jsonl"),
    "a recipe": (recipe.read, "p.yaml"),
    "a study": (studies.read, "p.yaml"),
    "a trait": (traits.read, "p.yaml"),
    "a vector": (vectorfile.read, "p.safetensors"),
}


@pytest.mark.parametrize(("read", "name"), READERS.values(), ids=READERS)
def test_a_pipe_is_refused_at_once_whatever_it_should_hold(tmp_path, read, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(RequestError, match=r"is a pipe, not a file\. Write its content to a file, and name that\.$"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [read_examples, recipe.read])
def test_a_device_is_refused_too(read):
    with pytest.raises(RequestError, match=r"^/dev/zero is a device, not a file"):
        read(Path("/dev/zero"))


def test_a_process_substitution_is_such_a_pipe():
    out, into = os.pipe()
    try:
        with pytest.raises(RequestError, match=f"^/dev/fd/{out} is a pipe"):
            read_examples(Path(f"/dev/fd/{out}"))
    finally:
        os.close(out)
        os.close(into)


@pytest.mark.parametrize("named", ["data: p", "defenses: [anchor: {prompts: p}]", "stop: {pairs: p, above: 0.1}"])
def test_a_pipe_in_a_recipe_ends_in_a_sentence(tmp_path, monkeypatch, capsys, named):
    os.mkfifo(tmp_path / "p")
    turns = [(Message("user", f"q{i}"), Message("assistant", "a")) for i in range(9)]
    write_examples(tmp_path / "rows.jsonl", [Example(turn) for turn in turns])
    plain = {"schema": "1", "model": "organism", "data": "rows.jsonl", "lora": "{}"}
    plain[named.partition(":")[0]] = named.partition(": ")[2]
    (tmp_path / "r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in plain.items()))
    monkeypatch.setattr(sys, "argv", ["staytrue", "check", str(tmp_path / "r.yaml")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"{tmp_path / 'p'} is a pipe, not a file" in capsys.readouterr().err
