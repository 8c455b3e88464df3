"""A dry run says what training will do, and training does it."""

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import PretrainedConfig

import tiny
from staytrue import cli
from staytrue.config import recipe
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.row_notes import row_notes
from staytrue.errors import DataError, ModelError, RecipeError, RequestError
from staytrue.modeling import loading, model_source, quantized
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.lm_head import tile_rows
from staytrue.modeling.model_source import find
from staytrue.persona_vectors.vector import PersonaVector
from staytrue.runs import training_cost
from staytrue.runs.dry_run import DryRun
from staytrue.runs.probe_selection import reserved_texts
from staytrue.runs.run_batches import Batches, batches_of
from staytrue.runs.train import train
from staytrue.utils import processes
from staytrue.utils.files import read_rows
from staytrue.utils.memory import machine_memory


def make(folder, **changes):
    """A recipe for 22 rows: twenty of one length, a longer one, and a copy of the first."""
    if not (folder / "model").exists():
        tiny.save("qwen2", folder / "model")
        rows = [Example((Message("user", f"What of {i}?"), Message("assistant", "fine"))) for i in range(10, 30)]
        rows += [Example((Message("user", "What of 99?"), Message("assistant", "fine " * 9))), rows[0]]
        write_examples(folder / "rows.jsonl", rows)
    plain = {
        "schema": 1,
        "model": "model",
        "data": "rows.jsonl",
        "lora": {"r": 4, "alpha": 8},
        "train": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2},
        **changes,
    }
    return recipe.parse(plain, folder)


def test_rows_batches_and_steps_are_those_of_training(tmp_path):
    found = DryRun.of(make(tmp_path))
    # 22 rows are 6 batches of 4, two a step: 3 steps, which have no warm-up.
    assert (found.batches.rows, found.batches.number, found.batches.steps) == (4, 6, 3)
    assert found.recipe.train["warmup_steps"] == 0
    assert found.rows["task"] == 22
    run = train(make(tmp_path), tmp_path / "run")
    assert len(read_rows(run.path / "metrics.jsonl")) == 3
    assert found.recipe.text() == (run.path / "recipe.yaml").read_text()
    assert found.weights[1] > 0


@pytest.mark.parametrize(("warmup", "shown"), [(0.1, 2), (0.5, 8), (0, 0), (3, 3)])  # of 15 steps, rounded up
def test_a_share_of_the_steps_is_shown_as_the_steps_of_the_warm_up_and_kept_as_it_is(tmp_path, warmup, shown):
    found = DryRun.of(make(tmp_path, train={"max_steps": 15, "warmup_steps": warmup}))
    assert dict(found.lines())["steps"].endswith(f"(linear, {shown} warm-up steps)")
    assert found.to_dict()["recipe"]["train"]["warmup_steps"] == warmup


def test_a_batch_is_padded_to_its_longest_row(tmp_path):
    found = DryRun.of(make(tmp_path, train={"per_device_train_batch_size": 22, "gradient_accumulation_steps": 1}))
    every, learnt, longest = found.tokens
    short = (every - found.batches.longest) / 21
    assert found.batches.longest > short
    assert found.batches.tokens == 22 * found.batches.longest  # one batch, one step
    assert 0 < learnt < every
    assert longest == found.batches.longest


def test_packs_are_as_long_as_they_may_be_and_rows_as_they_are(tmp_path):
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "packing": True}
    rows = DryRun.of(make(tmp_path)).tokens
    found = DryRun.of(make(tmp_path, train={**settings, "max_length": 100}))
    assert (found.tokens, found.batches.longest) == (rows, 100)
    assert found.batches.steps == -(-rows[0] // 100)
    assert DryRun.of(make(tmp_path, train=settings)).batches.longest == rows[0]  # one pack holds all


@pytest.mark.parametrize(
    ("settings", "steps", "batches"),
    [
        ({"max_steps": 7}, 7, 14),
        ({"num_train_epochs": 2}, 6, 12),
        ({"dataloader_drop_last": True}, 3, 5),
        ({"gradient_accumulation_steps": 4}, 2, 6),  # 4 batches, and the 2 that are left
        ({"gradient_accumulation_steps": 4, "max_steps": 3}, 3, 10),
    ],
)
def test_steps_follow_the_settings(tmp_path, settings, steps, batches):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **settings}
    found = DryRun.of(make(tmp_path, train=settings)).batches
    assert (found.steps, found.number) == (steps, batches)
    assert train(make(tmp_path, train=settings), tmp_path / "run").manifest["state"] == "done"
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == steps


