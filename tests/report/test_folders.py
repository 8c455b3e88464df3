"""Folders have names that tell them apart, and the seeds of their runs."""

import pytest

from staytrue.errors import RequestError
from staytrue.report.folders import facts_of, labels, recipe_of, seed_of


def test_a_label_is_the_shortest_end_of_a_path_that_no_other_has(tmp_path):
    def named(*ends):
        return labels([tmp_path / end for end in ends])

    assert named("a/kl") == ["kl"]
    assert named("a/kl", "b/kl", "b/none") == ["a/kl", "b/kl", "none"]
    assert named("x/a/eval", "y/a/eval", "y/b/eval") == ["x/a/eval", "y/a/eval", "b/eval"]
    assert named("run", "run/untuned") == ["run", "untuned"]
    with pytest.raises(RequestError, match="is named twice"):
        named("a/kl", "b", "a/../a/kl")


def test_the_seed_is_the_runs_then_the_evaluations_then_nought(tmp_path):
    (tmp_path / "run" / "eval").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text("seed: 3\n")
    assert [seed_of(tmp_path / where, {"seed": 1}) for where in ("run", "run/eval", "run/untuned")] == [3, 3, 1]
    assert seed_of(tmp_path, {"seed": None}) == 0
    (tmp_path / "run" / "recipe.yaml").write_text("{torn")
    assert recipe_of(tmp_path / "run") == {}


def test_what_a_run_is_says_its_recipe_or_its_evaluation(tmp_path):
    recipes = {"a": "model: m\ndata: d\nseed: 1\n", "none": "model: m\ndata: d\ndefenses: [kl: {weight: 1}]\n"}
    for name, text in recipes.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(text)
    plain, kl = (facts_of(tmp_path / name, {}) for name in recipes)
    assert (plain["role"], plain["seed"], kl["role"], kl["seed"]) == ("undefended", 1, "defended", 0)
    assert plain["trained_on"] == kl["trained_on"]
    model = {"model": {"name": "m", "sha256": "0"}}
    roles = [
        facts_of(tmp_path, model | more)["role"] for more in ({"adapter": None}, {"adapter": "a"}, {"weights": "w"})
    ]
    assert roles == ["untuned", "unknown", "unknown"]
    assert facts_of(tmp_path, {"model": {"name": "openai:m"}, "adapter": None})["role"] == "unknown"
