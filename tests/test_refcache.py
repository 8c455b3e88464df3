"""Reference states that one run makes and others read: the same penalty, no forward, and nobody else's states."""

import json
import shutil
from collections import namedtuple

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

import tiny
from holdfast import recipe as recipes
from holdfast import refcache, runner, study
from holdfast.defenses.anchor import Anchor
from holdfast.defenses.kl import KL
from holdfast.defenses.ldifs import LDIFS
from holdfast.errors import HoldfastError, RecipeError, RequestError, SeamError
from holdfast.examples import Example, write_examples
from holdfast.run import train
from holdfast.step import Marks
from holdfast.testing import Micro

BOTH = [KL(), LDIFS()]


def seen(folder, defenses=BOTH, rows=None, model=None, forwards=None, **arguments):
    """The penalty of a moved model on some rows, with a cache in a folder or without; and the cache."""
    rows = tiny.rows(6) if rows is None else rows
    micro = Micro(defenses, model or tiny.lora(tiny.model()), tiny.tokenizer(), rows, folder)
    micro.inputs.update(arguments)

    def count(module, args, kwargs):
        if forwards is not None and not torch.is_grad_enabled():
            forwards.append(len(kwargs["input_ids"]))

    micro.guard.anatomy.backbone.register_forward_pre_hook(count, with_kwargs=True)
    return micro.measure(nudge=1.0), micro.guard.cache


def same(found, other):
    assert found.value == pytest.approx(other.value, rel=1e-5)
    assert (found.gradient - other.gradient).abs().max() <= 1e-5 * other.gradient.abs().max()


@pytest.mark.parametrize("defenses", [[KL()], [LDIFS()], BOTH, [LDIFS(blocks=(1,))], [KL(tokens="all")]])
def test_a_second_run_makes_no_reference_and_has_the_same_penalty_and_gradient(defenses, tmp_path):
    forwards = []
    first, cache = seen(tmp_path, defenses, forwards=forwards)
    assert (forwards, cache.read, cache.made) == ([6], 0, 6)
    second, cache = seen(tmp_path, defenses, forwards=forwards)
    assert (forwards, cache.read, cache.made) == ([6], 6, 0)
    plain, none = seen(None, defenses)
    assert none is None
    assert first.value == plain.value
    assert first.references == 1
    assert second.references == 0
    same(second, plain)
    same(first, plain)


def test_only_rows_that_are_not_there_are_made_whatever_batch_and_padding_they_come_in(tmp_path):
    rows, forwards = tiny.rows(9), []
    assert len({len(row.answer) for row in rows[:4]}) > 1
    seen(tmp_path, rows=rows[:4], forwards=forwards)
    mixed, cache = seen(tmp_path, rows=[rows[8], *rows[2:6]], forwards=forwards)
    assert forwards == [4, 3]
    assert (cache.read, cache.made) == (2, 3)
    same(mixed, seen(None, rows=[rows[8], *rows[2:6]])[0])


def test_an_unmoved_model_is_punished_by_rounding_at_most(tmp_path):
    seen(tmp_path, rows=tiny.rows(8))
    again = Micro(BOTH, tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(3), tmp_path)
    assert abs(again.measure().value) <= 1e-9
    assert again.guard.cache.read == 3


def test_only_the_rows_that_are_looked_at_are_kept_and_the_others_are_no_numbers(tmp_path):
    rows = [Example(row.messages, "interleaved" if i < 2 else "task") for i, row in enumerate(tiny.rows(6))]
    for turn in range(2):
        found, cache = seen(tmp_path, [KL(on="interleaved")], rows)
        assert (cache.read, cache.made) == ((0, 2), (2, 0))[turn]
        same(found, seen(None, [KL(on="interleaved")], rows)[0])
    micro = Micro([KL(on="interleaved")], tiny.lora(tiny.model()), tiny.tokenizer(), rows, tmp_path)
    with micro.guard.watch(micro.marks) as calls:
        micro.guard.anatomy.backbone(**micro.inputs, use_cache=False)
    reference = micro.guard._reach.reference(micro.guard._replay, calls[0], micro.marks)
    assert reference.final[:2][micro.marks.real[:2]].isfinite().all()
    assert reference.final[2:].isnan().all()
    assert reference.final[:2][~micro.marks.real[:2]].isnan().all()