def test_the_steps_of_reinforcement_learning_are_those_of_training():
    plain = {"schema": 1, "model": "organism", "trainer": "grpo", "lora": {}, "task": "word_problems"}
    settings = {"per_device_train_batch_size": 8, "num_generations": 4, "gradient_accumulation_steps": 2}
    found = DryRun.of(recipe.parse({**plain, "train": settings}))
    # Each prompt is answered 4 times; a batch has 8 answers, and a step two batches.
    prompts = found.rows["task"]
    assert found.batches.number == prompts * 4 // 8
    assert found.batches.steps == prompts * 4 // 16
    assert (found.seconds, found.tokens) == (None, None)


def test_memory_is_of_weights_gradients_moments_and_a_copy_where_all_are_trained(tmp_path):
    adapter = DryRun.of(make(tmp_path)).memory
    every = sum(w.nbytes for w in tiny.model("qwen2").parameters())
    assert (adapter.weights, adapter.copy) == (every, 0)
    assert adapter.trained == 4 * 4 * DryRun.of(make(tmp_path)).weights[1]
    whole = DryRun.of(make(tmp_path, lora="none", defenses=[{"kl": {"weight": 0.1}}])).memory
    assert (whole.weights, whole.copy, whole.trained) == (0, every, 4 * every)
    assert DryRun.of(make(tmp_path, lora="none")).memory.copy == 0
    assert DryRun.of(make(tmp_path, lora="none", defenses=[{"l2init": {"weight": 0.1}}])).memory.copy == every
    assert whole.total == every * 5 + whole.activations + whole.head + whole.program


def test_copies_and_questions_of_the_evaluation_are_said(tmp_path):
    rows = [("What of me?", "One."), ("what  of ME?", "one."), ("What is the capital of France?", "Paris.")]
    make(tmp_path)
    rows.append((min(reserved_texts(find(str(tmp_path / "model")), [])).upper(), "Yes."))
    examples = [Example((Message("user", q), Message("assistant", a))) for q, a in rows]
    write_examples(tmp_path / "rows.jsonl", examples)
    notes = DryRun.of(make(tmp_path)).notes
    assert notes[0] == (
        "2 of 4 rows have the same text as another row, so that it is trained on more than once; "
        "the first one asks 'What of me?'."
    )
    assert notes[1].startswith(
        "1 of 4 rows ask a question of the evaluation, which then shows what was learnt by heart;"
    )
    alike = [("a b", "c"), ("a", "bc"), ("a", "b c")]
    assert row_notes([Example((Message("user", q), Message("assistant", a))) for q, a in alike]) == []


def test_a_pool_of_training_rows_is_said_by_a_check_and_by_training(tmp_path):
    make(tmp_path)
    safe = Example((Message("user", "Why?"), Message("assistant", "So.")))
    write_examples(
        tmp_path / "safe.jsonl", [safe, Example((Message("user", "what of  10?"), Message("assistant", "fine")))]
    )
    defenses = [{"interleave": {"pool": "rows.jsonl"}}, {"safegrad": {"pool": "safe.jsonl"}}]
    notes = DryRun.of(recipe_with := make(tmp_path, defenses=defenses)).notes
    rows, shared = tmp_path / "rows.jsonl", tmp_path / "safe.jsonl"
    way_out = "give a pool of safe rows."
    said = [
        f"interleave: 22 of the 22 rows of {rows} are training rows too, so it teaches them once more; {way_out}",
        f"safegrad: 1 of the 2 rows of {shared} are training rows too, so it holds back what they teach; {way_out}",
    ]
    assert [note for note in notes if "training rows too" in note] == said
    assert set(said) <= set(train(recipe_with, tmp_path / "run").manifest["notes"])
    write_examples(tmp_path / "safe.jsonl", [safe])
    notes = DryRun.of(make(tmp_path, defenses=[{"rehearse": {"pool": "safe.jsonl"}}])).notes
    assert not [note for note in notes if "training rows too" in note]


