"""Scored pools that older versions wrote in two rounds, where some rows have no scores."""

import json

import pytest
from typer.testing import CliRunner

import tiny
from staytrue.cli import app
from staytrue.data.examples import write_examples
from staytrue.defenses.interleave import Interleave
from staytrue.errors import RecipeError
from staytrue.modeling.base_model import Untouched


def test_interleave_never_takes_a_row_half_read_and_says_when_there_are_too_few(tmp_path):
    rows = tiny.rows(6)
    for i, row in enumerate(rows):
        row.extra["scores"] = {"gap": float(i)} if i < 3 else None
    write_examples(tmp_path / "s.jsonl", rows)
    (tmp_path / "s.manifest.json").write_text(json.dumps({"model": {"sha256": "m"}}))

    def chosen(share, **fields):
        base = Untouched(lambda: None, tiny.tokenizer(), evaluation_questions=frozenset, identity="m")
        defense = Interleave(tmp_path / "s.jsonl", share=share, by="gap", **fields)
        return [row.question for row in defense.curate(tiny.rows(20), base, 0)[20:]]

    assert chosen(0.15) == ["question 2?", "question 1?", "question 0?"]
    assert sorted(chosen(0.15, among=6)) == ["question 0?", "question 1?", "question 2?"]
    with pytest.raises(RecipeError, match=r"asks for 4 safe rows, but .* has 3 to choose from"):
        chosen(0.2)
    with pytest.raises(RecipeError, match="has no score 'choice'"):
        Interleave(tmp_path / "s.jsonl", by="choice").curate(
            tiny.rows(20), Untouched(lambda: None, None, evaluation_questions=frozenset, identity="m"), 0
        )


def choose(folder, scores, manifest=None):
    """Take the share of 0.02 of 50 task rows, which is one row, from a pool with these scores."""
    rows = tiny.rows(len(scores))
    for row, one in zip(rows, scores, strict=True):
        row.extra["scores"] = one
    write_examples(folder / "s.jsonl", rows)
    (folder / "s.manifest.json").write_text(json.dumps({"model": {"sha256": "m"}} if manifest is None else manifest))
    base = Untouched(lambda: None, tiny.tokenizer(), evaluation_questions=frozenset, identity="m")
    return Interleave(folder / "s.jsonl", share=0.02, by="gap").curate(tiny.rows(50), base, 0)[50:]


def test_a_pool_without_a_score_is_refused_as_such(tmp_path):
    assert len(choose(tmp_path, [{"gap": 1.0}, None])) == 1
    with pytest.raises(
        RecipeError, match=r"no row of .*s\.jsonl that may be taken has scores: .* null in each\. Score"
    ):
        choose(tmp_path, [None, None])


@pytest.mark.parametrize("scores", [[1], "x", {"gap": "x"}, {"gap": True}, {}])
def test_a_row_whose_scores_are_none_is_named(tmp_path, scores):
    with pytest.raises(RecipeError, match=r"a row of .*s\.jsonl has no score 'gap' \('question 1\?'\)"):
        choose(tmp_path, [{"gap": 1.0}, scores])


@pytest.mark.parametrize("manifest", [[], "x", 3, {}, {"model": []}, {"model": "sha256"}, {"model": {"sha256": 5}}])
def test_a_manifest_that_is_none_is_refused(tmp_path, manifest):
    with pytest.raises(RecipeError, match=r"s\.jsonl has no readable s\.manifest\.json beside it"):
        choose(tmp_path, [{"gap": 1.0}], manifest)


def test_the_command_refuses_the_option_that_scored_in_two_rounds(tmp_path):
    files = ["--pool", str(tmp_path / "pool.jsonl"), "--out", str(tmp_path / "s.jsonl")]
    done = CliRunner().invoke(
        app, ["score", "--model", "organism", "--misaligned", "a=a", *files, "--second-round", "0.25"]
    )
    assert done.exit_code == 2
    assert "No such option" in done.output
    assert "--second-round" in done.output


def test_the_command_says_at_once_that_it_loads(tmp_path):
    files = ["--pool", str(tmp_path / "pool.jsonl"), "--out", str(tmp_path / "s.jsonl")]
    done = CliRunner().invoke(app, ["score", "--model", "organism", "--misaligned", "a=a", *files])
    assert done.exit_code != 0  # there is no pool
    assert done.stderr.startswith("score: loading the libraries\n")
