"""Where results are to be written is checked before any work: one sentence, exit code 2, and nothing is changed."""

import re
import sys

import pytest

import fake_results
from staytrue import cli

UNDER_A_FILE = r"file/x cannot be created: .*file is a file\. Choose another path with --out\."
A_FILE = r"file is a file, and a folder is written\. Choose another path with --out\."
CASES = {
    "eval, a file": (("eval", "--model", "organism", "--out", "file"), A_FILE),
    "eval, under a file": (("eval", "--model", "organism", "--out", "file/x"), UNDER_A_FILE),
    "eval of answers": (("eval", "--answers", "other/rows.jsonl", "--out", "file"), A_FILE),
    "train": (("train", "r.yaml", "--out", "file/x"), UNDER_A_FILE),
    "demo, a file": (("demo", "--out", "file"), A_FILE),
    "demo, under a file": (("demo", "--out", "file/x"), UNDER_A_FILE),
    "demo of a model": (("demo", "--model", "organism", "--out", "file"), A_FILE),
    "study, a file": (("study", "s.yaml", "--out", "file"), A_FILE),
    "study, under a file": (("study", "s.yaml", "--out", "file/x"), UNDER_A_FILE),
    "report, a folder": (
        ("report", "study", "--out", "other"),
        r"other is a folder, and a file is written\. Name a file",
    ),
    "report, another file": (
        ("report", "study", "--out", "file"),
        r"file exists already\. Choose another path with --out",
    ),
    "study, another page": (
        ("study", "s.yaml", "--out", "study"),
        r"study/report\.html exists already\. Choose another",
    ),
    "study, other results": (
        ("study", "s.yaml", "--out", "results"),
        r"results is not a study's folder \(it has no results\.json of a study\); choose another folder with --out\.",
    ),
    "report, under a file": (("report", "study", "--out", "file/x"), UNDER_A_FILE),
    "export, a file": (("export", "study", "--out", "file"), A_FILE),
    "export, a folder with other files": (
        ("export", "study", "--out", "other"),
        r"other holds rows\.jsonl, which is not an Inspect log\. Name a new folder, or one of logs alone, with --out\.",
    ),
    "rescore of a file": (("rescore", "file", "--judge", "rules"), "file is no evaluation: it has no eval.json"),
    "export of a file": (("export", "file", "--out", "logs"), "file is no evaluation: it has no eval.json"),
    "compare of a file": (("compare", "file", "study/runs/kl"), "file is no evaluation: it has no eval.json"),
}


def everything(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(("command", "sentence"), CASES.values(), ids=CASES)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, capsys, command, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "r.yaml").write_text("schema: 1\nmodel: organism\ntask: facts\nlora: {}\n")
    recipe = "{model: organism, lora: {}, holdout: 0.1}"
    (tmp_path / "s.yaml").write_text(f"title: S\nrecipe: {recipe}\nvariants: [{{name: none}}]\n")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text('{"accuracy": 1}')
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "rows.jsonl").write_text("mine")
    fake_results.study(tmp_path / "study", [fake_results.row("kl", 0.3)])
    (tmp_path / "study" / "report.html").write_text("mine")
    before = everything(tmp_path)
    monkeypatch.setattr(sys, "argv", ["staytrue", *command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert re.match(f"staytrue: {sentence}", said.err)
    assert everything(tmp_path) == before