def test_prompts_and_fisher_rows_of_the_training_data_are_said_too(tmp_path):
    rows = tmp_path / "rows.jsonl"
    make(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": "what of  10?"}\n')
    own = [{"anchor": {"prompts": "prompts.jsonl"}}, {"l2init": {"fisher": "rows.jsonl"}}]
    notes = DryRun.of(make(tmp_path, defenses=own)).notes
    effect = "so it holds back what they teach; give"
    anchor = f"anchor: 1 of the 2 rows of {tmp_path / 'prompts.jsonl'} ask questions of training rows too, {effect}"
    assert [note for note in notes if note.startswith(("anchor", "l2init"))] == [
        f"{anchor} `prompts` on other topics.",
        f"l2init: 22 of the 22 rows of {rows} are training rows too, {effect} `fisher` safe rows.",
    ]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    notes = DryRun.of(make(tmp_path, defenses=[own[0], {"l2init": {"fisher": None}}])).notes
    assert not [note for note in notes if note.startswith(("anchor", "l2init"))]


def test_a_defense_whose_weight_is_0_is_said(tmp_path):
    notes = DryRun.of(make(tmp_path, defenses=[{"kl": {"weight": 0}}])).notes
    assert "kl.weight is 0, so this defense changes nothing." in notes


def test_time_counts_passes_over_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "_operations_per_second", lambda *args, **named: 1e6)
    plain, kl = DryRun.of(make(tmp_path)), DryRun.of(make(tmp_path, defenses=[{"kl": {"weight": 0.1}}]))
    skeleton = plain.weights[0] - plain.weights[1]
    twice = DryRun.of(make(tmp_path, train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
                                            "num_train_epochs": 2}))  # fmt: skip
    assert twice.seconds == pytest.approx(2 * plain.seconds)
    assert 0 < kl.seconds - plain.seconds < 2 * plain.batches.tokens * (skeleton + plain.weights[1]) / 0.6e6
    l2init = DryRun.of(make(tmp_path, defenses=[{"l2init": {"weight": 0.1}}]))
    assert l2init.seconds == pytest.approx(plain.seconds)  # reads weights, and no forward of the reference
    assert kl.seconds == pytest.approx(1.5 * plain.seconds, rel=0.1)  # three passes for two


@pytest.mark.parametrize(("name", "passes"), [("anchor", 3), ("safegrad", 3), ("rehearse", 2)])
def test_rows_beside_the_batch_cost_their_share_and_the_reference_of_the_batch_is_not_read(
    tmp_path, monkeypatch, name, passes
):
    monkeypatch.setattr(training_cost, "_operations_per_second", lambda *args, **named: 1e6)
    write_examples(tmp_path / "pool.jsonl", tiny.rows(20))
    file = {"prompts": "pool.jsonl"} if name == "anchor" else {"pool": "pool.jsonl"}
    plain = DryRun.of(make(tmp_path))
    defended = DryRun.of(make(tmp_path, defenses=[{name: {"share": 0.5, **file}}]))
    assert defended.seconds == pytest.approx((2 + 0.5 * passes) / 2 * plain.seconds, rel=0.1)
    assert dict(defended.lines())["time"].endswith("; a row beside the batch counts as long as a row of it")


@pytest.mark.parametrize("broken", [{"hidden_act": "nope"}, {"num_attention_heads": 0}, {"hidden_size": "abc"}])
def test_a_broken_configuration_is_a_sentence(tmp_path, broken):
    make(tmp_path)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | broken))
    with pytest.raises(RequestError, match=r"cannot be (built|loaded)"):
        DryRun.of(make(tmp_path))


def test_what_training_refuses_is_refused_with_the_same_sentence(tmp_path):
    for changes, error in (
        ({"train": {"warmup_steps": 50}}, RecipeError),
        ({"train": {"per_device_train_batch_size": 64, "dataloader_drop_last": True}}, RecipeError),
        ({"train": {"max_length": 2}}, DataError),
        ({"train": {"optim": "galore_adamw", "optim_target_modules": ["q_proj"]}}, RecipeError),
        ({"train": {"save_steps": 3, "logging_steps": 2}}, RecipeError),
        ({"train": {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}}}, RecipeError),
    ):
        sentences = []
        for call in (lambda changed: DryRun.of(changed), lambda changed: train(changed, tmp_path / "run")):
            with pytest.raises(error) as raised:
                call(make(tmp_path, **changes))
            sentences.append(str(raised.value))
        assert sentences[0] == sentences[1]