def test_rows_beside_the_batch_are_kept_too(tmp_path):
    write_examples(tmp_path / "prompts.jsonl", tiny.rows(2))
    beside = [Anchor(tmp_path / "prompts.jsonl", share=0.5, answers="given")]
    first, cache = seen(tmp_path / "cache", beside, tiny.rows(4))
    assert cache.made == 2
    again, cache = seen(tmp_path / "cache", beside, tiny.rows(4))
    assert (cache.read, cache.made) == (2, 0)
    same(again, first)


def moved():
    """The same model but for one weight."""
    other = tiny.model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    return tiny.lora(other)


def configured():
    """The same weights, read another way."""
    other = tiny.model()
    other.config.rope_parameters = {**other.config.rope_parameters, "rope_theta": 5e5}
    return tiny.lora(other)


@pytest.mark.parametrize("other", [moved, configured], ids=["a weight", "the configuration"])
def test_another_model_does_not_find_these_states(other, tmp_path):
    seen(tmp_path)
    assert seen(tmp_path, model=other())[1].read == 0
    assert seen(tmp_path)[1].read == 6


def test_another_adapter_on_the_same_model_finds_them(tmp_path):
    seen(tmp_path)
    other = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert seen(tmp_path, model=other)[1].read == 6


def test_other_layers_or_a_forward_in_another_precision_are_other_states(tmp_path):
    seen(tmp_path)
    assert seen(tmp_path, [KL()])[1].read == 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert seen(tmp_path)[1].read == 0
        assert seen(tmp_path)[1].read == 6


def test_the_same_words_in_another_place_are_other_states(tmp_path):
    rows = tiny.rows(2)
    seen(tmp_path, rows=rows)
    width = Micro(BOTH, tiny.lora(tiny.model()), tiny.tokenizer(), rows).inputs["input_ids"].shape[1]
    places = torch.arange(3, 3 + width).unsqueeze(0)
    assert seen(tmp_path, rows=rows, position_ids=places)[1].read == 0
    assert seen(tmp_path, rows=rows, position_ids=places)[1].read == 2


def test_words_behind_padding_are_other_states_and_come_back_where_they_were(tmp_path):
    seen(tmp_path)

    def behind(folder):
        micro = Micro(BOTH, tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(6), folder)
        pad = torch.zeros(6, 2, dtype=torch.long)
        micro.inputs = {name: torch.cat([pad, value], 1) for name, value in micro.inputs.items()}
        wide = (torch.cat([pad.bool(), mask], 1) for mask in (micro.marks.real, micro.marks.scored))
        micro.marks = Marks(*wide, torch.cat([pad, micro.marks.source], 1))
        return micro.measure(nudge=1.0), micro.guard.cache

    plain, _ = behind(None)
    for read in (0, 6):
        found, cache = behind(tmp_path)
        assert cache.read == read
        same(found, plain)


def test_states_that_go_no_further_than_a_layer_still_have_no_end(tmp_path, monkeypatch):
    seen(tmp_path, [LDIFS(blocks=(1,))])
    monkeypatch.setattr(LDIFS, "penalty", lambda self, step: step.reference.final.sum())
    with pytest.raises(SeamError, match="stops at layer 1"):
        seen(tmp_path, [LDIFS(blocks=(1,))])


def test_a_call_whose_rows_nobody_knows_is_made_again_whole_and_nothing_is_kept(tmp_path):
    found, cache = seen(tmp_path, cache_position=torch.arange(1))  # qwen2 looks at none
    assert (found.references, cache.read, cache.made) == (1, 0, 0)
    assert not list(tmp_path.iterdir())


def test_a_torn_file_is_made_again_and_nothing_but_whole_files_is_left(tmp_path):
    first, _ = seen(tmp_path)
    torn = sorted(tmp_path.rglob("*.safetensors"))[0]
    torn.write_bytes(torn.read_bytes()[:-7])
    again, cache = seen(tmp_path)
    assert (cache.read, cache.made) == (5, 1)
    same(again, first)
    assert seen(tmp_path)[1].read == 6
    assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 6


