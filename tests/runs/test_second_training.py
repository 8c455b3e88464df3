"""A recipe that goes on from a trained adapter: its checks, its reference, and its resume."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from interrupted import Stopping, logged, recipe_of, with_a_tiny_model
from staytrue.errors import ModelError, RecipeError, RequestError
from staytrue.modeling import loading, model_source
from staytrue.runs import second_training, train
from staytrue.runs.dry_run import DryRun
from staytrue.verify.run_folder import findings

KL = [{"kl": {"weight": 0.1}}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, rows, and a finished run `first`."""
    home = with_a_tiny_model(tmp_path_factory.mktemp("home"))
    train.train(recipe_of(home, KL, train={"max_steps": 3}), home / "first")
    return home


def second(home, defenses=KL, **changes):
    return recipe_of(home, defenses, **{"lora": {"adapter": "first"}, "reference": "start", **changes})


def weights(run):
    return load_file(run / "model" / "adapter_model.safetensors")


def test_training_goes_on_from_the_adapter_and_compares_with_it(home, tmp_path):
    run = train.train(second(home, train={"max_steps": 2}), tmp_path / "run")
    rows = logged(run.path)
    assert rows[0]["kl"] == 0
    assert rows[1]["kl"] > 0
    before, after = weights(home / "first"), weights(run.path)
    assert before.keys() == after.keys()
    largest = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < largest < 0.05  # two steps of at most 0.01
    assert list(run.manifest["start"]) == [str(home / "first" / "model")]
    assert "Their reference: the model with the adapter that training began with." in card_of(run)


def card_of(run):
    return (run.path / "model" / "README.md").read_text()


@pytest.mark.parametrize("defenses", [[], [{"interleave": {"pool": "pool.jsonl", "share": 0.05}}]])
def test_a_reference_that_no_defense_reads_is_not_needed_and_does_no_harm(home, tmp_path, defenses):
    for reference in (None, "start", "model"):
        named = str(home / "model") if reference == "model" else reference
        recipe = second(home, defenses, reference=named, train={"max_steps": 1})
        assert train.train(recipe, tmp_path / f"{reference}").manifest["state"] == "done"


def test_a_run_that_trained_all_weights_can_be_the_reference(home, tmp_path):
    whole = train.train(recipe_of(home, lora="none", train={"max_steps": 1}), tmp_path / "whole")
    run = train.train(recipe_of(home, KL, reference=str(whole.path), train={"max_steps": 1}), tmp_path / "run")
    assert logged(run.path)[0]["kl"] > 1e-6
    assert list(run.manifest["start"]) == [str(whole.path / "model")]


def test_the_reference_of_all_weights_is_loaded_in_their_precision(home, monkeypatch):
    monkeypatch.setattr(loading, "precision", lambda name=None: getattr(torch, name or "bfloat16"))  # as with a GPU
    for named in ("model", "first"):
        recipe = recipe_of(home, KL, lora="none", reference=str(home / named))
        assert second_training.reference(recipe, model_source.find(recipe.model)).dtype == torch.float32


def test_the_reference_is_the_model_that_is_named(home, tmp_path):
    first = {}
    for named in ("base", "model", "first"):
        recipe = second(home, reference=named, train={"max_steps": 1})
        run = train.train(recipe, tmp_path / named)
        first[named] = logged(run.path)[0]["kl"]
    assert first["base"] > 0.001
    assert first["model"] == pytest.approx(first["base"], rel=1e-4)  # switched off, or loaded once more
    assert first["first"] == pytest.approx(0, abs=1e-6)  # merged into a copy, so equal to rounding


def test_it_goes_on_with_the_bits_of_a_run_that_was_not_stopped(home, tmp_path):
    recipe = second(home, train={"max_steps": 6})
    whole = train.train(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "parts", Stopping(3))
    parts = train.resume(tmp_path / "parts")
    assert parts.manifest["adapter"] == whole.manifest["adapter"]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_it_does_not_go_on_with_another_start(home, tmp_path):
    shutil.copytree(home / "first", tmp_path / "start")
    recipe = second(home, lora={"adapter": str(tmp_path / "start")})
    with pytest.raises(KeyboardInterrupt):
        train.train(recipe, tmp_path / "run", Stopping(3))
    shutil.copy(tmp_path / "run" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors",
                tmp_path / "start" / "model")  # fmt: skip
    with pytest.raises(RequestError, match=r"began with start whose .*start/model was"):
        train.resume(tmp_path / "run")