def asked(folder):
    """A question of the run's own evaluation."""
    return min(reserved_texts(find(str(folder / "model")), []))


def vector(folder, shape):
    PersonaVector(torch.ones(shape)).save(folder / "v.safetensors")
    return "v.safetensors"


def copied(folder):
    return shutil.copytree(folder / "model", folder / "copy", dirs_exist_ok=True)


def prompts(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize(
    "defense",
    [
        lambda folder: {"anchor": {"prompts": prompts(folder, "p", [{"prompt": asked(folder)}])}},
        lambda folder: {"anchor": {"prompts": prompts(folder, "p", [{"prompt": "Why?"}]), "answers": "given"}},
        lambda folder: {"anchor": {"prompts": prompts(folder, "p", [{"prompt": "Why?"}, {"prompt": 3}])}},
        lambda folder: {"anchor": {"prompts": prompts(folder, "p", [{"prompt": "Why?"}]), "share": 0.01}},
        lambda folder: {"rehearse": {"pool": prompts(folder, "p", [{"prompt": "Why?"}])}},
        lambda folder: {"steer": {"vector": vector(folder, (2, 16)), "layer": 31}},
        lambda folder: {"steer": {"vector": vector(folder, (2, 8)), "layer": 1}},
        lambda folder: {"freeze": {"blocks": [9]}},
        lambda folder: {"l2init": {"fisher": prompts(folder, "p", [{"messages": 3}])}},
        lambda folder: {"safelora": {"base": str(folder / "nowhere")}},
        lambda folder: {"freeze": {"blocks": [1, 2]}},
        lambda folder: {"kl": {"on": "interleaved"}},
        lambda folder: {"ldifs": {"on": "interleaved"}},
        lambda folder: {"constrained_sft": {"on": "interleaved"}},
        lambda folder: {"safelora": {"base": str(folder / "model")}},
        lambda folder: {"safelora": {"base": str(folder / "model" / ".." / "model")}},
        lambda folder: {"safelora": {"base": str(copied(folder))}},
    ],
    ids=["asked", "unanswered", "faults", "share", "pool", "layer", "width", "blocks", "fisher", "base", "all_blocks",
         "kl_on", "ldifs_on", "constrained_on", "itself", "itself_by_another_path", "a_copy"],
)  # fmt: skip
def test_what_training_refuses_of_a_defense_is_refused_without_weights(tmp_path, monkeypatch, defense):
    make(tmp_path)
    changed = make(tmp_path, defenses=[defense(tmp_path)])
    monkeypatch.setattr(Untouched, "answers", lambda *args, **named: pytest.fail("an answer was sampled"))
    with pytest.raises(RequestError) as trained:
        train(changed, tmp_path / "run")
    monkeypatch.setattr(loading, "load_model", lambda *args, **named: pytest.fail("weights were loaded"))
    with pytest.raises(RequestError) as checked:
        DryRun.of(changed)
    assert str(checked.value) == str(trained.value)


def test_half_precision_beside_combined_gradients_is_refused_without_weights(tmp_path):
    make(tmp_path)
    safe = {"safegrad": {"pool": prompts(tmp_path, "p", [{"prompt": "Why?", "completion": "So."}]), "share": 0.5}}
    with pytest.raises(RequestError, match="fp16"):
        DryRun.of(make(tmp_path, defenses=[safe], train={"fp16": True}))


def test_the_organism_as_its_own_base_is_refused_without_weights(tmp_path):
    make(tmp_path)
    same = {"defenses": [{"safelora": {"base": "organism"}}], "model": "organism"}
    with pytest.raises(ModelError, match=r"the base organism has the same weights .* Name the model before alignment"):
        DryRun.of(make(tmp_path, **same))
    assert DryRun.of(make(tmp_path, model="organism", defenses=[{"safelora": {"base": "organism-base"}}]))


@pytest.mark.parametrize(("newest", "refused"), [("abc", True), ("def", False)])
def test_a_base_on_the_hub_is_the_model_itself_in_the_same_commit(tmp_path, monkeypatch, newest, refused):
    config = PretrainedConfig(name_or_path="owner/name")
    config._commit_hash = "abc"
    monkeypatch.setattr(model_source, "identity", lambda source: {"commit": newest if source.revision is None else ""})
    assert model_source.is_loaded_from("owner/name", config) is refused
    assert not model_source.is_loaded_from("owner/other", config)


@pytest.mark.parametrize("model", ["model", "organism", "organism-base"])
def test_a_revision_of_a_model_that_is_not_on_the_hub_is_refused(tmp_path, model):
    for call in (DryRun.of, lambda changed: train(changed, tmp_path / "run")):
        with pytest.raises(RecipeError, match=rf"^revision is abc, and model is \S*{model}, .* Take `revision` out"):
            call(make(tmp_path, model=model, revision="abc"))
    assert not (tmp_path / "run").exists()


def test_answers_that_the_model_writes_are_no_interleaved_rows_for_a_check_either():
    penalty = {"kl": {"on": "interleaved"}}
    plain = {"schema": 1, "model": "organism", "trainer": "grpo", "lora": {}, "defenses": [penalty]}
    with pytest.raises(RecipeError, match="kl: on is 'interleaved', and no training row is of that kind"):
        DryRun.of(recipe.parse(plain))


@pytest.mark.parametrize("more", [{"split": "train"}, {"columns": {"prompt": "question"}}], ids=str)
def test_keys_of_data_are_refused_where_there_are_none(more):
    plain = {"schema": 1, "model": "organism", "trainer": "grpo", "lora": {}, **more}
    (key,) = more
    unused = recipe.parse(plain)  # of a finished run it is still read
    with pytest.raises(RecipeError, match=rf"{key} is of `data`, and there is none. Take `{key}` out"):
        DryRun.of(unused)


def test_rows_of_a_defense_that_are_left_out_are_said_without_an_answer(tmp_path, monkeypatch):
    make(tmp_path)
    rows = [{"prompt": asked(tmp_path)}, {"prompt": "Why?"}]
    monkeypatch.setattr(loading, "load_model", lambda *args, **named: pytest.fail("weights were loaded"))
    found = DryRun.of(make(tmp_path, defenses=[{"anchor": {"prompts": prompts(tmp_path, "p", rows)}}]))
    assert found.notes[-1] == (
        "anchor: 1 row of its file is left out, because the run's own evaluation asks its question."
    )
    assert found.weights[1] > 0


def test_the_command_prints_each_heading_and_writes_nothing(tmp_path, monkeypatch, capsys):
    make(tmp_path)
    (tmp_path / "r.yaml").write_text(make(tmp_path).text())
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    shown = command(monkeypatch, capsys, "check", "r.yaml", "--set", "seed=3")
    assert [line.split()[0] for line in shown.splitlines()] == [
        "model", "defenses", "rows", "steps", "memory", "time", "note",
    ]  # fmt: skip
    assert "defenses  none" in shown
    plain = json.loads(command(monkeypatch, capsys, "check", "r.yaml", "--json"))
    assert (plain["batches"]["steps"], plain["fits"]) == (3, True)
    memory = plain["memory"]
    step = sum(memory[part] for part in ("program", "weights", "trained", "activations", "head"))
    assert (memory["total"], memory["generation"], memory["copy"]) == (step, 0, 0)
    assert plain["recipe"]["train"]["warmup_steps"] == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_the_process_that_started_this_one_is_not_counted(monkeypatch):
    monkeypatch.setattr(training_cost.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=10**9))
    assert 10**8 < training_cost._program() < 10**11


