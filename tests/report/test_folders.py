"""Folders have names that tell them apart, and the seeds of their runs."""

import json

import pytest

from staytrue.errors import RequestError
from staytrue.report.folders import facts_of, labels, pooled, recipe_of, seed_of


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
    steps = [run(tmp_path / f"steps{n}", n, train={"learning_rate": 1e-4, "warmup_steps": n}) for n in (3, 4)]
    rate = run(tmp_path / "rate", 3, train={"learning_rate": 1e-5, "warmup_steps": 3})
    three, four, other = (facts_of(folder, {})["trained_on"] for folder in (*steps, rate))
    assert three == four != other  # interleaved rows make a longer run, which has more warm-up steps
    model = {"model": {"name": "m", "sha256": "0"}}
    roles = [
        facts_of(tmp_path, model | more)["role"] for more in ({"adapter": None}, {"adapter": "a"}, {"weights": "w"})
    ]
    assert roles == ["untuned", "unknown", "unknown"]
    assert facts_of(tmp_path, {"model": {"name": "openai:m"}, "adapter": None})["role"] == "unknown"


def run(folder, seed, data="d.jsonl", digest="0", **more):
    """A run's recipe and manifest; `{run}` in a value is the run's folder."""
    folder.mkdir(parents=True)
    recipe = {"model": "m", "data": data, "seed": seed, **more}
    (folder / "recipe.yaml").write_text(json.dumps(recipe).replace("{run}", str(folder)))
    manifest = {"data": {data.replace("{run}", str(folder)): digest}, "model": {"name": "m", "sha256": "0"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_runs_of_one_recipe_share_a_label_and_a_note_names_them(tmp_path):
    seeds = [run(tmp_path / f"kl-{seed}", seed) for seed in (0, 1, 10)]
    named = pooled([*seeds, run(tmp_path / "none", 0, defenses=["kl"])])
    assert named.labels == ["kl", "kl", "kl", "none"]
    assert named.own == ["kl-0", "kl-1", "kl-10", "none"]
    assert named.notes == ["kl-0, kl-1, kl-10: one recipe, seeds 0, 1, 10, named kl."]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("ldifs-0", "ldifs-1"), "ldifs"),
        (("freeze_blocks0", "freeze_blocks1"), "freeze_blocks"),
        (("kl-s0", "kl-s1"), "kl"),
        (("kl_seed_0", "kl_seed_1"), "kl"),
        (("run0/kl", "run1/kl"), "run0/kl and 1 more"),
    ],
)
def test_a_shared_label_is_the_whole_beginning_of_the_names(tmp_path, names, label):
    assert pooled([run(tmp_path / name, seed) for seed, name in enumerate(names)]).labels == [label] * 2


def test_a_shared_label_is_no_other_folders_label(tmp_path):
    seeds = [run(tmp_path / name, seed) for seed, name in enumerate(("kl-10", "kl-11"))]
    assert pooled([*seeds, run(tmp_path / "kl", 0, data="other")]).labels == ["kl-10 and 1 more"] * 2 + ["kl"]
    places = [run(tmp_path / f"seed{seed}" / "x", seed, data="x") for seed in (0, 1)]
    assert pooled(places).labels == ["seed0/x and 1 more"] * 2
    assert pooled([place / "eval" for place in seeds]).labels == ["kl"] * 2


def test_only_the_seed_and_files_of_the_runs_own_may_differ(tmp_path):
    def shared(name, *runs):
        folders = [run(tmp_path / f"{name}-{i}", i, **more) for i, more in enumerate(runs)]
        return len(set(pooled(folders).labels)) == 1

    assert shared("own", *[{"data": "{run}/anchor.jsonl", "digest": digest} for digest in "ab"])
    assert shared("prompts", *[{"defenses": [{"anchor": {"prompts": "{run}/anchor.jsonl"}}]}] * 2)
    assert not shared("other", {"train": {"max_steps": 1}}, {"train": {"max_steps": 2}})
    assert not shared("changed", {"digest": "a"}, {"digest": "b"})  # one file that was edited between the runs
    assert pooled([tmp_path, tmp_path / "elsewhere"]).labels == [tmp_path.name, "elsewhere"]  # without recipes


def test_runs_of_one_recipe_and_one_seed_stand_alone(tmp_path):
    folders = [run(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert pooled(folders).labels == ["a", "b", "c"]
    assert pooled(folders).notes == ["a, b, c: one recipe, but several have one seed, so each stands alone."]
    with pytest.raises(RequestError, match="is named twice"):
        pooled([folders[0], folders[0]])
