"""A recipe's rows in packs and padding-free batches: the same losses as apart, and models that mix rows are refused."""

import pytest
import torch

import families
import tiny
from runs.test_train import make, metrics
from staytrue.data.examples import write_examples
from staytrue.errors import RecipeError
from staytrue.runs import train
from staytrue.training.packing_check import mixes_joined_rows

STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-2}


def trained(folder, name, **changes):
    write_examples(folder / "prompts.jsonl", tiny.rows(12))
    anchor = {"anchor": {"prompts": "prompts.jsonl", "share": 0.5, "answers": "given"}}
    interleave = {"interleave": {"pool": "pool.jsonl", "share": 0.2}}
    recipe = make(folder, train={**STEPS, **changes}, defenses=[{"kl": {"weight": 0.5}}, interleave, anchor])
    train.train(recipe, folder / name)
    return metrics(folder / name)


@pytest.mark.parametrize("max_length", [2048, 60])
def test_padding_free_batches_have_the_losses_of_padded_ones(tmp_path, max_length):
    padded = trained(tmp_path, "padded", max_length=max_length)
    joined = trained(tmp_path, "joined", max_length=max_length, padding_free=True)
    for key in ("task_loss", "kl", "anchor"):
        assert [row[key] for row in joined] == pytest.approx([row[key] for row in padded], rel=1e-3, abs=1e-6)
    assert padded[2]["anchor"] > 1e-4


def test_packs_hold_every_row_of_the_recipe_once(tmp_path):
    changes = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 1, "max_length": 128}
    packed = trained(tmp_path, "packed", packing=True, **changes)
    alone = trained(tmp_path, "alone", **changes)
    assert len(alone) == 29  # 24 rows of the task, 5 interleaved
    assert 10 < len(packed) < 20
    assert packed[-1]["kl"] > 0
    assert any(row.get("anchor", 0) > 0 for row in packed)


def test_packs_of_a_strategy_that_cuts_rows_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"train.packing_strategy cannot be set .* packs hold whole rows"):
        trained(tmp_path, "run", packing=True, packing_strategy="wrapped")


def test_a_reference_cache_and_packs_are_refused_together(tmp_path):
    recipe = make(tmp_path, train={**STEPS, "packing": True}, defenses=[{"kl": {}}])
    with pytest.raises(RecipeError, match="set packing=False with a reference cache"):
        train.train(recipe, tmp_path / "run", reference_cache=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("packing", [{"packing": True}, {"padding_free": True}])
def test_a_hybrid_model_whose_states_pass_from_row_to_row_is_refused(tmp_path, packing):
    make(tmp_path)
    families.save("lfm2", tmp_path / "hybrid")
    recipe = make(tmp_path, model="hybrid", train={**STEPS, **packing}, defenses=[{"kl": {}}])
    with pytest.raises(RecipeError, match=r"^A model of type lfm2 reads across the rows that packing and"):
        train.train(recipe, tmp_path / "run")


@pytest.mark.parametrize("kind", [*tiny.KINDS, "llama4_text", "mixtral"])
def test_attention_keeps_joined_rows_apart(kind):
    model = tiny.model(kind) if kind in tiny.KINDS else families.model(kind)
    assert not mixes_joined_rows(model)
    assert not mixes_joined_rows(model.to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["qwen3_next", "mamba", "falcon_h1"])
def test_states_that_pass_from_row_to_row_are_found(kind):
    assert mixes_joined_rows(families.model(kind))