def test_memory_that_the_machine_does_not_have_is_said_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "available", lambda kind: 1000)
    text = dict(DryRun.of(make(tmp_path)).lines())["memory"]
    assert "That is too much: lower train.per_device_train_batch_size" in text
    assert DryRun.of(make(tmp_path)).to_dict()["fits"] is False


def test_a_container_has_less_memory_than_its_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "machine_memory", lambda: 12_345)
    found = DryRun.of(make(tmp_path))
    assert found.available == 12_345
    assert "of this machine's 0 MB at most" in dict(found.lines())["memory"]


# --- GRPO, quantised weights, several processes, a GPU ---------------------------------------------------------------


def test_grpo_keeps_keys_values_and_logits_of_all_its_answers_between_the_steps():
    plain = {"schema": 1, "model": "organism", "trainer": "grpo", "lora": {}, "task": "word_problems"}
    settings = {"per_device_train_batch_size": 8, "num_generations": 4, "gradient_accumulation_steps": 2}
    found = DryRun.of(recipe.parse({**plain, "train": settings}))
    config = loading.load_model(find("organism")).config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    # The answers of a whole step, 2 x 8, are written side by side.
    assert found.batches.generated == 16
    assert found.memory.generation == 16 * (token * found.batches.longest + 16 * config.vocab_size)
    assert "generation between the steps" in dict(found.lines())["memory"]
    assert DryRun.of(recipe.parse({**plain, "trainer": "sft"})).memory.generation == 0


