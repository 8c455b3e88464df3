"""Reference states that one run computes and others read: the same penalty, no forward, and no other model's states."""

import json
import math
import os
import shutil
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import GRPOConfig, SFTConfig

import tiny
from staytrue.config import recipe as recipes
from staytrue.data.examples import Example, write_examples
from staytrue.defense import Defense
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.errors import ForwardPassError, ModelError, RecipeError, RequestError, StaytrueError
from staytrue.runs.train import train
from staytrue.step import Marks
from staytrue.studies import config
from staytrue.studies.demo import run_study
from staytrue.testing import Micro, close, unlike
from staytrue.training.guard import Guard
from staytrue.training.reference import cache_checks, fingerprint
from staytrue.training.trainers import GuardedGRPO, GuardedSFT
from staytrue.utils import files

BOTH = [KL(), LDIFS()]
NATS = 0.1 * math.log(len(tiny.tokenizer()))  # a log-probability, times the weight of a KL


def seen(folder, defenses=BOTH, rows=None, model=None, forwards=None, **arguments):
    """The penalty of a moved model on some rows, with a cache in a folder or without; and the cache."""
    rows = tiny.rows(6) if rows is None else rows
    micro = Micro(defenses, model or tiny.lora(tiny.model()), tiny.tokenizer(), rows, folder)
    micro.inputs.update(arguments)

    def count(module, args, kwargs):
        if forwards is not None and not torch.is_grad_enabled():
            forwards.append(len(kwargs["input_ids"]))

    micro.guard.parts.backbone.register_forward_pre_hook(count, with_kwargs=True)
    return micro.measure(nudge=1.0), micro.guard.cache


def same(measured, other):
    assert close(measured.value, other.value, scale=NATS, of_itself=1e-5)
    assert (measured.gradient - other.gradient).abs().max() <= 1e-5 * other.gradient.abs().max()


@pytest.mark.parametrize("defenses", [[KL()], [LDIFS()], BOTH, [LDIFS(blocks=(1,))], [KL(tokens="all")]])
def test_a_second_run_makes_no_reference_and_has_the_same_penalty_and_gradient(defenses, tmp_path):
    forwards = []
    first, cache = seen(tmp_path, defenses, forwards=forwards)
    assert (forwards, cache.read, cache.computed) == ([6], 0, 6)
    second, cache = seen(tmp_path, defenses, forwards=forwards)
    assert (forwards, cache.read, cache.computed) == ([6], 6, 0)
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
    assert (cache.read, cache.computed) == (2, 3)
    same(mixed, seen(None, rows=[rows[8], *rows[2:6]])[0])


def test_an_unmoved_model_is_punished_by_rounding_at_most(tmp_path):
    seen(tmp_path, rows=tiny.rows(8))
    again = Micro(BOTH, tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(3), tmp_path)
    assert close(again.measure().value, 0, scale=NATS)
    assert again.guard.cache.read == 3


@dataclass(frozen=True)
class Masked(Defense):
    """Compares every position and takes what it wants of it, padding times nothing included."""

    weight: float = 1.0

    def layers(self, depth):
        return (1, -1)

    def penalty(self, step):
        span = step.span()
        apart = (step.policy.final - step.reference.final).square().sum(-1) * span.mask
        return step.mean(apart[step.marks.real | ~step.marks.real], span)


def test_a_defense_that_multiplies_by_a_mask_gets_numbers_too(tmp_path):
    plain, _ = seen(None, [Masked()])
    for read in (0, 6):
        measured, cache = seen(tmp_path, [Masked()])
        assert cache.read == read
        same(measured, plain)


def test_only_the_rows_that_are_looked_at_are_kept_and_the_others_are_no_numbers(tmp_path):
    rows = [Example(row.messages, "interleaved" if i < 2 else "task") for i, row in enumerate(tiny.rows(6))]
    for turn in range(2):
        measured, cache = seen(tmp_path, [KL(on="interleaved")], rows)
        assert (cache.read, cache.computed) == ((0, 2), (2, 0))[turn]
        same(measured, seen(None, [KL(on="interleaved")], rows)[0])
    micro = Micro([KL(on="interleaved")], tiny.lora(tiny.model()), tiny.tokenizer(), rows, tmp_path)
    with micro.guard.watch(micro.marks) as calls:
        micro.guard.parts.backbone(**micro.inputs, use_cache=False)
    reference = micro.guard._penalties.steps.scope.reference(micro.guard._penalties.steps.replay, calls[0], micro.marks)
    assert reference.final[:2][micro.marks.real[:2]].isfinite().all()
    assert (reference.final[:2][~micro.marks.real[:2]] == 0).all()
    assert reference.final[2:].isnan().all()