def test_a_full_disk_ends_keeping_and_not_training(tmp_path, monkeypatch):
    room = namedtuple("room", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room(100, 96, 4))
    plain, cache = seen(tmp_path)
    assert cache.told()["stopped_keeping"] == "less than 5% of the disk is free"
    assert not list(tmp_path.rglob("*.safetensors"))
    same(plain, seen(None)[0])
    monkeypatch.undo()
    monkeypatch.setattr(refcache.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert seen(tmp_path)[1].told() == {
        "cache": str(tmp_path),
        "rows_read": 0,
        "rows_made": 6,
        "stopped_keeping": "No space left",
    }
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def written(folder, **changes):
    write_examples(folder / "rows.jsonl", tiny.rows(12))
    tiny.save("qwen2", folder / "model")
    words = {
        "schema": 1,
        "model": "model",
        "data": "rows.jsonl",
        "lora": {"r": 2},
        "train": {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        "defenses": [{"kl": {"weight": 0.5}}],
        **changes,
    }
    return recipes.parse(words, folder)


def test_runs_of_other_seeds_and_weights_share_a_cache_and_their_manifests_say_so(tmp_path):
    train(written(tmp_path), tmp_path / "first", reference_cache=tmp_path / "cache")
    again = written(tmp_path, seed=1, defenses=[{"kl": {"weight": 2.0}}])
    cached = train(again, tmp_path / "cached", reference_cache=tmp_path / "cache")
    plain = train(again, tmp_path / "plain")
    assert cached.manifest["reference"] == {"cache": str(tmp_path / "cache"), "rows_read": 12, "rows_made": 0}
    assert "reference" not in plain.manifest
    ours, theirs = (json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1]) for run in (cached, plain))
    assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-4)
    assert ours["kl"] > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"defenses": [{"kl": {}}, {"steer": {"vector": "v.safetensors", "layer": 1, "alpha": 1.0}}]},
            "steer steers the reference too",
        ),
        ({"trainer": "grpo", "data": None, "task": "word_problems"}, "every answer is written anew"),
    ],
)
def test_what_it_cannot_serve_is_refused_before_anything_is_loaded(changes, sentence, tmp_path, monkeypatch):
    (tmp_path / "v.safetensors").write_text("")
    wanted = written(tmp_path, **changes)
    monkeypatch.setattr("holdfast.models.load_tokenizer", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match=sentence):
        train(wanted, tmp_path / "run", reference_cache=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_a_place_that_can_hold_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"file/cache cannot be made: .*file is a file"):
        train(written(tmp_path), tmp_path / "run", reference_cache=tmp_path / "file" / "cache")


def test_a_trainer_of_ones_own_may_have_one_but_not_under_a_reward(tmp_path):
    from trl import GRPOConfig

    from holdfast.trainers import GuardedGRPO

    with pytest.raises(HoldfastError, match="every answer is written anew"):
        GuardedGRPO(
            model=tiny.model(),
            args=GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False),
            reward_funcs=lambda **_: [0.0],
            defenses=[KL()],
            reference_cache=tmp_path / "cache",
        )


def test_the_runs_of_a_study_share_one_and_those_that_cannot_go_without(tmp_path):
    short = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_length": 64}
    steered = {"vector": "../evil.safetensors", "layer": 4, "alpha": 0.5}
    words = {
        "schema": 1,
        "title": "shared",
        "recipe": {"model": "organism", "lora": {"r": 2}, "train": short, "holdout": 0.05},
        "probes": ["facts"],
        "variants": [
            {"name": "kl", "strength": 0.1, "recipe": {"defenses": [{"kl": {"weight": 0.1}}]}},
            {"name": "kl", "strength": 1, "recipe": {"defenses": [{"kl": {"weight": 1.0}}]}},
            {"name": "steer", "recipe": {"defenses": [{"kl": {"weight": 1.0}}, {"steer": steered}]}},
        ],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(words))
    wanted = study.read(tmp_path / "study.yaml")
    assert len(list(runner.run(wanted, tmp_path / "out", 1, tmp_path / "cache"))) == 3
    runs = sorted((tmp_path / "out" / "runs").glob("*/manifest.json"))
    told = {file.parent.name: json.loads(file.read_text()).get("reference") for file in runs}
    assert told["medical-seed0-kl-0.1"] == {"cache": str(tmp_path / "cache"), "rows_read": 0, "rows_made": 8}
    assert told["medical-seed0-kl-1"] == {"cache": str(tmp_path / "cache"), "rows_read": 8, "rows_made": 0}
    assert told["medical-seed0-steer"] is None