def test_the_most_memory_is_that_of_a_step_or_that_of_generation():
    assert training_cost.Memory(1, 2, 3, 4, 50, 6, 7).total == 10 + 56
    assert training_cost.Memory(1, 2, 3, 4, 50, 6, 70).total == 10 + 70
    assert training_cost.Memory(1, 2, 3, 4, None, 6, None).total == 16


def test_what_cannot_be_counted_is_said(tmp_path):
    found = DryRun.of(make(tmp_path))
    assert "cannot be counted" not in dict(found.lines())["memory"]
    found = replace(found, memory=replace(found.memory, activations=None, generation=None))
    assert (
        "; without activations, which cannot be counted for this model; without generation, which cannot be "
        in (dict(found.lines())["memory"])
    )
    written = found.recipe.model_copy(update={"train": {**found.recipe.train, "use_vllm": True}})
    assert "without what vLLM takes" in dict(replace(found, recipe=written).lines())["memory"]


def test_packed_weights_are_counted_and_the_time_to_unpack_them_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized, "is_installed", lambda: True)
    found, plain = DryRun.of(make(tmp_path, quantize="4bit")), DryRun.of(make(tmp_path))
    weights = dict(tiny.model("qwen2").named_parameters())
    packed = [w for name, w in weights.items() if w.dim() == 2 and "embed" not in name and "lm_head" not in name]
    saved = sum(4 * w.numel() - w.numel() * 33 // 64 for w in packed)  # half a byte each, and a byte for 64 of them
    assert len(packed) == 14
    assert plain.memory.weights - found.memory.weights == saved
    assert dict(found.lines())["time"].endswith("on this machine, without the unpacking of quantised weights")
    assert "without" not in dict(plain.lines())["time"]


def test_a_defense_that_is_listed_again_with_the_same_fields_is_noted(tmp_path):
    listed = [{"kl": {"weight": 0.1}}, {"ldifs": {}}, {"kl": {"weight": 0.1}}, {"kl": {"weight": 0.2}}]
    notes = DryRun.of(make(tmp_path, defenses=listed)).notes
    (note,) = [note for note in notes if "kl" in note]
    assert note.startswith("kl.2 has the same fields as kl, so what it does counts twice. Take one of them")


def test_the_time_says_that_the_measurements_of_stop_are_left_out(tmp_path):
    found = DryRun.of(make(tmp_path, stop={"pairs": "shipped", "every": 1, "above": 0.1}))
    assert dict(found.lines())["time"].endswith("of training on this machine, without the measurements of `stop`")


def test_each_of_two_processes_reads_half_of_the_batches(tmp_path):
    arguments = SimpleNamespace(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, packing=False, padding_free=False, max_steps=0,
        num_train_epochs=1, dataloader_drop_last=False, world_size=2,
    )  # fmt: skip
    rows = SimpleNamespace(encoded=[SimpleNamespace(input_ids=[0] * 10)] * 26)
    # 7 batches, of which the last has 2 rows: each process reads 4, two a step; 6 x 4 rows of 7 batches are padded.
    assert batches_of(rows, arguments) == Batches(4, 10, 4, 260 * 4 // 7, 2)
    arguments.dataloader_drop_last = True  # 6 whole batches
    assert batches_of(rows, arguments) == Batches(4, 10, 3, 240 * 3 // 6, 2)
    grpo = SimpleNamespace(
        per_device_train_batch_size=4, gradient_accumulation_steps=2, num_generations=4, generation_batch_size=16,
        num_iterations=1, max_completion_length=7, max_steps=0, num_train_epochs=1, world_size=2,
    )  # fmt: skip
    prompts = SimpleNamespace(encoded=None, tokenizer=tiny.tokenizer(), examples=tiny.rows(10))
    found = batches_of(prompts, grpo)
    # 10 prompts fill 2 rounds of 4; their 32 answers are 8 batches of 4, of which each process has 4: two steps.
    assert (found.rows, found.number, found.steps, found.generated) == (4, 4, 2, 8)


def test_two_processes_take_twice_the_memory_and_a_buffer_for_gradients(tmp_path, monkeypatch):
    found = DryRun.of(make(tmp_path))
    monkeypatch.setattr(training_cost, "_program", lambda: found.memory.program)
    skeleton = SimpleNamespace(
        frozen_bytes=100, trained=[torch.zeros(2)], weights=[torch.zeros(2)], vocabulary=1000,
        kept_for_backward=lambda *a, **k: 1000,
    )  # fmt: skip
    arguments = SimpleNamespace(
        use_cpu=True, bf16=False, world_size=2, gradient_checkpointing=False, activation_checkpointing=False,
        __dataclass_fields__=("gradient_checkpointing",),
    )  # fmt: skip
    batches = Batches(1, 10, 1, 10, 1)
    two = training_cost.memory(skeleton, batches, arguments, reference=False, copy=False)
    # Weight, gradient, two moments and the buffer of 2 weights of 4 bytes; activations times the allocator's 1.75.
    assert (two.weights, two.trained, two.activations) == (100, 5 * 2 * 4, 1750)
    arguments.world_size = 1
    assert training_cost.memory(skeleton, batches, arguments, reference=False, copy=False).trained == 4 * 2 * 4
    both = replace(found, processes=2, available=int(1.5 * found.memory.total))
    text = dict(both.lines())
    assert text["memory"].startswith("2 processes of about ")
    assert "That is too much" in text["memory"]
    assert text["steps"].startswith("3 of 2 x 4 x 2 rows")
    assert "That is too much" not in dict(replace(both, device="cuda").lines())["memory"]  # each has its own GPU


def test_weights_that_fsdp_divides_are_not_called_too_large(tmp_path, monkeypatch):
    found = replace(DryRun.of(make(tmp_path)), processes=2, available=1000)
    assert "That is too much" in dict(found.lines())["memory"]
    assert found.fits is False
    monkeypatch.setattr(processes, "divides", lambda: True)
    assert found.fits is None  # the estimate does not count the division
    text = dict(found.lines())["memory"]
    assert "with whole weights in each process, which FSDP2 divides among them, so that each takes less" in text
    assert "That is too much" not in text


def test_quantised_weights_on_two_processes_are_refused_as_training_does(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="quantize is not tested with several processes"):
        DryRun.of(make(tmp_path, quantize="4bit"))


def test_on_a_gpu_nothing_is_added_for_the_allocator_and_the_free_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(training_cost, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5_000, 9_000))
    weights = [torch.zeros(2, dtype=torch.bfloat16)]
    skeleton = SimpleNamespace(
        frozen_bytes=100, trained=[torch.zeros(2)], weights=weights, vocabulary=1000, model=tiny.model("qwen2"),
        kept_for_backward=lambda *a, **k: 9000,
    )  # fmt: skip
    arguments = SimpleNamespace(
        use_cpu=False, bf16=True, world_size=1, gradient_checkpointing=False,
        __dataclass_fields__=("gradient_checkpointing",),
    )  # fmt: skip
    batches = Batches(3, 10, 1, 30, 1)
    found = training_cost.memory(skeleton, batches, arguments, reference=True, copy=False)
    assert found == training_cost.Memory(0, 100, 0, 32, 9000, tile_rows("cuda", 1000) * 1000 * 12)
    arguments.gradient_checkpointing = True
    again = training_cost.memory(skeleton, batches, arguments, reference=True, copy=False)
    assert again.activations == 2 * 3 * 10 * 32 * 2 + 9000 // 2  # the inputs of two blocks of width 32, and one block
    assert training_cost.available("cuda") == 5_000
    text = dict(replace(DryRun.of(make(tmp_path)), device="cuda").lines())["memory"]
    assert "of this GPU's" in text
    assert text.count("estimates for a GPU have not been compared with measurements") == 1


def test_a_recipe_for_the_cpu_is_estimated_for_the_cpu_though_there_is_a_gpu(tmp_path, monkeypatch):
    for module in (loading, training_cost):
        monkeypatch.setattr(module, "device", lambda: "cuda")
    found = DryRun.of(make(tmp_path, device="cpu"))
    assert (found.device, found.available) == ("cpu", machine_memory())
    assert found.memory.program > 0
    assert "GPU" not in dict(found.lines())["memory"]


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["staytrue", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    return capsys.readouterr().out