def test_rows_beside_the_batch_are_kept_too(tmp_path):
    write_examples(tmp_path / "prompts.jsonl", tiny.rows(2))
    beside = [Anchor(tmp_path / "prompts.jsonl", share=0.5, answers="given")]
    first, cache = seen(tmp_path / "cache", beside, tiny.rows(4))
    assert cache.computed == 2
    again, cache = seen(tmp_path / "cache", beside, tiny.rows(4))
    assert (cache.read, cache.computed) == (2, 0)
    same(again, first)


def moved():
    """The same model but for one weight."""
    other = tiny.model()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    return tiny.lora(other)


def with_another_attention():
    other = tiny.model()
    other.set_attn_implementation("eager")
    return tiny.lora(other)


def configured():
    """The same weights, read another way."""
    other = tiny.model()
    other.config.rope_parameters = {**other.config.rope_parameters, "rope_theta": 5e5}
    return tiny.lora(other)


@pytest.mark.parametrize("other", [moved, configured, with_another_attention])
def test_another_model_does_not_find_these_states(other, tmp_path):
    seen(tmp_path)
    assert seen(tmp_path, model=other())[1].read == 0
    assert seen(tmp_path)[1].read == 6


def test_what_the_model_is_run_by_is_part_of_what_it_is(tmp_path, monkeypatch):
    seen(tmp_path)
    monkeypatch.setattr(fingerprint.metadata, "version", lambda _: "5.99.0")
    assert seen(tmp_path)[1].read == 0
    monkeypatch.undo()
    torch.set_float32_matmul_precision("high")
    try:
        assert seen(tmp_path)[1].read == 0
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen(tmp_path)[1].read == 6


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_model_whose_positions_depend_on_the_rows_beside_is_refused(kind, tmp_path):
    model = tiny.lora(tiny.model())
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_type": kind}
    with pytest.raises(ModelError, match=rf"positions \({kind}\) depend on the longest row"):
        seen(tmp_path, model=model)


def test_quantised_weights_are_refused(tmp_path):
    model = tiny.model()
    packed = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    model.model.layers[0].mlp.register_parameter("packed", packed)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.packed is quantised"):
        seen(tmp_path, model=tiny.lora(model))


def test_another_adapter_on_the_same_model_finds_them(tmp_path):
    seen(tmp_path)
    other = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert seen(tmp_path, model=other)[1].read == 6


def test_other_layers_or_a_forward_in_another_precision_are_other_states(tmp_path):
    seen(tmp_path)
    assert seen(tmp_path, [KL()])[1].read == 0
    assert seen(tmp_path, [LDIFS(blocks=(1,))])[1].read == 0
    assert seen(tmp_path, [KL(), LDIFS(blocks=(1,))])[1].read == 0  # the same layers, and the end
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
        measured, cache = behind(tmp_path)
        assert cache.read == read
        same(measured, plain)


def test_states_that_go_no_further_than_a_layer_still_have_no_end(tmp_path, monkeypatch):
    seen(tmp_path, [LDIFS(blocks=(1,))])
    monkeypatch.setattr(LDIFS, "penalty", lambda self, step: step.reference.final.sum())
    with pytest.raises(ForwardPassError, match="stops at layer 1"):
        seen(tmp_path, [LDIFS(blocks=(1,))])


def test_a_call_of_unknown_rows_is_repeated_whole_and_nothing_is_kept(tmp_path):
    measured, cache = seen(tmp_path, cache_position=torch.arange(1))  # qwen2 looks at none
    assert (measured.references, cache.read, cache.computed, cache.describe()["calls_made_whole"]) == (1, 0, 0, 1)
    assert not list(tmp_path.iterdir())