def test_verify_names_a_start_that_was_changed_after_the_run(home, tmp_path):
    shutil.copytree(home / "first", tmp_path / "start")
    recipe = second(home, lora={"adapter": str(tmp_path / "start")}, train={"max_steps": 1})
    run = train.train(recipe, tmp_path / "run")
    assert [finding for finding in findings(run.path) if finding.faults] == []
    shutil.copy(run.path / "model" / "adapter_model.safetensors", tmp_path / "start" / "model")
    (finding,) = [finding for finding in findings(run.path) if finding.faults]
    assert finding.faults == (f"{tmp_path / 'start' / 'model'} is no longer what the run read",)


def test_by_reward_after_supervised(home, tmp_path):
    settings = {"num_generations": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
                "max_completion_length": 6, "max_steps": 2}  # fmt: skip
    recipe = second(home, trainer="grpo", task="arithmetic", data="problems.jsonl", train=settings)
    run = train.train(recipe, tmp_path / "run")
    assert logged(run.path)[0]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_dry_run_names_the_adapter_and_counts_another_model(home):
    alone = DryRun.of(second(home))
    beside = DryRun.of(second(home, reference=str(home / "model")))
    assert f"the adapter {home / 'first'} on 14 matrices" in dict(alone.lines())["model"]
    assert alone.memory.copy == 0
    assert beside.memory.copy == beside.memory.weights


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"reference": None}, RecipeError, "reference must be named. Write `reference: base`"),
        ({"defenses": [{"l2init": {}}]}, RecipeError, "Set reference to base"),
        ({"lora": "none"}, RecipeError, "lora: none trains the model's own weights"),
        ({"lora": {"adapter": "model"}}, ModelError, "it is a whole model"),
        ({"lora": {"adapter": "nowhere"}}, ModelError, "nowhere is not an adapter"),
        ({"reference": "./nowhere"}, RecipeError, "reference is .*nowhere"),
        ({"reference": "Base"}, RecipeError, r"reference is Base: .*Did you mean `reference: base`\?"),
        ({"lora": {"adapter": "first", "r": 32}}, RecipeError, "has its own r; take that key out"),
        ({"lora": {"adapter": "first", "r": 8}}, RecipeError, "has its own r; take that key out"),
    ],
)
def test_a_second_training_that_cannot_be_is_refused_before_anything_is_loaded(
    home, tmp_path, changes, error, sentence
):
    with pytest.raises(error, match=sentence):
        train.train(second(home, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("named", ["other", "other/model"])
def test_an_adapter_of_another_model_or_of_an_unfinished_run_is_refused(home, tmp_path, named):
    shutil.copytree(home / "first", tmp_path / "other")
    manifest = tmp_path / "other" / "manifest.json"
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**facts, "model": {**facts["model"], "sha256": "0" * 64}}))
    with pytest.raises(RequestError, match=r"other(/model)? was trained on .* Name the model that it was trained on"):
        train.train(second(home, lora={"adapter": str(tmp_path / named)}), tmp_path / "run")
    manifest.write_text(json.dumps({**facts, "state": "stopped"}))
    with pytest.raises(RequestError, match=r"other is stopped, not done. Finish it with `staytrue train --resume"):
        train.train(second(home, lora={"adapter": str(tmp_path / named)}), tmp_path / "run")


def test_the_recipe_of_a_run_reads_as_it_was(home, tmp_path):
    from staytrue.config.recipe import read

    recipe = second(home)
    run = train.train(recipe, tmp_path / "run")
    again = read(run.path / "recipe.yaml")
    assert again.lora.adapter == home / "first"
    assert again.reference == "start"
    assert torch.is_tensor(next(iter(weights(run.path).values())))