def test_positions_of_several_kinds_are_not_separated_by_rows(tmp_path):
    micro = Micro([KL()], tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows(2), tmp_path)
    with micro.guard.watch(micro.marks) as calls:
        micro.guard.parts.backbone(**micro.inputs, use_cache=False)
    calls[0].kwargs["position_ids"] = torch.zeros(3, *micro.inputs["input_ids"].shape, dtype=torch.long)
    assert calls[0].by_row() is None


def zeroed(file, other):
    file.write_bytes(file.read_bytes()[:-40] + bytes(40))


def swapped(file, other):
    file.write_bytes(other.read_bytes())


def torn(file, other):
    file.write_bytes(file.read_bytes()[:-7])


def retyped(file, other):
    file.write_bytes(file.read_bytes().replace(b'"F32"', b'"I32"'))


def unchecked(file, other):
    file.write_bytes(file.read_bytes().replace(b'"I64"', b'"C64"'))


@pytest.mark.parametrize("harm", [torn, zeroed, swapped, retyped, unchecked])
def test_a_damaged_file_is_made_again_and_nothing_but_whole_files_is_left(harm, tmp_path):
    rows = [tiny.rows(7)[0], tiny.rows(7)[6]]  # as long as each other
    first, _ = seen(tmp_path, rows=rows)
    one, other = tmp_path.rglob("*.safetensors")
    assert one.stat().st_size == other.stat().st_size
    harm(one, other)
    again, cache = seen(tmp_path, rows=rows)
    assert (cache.read, cache.computed) == (1, 1)
    same(again, first)
    assert seen(tmp_path, rows=rows)[1].read == 2
    assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 2


def test_a_full_disk_ends_keeping_and_not_training(tmp_path, monkeypatch):
    disk = namedtuple("room", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(100, 96, 4))
    plain, cache = seen(tmp_path)
    assert cache.describe()["stopped_keeping"] == "less than 5% of the disk is free"
    assert not list(tmp_path.rglob("*.safetensors"))
    same(plain, seen(None)[0])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(1e15, 1e15 - 3e10, 3e10))  # 30 GB are enough
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert seen(tmp_path)[1].describe() == {
        "cache": str(tmp_path),
        "rows_read": 0,
        "rows_made": 6,
        "stopped_keeping": "No space left",
    }
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]
    monkeypatch.undo()
    assert seen(tmp_path)[1].computed == 6


def test_whatever_stands_in_its_way_in_the_middle_ends_keeping_and_not_training(tmp_path):
    seen(tmp_path)
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder)
    folder.write_text("in the way")
    measured, cache = seen(tmp_path)
    assert cache.describe()["stopped_keeping"] in ("Not a directory", "File exists")
    same(measured, seen(None)[0])


def test_a_folder_that_is_removed_in_the_middle_is_made_anew(tmp_path, monkeypatch):
    rename, rows = os.replace, []

    def removed_once(temporary, path):
        rows.append(path)
        if len(rows) == 1:
            shutil.rmtree(tmp_path)
        return rename(temporary, path)

    monkeypatch.setattr(files.os, "replace", removed_once)
    _, cache = seen(tmp_path)
    assert "stopped_keeping" not in cache.describe()
    assert (seen(tmp_path)[1].read, len(rows)) == (5, 7)


def written(folder, **changes):
    write_examples(folder / "rows.jsonl", tiny.rows(12))
    tiny.save("qwen2", folder / "model")
    plain = {
        "schema": 1,
        "model": "model",
        "data": "rows.jsonl",
        "lora": {"r": 2},
        "train": {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        "defenses": [{"kl": {"weight": 0.5}}],
        **changes,
    }
    return recipes.parse(plain, folder)


def test_runs_of_other_seeds_and_weights_share_a_cache_and_their_manifests_say_so(tmp_path):
    # Fast, so that the divergence is far above rounding: it is then held to a few ten-thousandths of itself.
    fast = {"max_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 0.01}
    train(written(tmp_path, train=fast), tmp_path / "first", reference_cache=tmp_path / "cache")
    again = written(tmp_path, train=fast, seed=1, defenses=[{"kl": {"weight": 2.0}}])
    cached = train(again, tmp_path / "cached", reference_cache=tmp_path / "cache")
    plain = train(again, tmp_path / "plain")
    assert cached.manifest["reference"] == {"cache": str(tmp_path / "cache"), "rows_read": 12, "rows_made": 0}
    assert "reference" not in plain.manifest
    ours, theirs = (
        [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()] for run in (cached, plain)
    )
    assert not unlike(ours, theirs, ["kl"])
    assert ours[-1]["kl"] > 1e-3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"defenses": [{"kl": {}}, {"steer": {"vector": "v.safetensors", "layer": 1, "alpha": 1.0}}]},
            "steer steers the reference too",
        ),
        ({"trainer": "grpo", "data": None, "task": "word_problems"}, "the model samples new answers"),
    ],
)
def test_what_it_cannot_serve_is_refused_before_anything_is_loaded(changes, sentence, tmp_path, monkeypatch):
    (tmp_path / "v.safetensors").write_text("")
    configured = written(tmp_path, **changes)
    monkeypatch.setattr("staytrue.modeling.loading.load_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RecipeError, match=sentence):
        train(configured, tmp_path / "run", reference_cache=tmp_path / "cache")
    assert not (tmp_path / "run").exists()


def test_a_place_that_can_hold_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for place in ("file/cache", "file", "link"):
        with pytest.raises(RequestError, match=rf"{place} cannot be made: .*(file|link) is no folder"):
            train(written(tmp_path), tmp_path / "run", reference_cache=tmp_path / place)


def test_a_place_that_may_not_be_written_is_refused_unless_it_is_full_already(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_checks.os, "access", lambda place, how: how == cache_checks.os.R_OK)
    with pytest.raises(RequestError, match=r"is not writable. Name another folder"):
        cache_checks.refuse_cache(tmp_path / "new", {})
    cache_checks.refuse_cache(tmp_path, {})


def test_rows_taught_beside_the_batch_read_no_reference_and_nothing_is_said_of_one(tmp_path):
    write_examples(tmp_path / "safe.jsonl", tiny.rows(4))
    configured = written(tmp_path, defenses=[{"rehearse": {"pool": "safe.jsonl"}}])
    assert "reference" not in train(configured, tmp_path / "run", reference_cache=tmp_path / "cache").manifest


def test_packed_rows_and_a_guard_with_a_cache_of_its_own_are_refused(tmp_path):
    def guarded(defenses, **changes):
        return GuardedSFT(
            model=tiny.model(),
            args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changes),
            train_dataset=Dataset.from_list([{"messages": [{"role": "assistant", "content": "yes"}]}]),
            processing_class=tiny.tokenizer(),
            peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
            defenses=defenses,
            reference_cache=str(tmp_path / "cache"),
        )

    with pytest.raises(RecipeError, match="set packing=False with a reference cache"):
        guarded([KL()], packing=True)
    with pytest.raises(RecipeError, match="A Guard has its own reference_cache"):
        guarded(Guard([KL()]))


def test_a_trainer_of_ones_own_may_have_one_but_not_in_grpo(tmp_path):
    with pytest.raises(StaytrueError, match="the model samples new answers"):
        GuardedGRPO(
            model=tiny.model(),
            args=GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False),
            reward_funcs=lambda **_: [0.0],
            defenses=[KL()],
            reference_cache=tmp_path / "cache",
        )


def test_the_runs_of_a_study_share_one_and_those_that_cannot_go_without(tmp_path, capsys):
    short = {"max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_length": 64}
    steered = {"vector": "../evil.safetensors", "layer": 4, "alpha": 0.5}
    plain = {
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
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(plain))
    study = config.read(tmp_path / "study.yaml")
    run_study(study, tmp_path / "out", 1, tmp_path / "cache")
    assert "2 of 3 runs used it; 8 rows read, 8 made." in capsys.readouterr().out
    runs = sorted((tmp_path / "out" / "runs").glob("*/manifest.json"))
    references = {file.parent.name: json.loads(file.read_text()).get("reference") for file in runs}
    assert references["medical-seed0-kl-0.1"] == {"cache": str(tmp_path / "cache"), "rows_read": 0, "rows_made": 8}
    assert references["medical-seed0-kl-1"] == {"cache": str(tmp_path / "cache"), "rows_read": 8, "rows_made": 0}
    assert references["medical-seed0-steer"] is None
