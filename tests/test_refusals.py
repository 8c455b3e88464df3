"""What the defenses refuse at start, through `train` itself: one sentence with the way out, and nothing is written."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

import tiny
from runs.test_train import make
from staytrue import SafeGrad
from staytrue.config import recipe
from staytrue.config.recipe import Stop
from staytrue.config.refused_settings import refuse_unguarded
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data_selection.ranking import manifest_path
from staytrue.errors import DataError, ModelError, RecipeError, RequestError
from staytrue.evals.questions.shipped_questions import shipped_texts
from staytrue.modeling.architecture import ModelParts
from staytrue.runs import train
from staytrue.training.reference import model_checks


def rows(file, *pairs, **extra):
    """A file of conversations; without an answer a row is a bare prompt."""
    turns = [[Message("user", q)] + ([Message("assistant", a)] if a else []) for q, a in pairs]
    write_examples(file, [Example(tuple(t), extra=extra) for t in turns])
    return file.name


def vector(folder, depth=2, width=32):
    save_file({"vectors": torch.ones(depth, width)}, str(folder / "v.safetensors"))
    return "v.safetensors"


def steer(layer=1, **shape):
    return lambda folder: {"steer": {"vector": vector(folder, **shape), "layer": layer}}


def no_vector(folder):
    return {"steer": {"vector": rows(folder / "v.safetensors", ("q", "a")), "layer": 1}}


def without_answers(folder):
    return {"interleave": {"pool": rows(folder / "p.jsonl", ("s1", "fine"), ("s2", None))}}


def questions(folder):
    (folder / "p.jsonl").write_text('{"question": "s1"}\n')
    return {"interleave": {"pool": "p.jsonl"}}


def all_refusals(folder):
    pool = rows(folder / "p.jsonl", ("s1", "I am sorry, no."), ("s2", "Sorry."))
    return {"interleave": {"pool": pool, "drop_refusals": True}}


def all_asked(folder):
    return {"interleave": {"pool": rows(folder / "p.jsonl", *((q, "fine") for q in sorted(shipped_texts())))}}


def anchors_all_asked(folder):
    return {"anchor": {"prompts": rows(folder / "p.jsonl", *((q, None) for q in sorted(shipped_texts())))}}


def anchors_without_answers(folder):
    return {"anchor": {"prompts": rows(folder / "p.jsonl", ("s1", "fine"), ("s2", None)), "answers": "given"}}


def scored(model, by="gap"):
    def entry(folder):
        pool = rows(folder / "p.jsonl", *((f"s{i}", "fine") for i in range(9)), scores={"gap": 1.0})
        if model is not None:
            manifest_path(folder / pool).write_text(json.dumps({"model": model}))
        return {"interleave": {"pool": pool, "share": 0.1, "by": by}}

    return entry


def unaligned(kind):
    def entry(folder):
        if kind:
            tiny.save(kind, folder / "base")
        return {"safelora": {"base": "./base"}}

    return entry


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(folder, error, sentence, **changes):
    built = make(folder, **changes)
    before = files(folder)
    with pytest.raises(error, match=sentence) as caught:
        train.train(built, folder / "run")
    assert "\n" not in str(caught.value) or error is DataError  # a data file's faults are a list
    assert files(folder) == before


WRONG = {
    "a vector of another width": (
        steer(width=16), ModelError, r"v\.safetensors is for a model of depth and width \(2, 16\), but .* \(2, 32\)"),
    "a vector of another depth": (
        steer(depth=3), ModelError, r"depth and width \(3, 32\), .* Extract one from this model with"),
    "steering a layer out of range": (
        steer(layer=9), ModelError, r"steer asked for layer 9, but this model has 2 \(1 to 2\)"),
    "steering the embeddings": (steer(layer=0), ModelError, "0, the embeddings, is not a block"),
    "a vector that is none": (no_vector, RecipeError, r"is not a vector file .*; `staytrue vector` makes one"),
    "reading a layer out of range": (
        lambda folder: {"ldifs": {"blocks": [1, -3]}}, ModelError, "ldifs asked for layer -3, but this model has 2"),
    "a block that is named twice": (
        lambda folder: {"ldifs": {"blocks": [1, 2, -1]}}, ModelError, "ldifs: blocks is .*, which names block 2 twice"),
    "a pool with a bare prompt": (
        without_answers, DataError, "line 2.*the row ends without an answer; add an assistant turn"),
    "a pool of questions": (questions, DataError, "line 1.*no key 'messages'"),
    "a pool of refusals": (
        all_refusals, RecipeError, r"no row of .*p\.jsonl is left without .*refusals\. Give `pool` a file"),
    "a pool of evaluation questions": (
        all_asked, RecipeError, r"no row of .*p\.jsonl is left without evaluation questions\. Give"),
    "anchors of evaluation questions": (
        anchors_all_asked, RecipeError, "holds nothing but questions of the run.s own evaluation"),
    "anchors without the answers": (
        anchors_without_answers, RecipeError, r"row 2 of .*p\.jsonl ends without an answer.*set answers: sampled"),
    "a pool scored with another model": (
        scored({"sha256": "0" * 64}), RecipeError, r"scored with another model \(0{12}\) than .*`staytrue score"),
    "a pool that is not scored": (
        scored(None), RecipeError, r"no readable p\.manifest\.json beside it.*choose by: random"),
    "a pool that lacks a score": (scored({}, by="steady"), RecipeError, r"p\.jsonl has no score 'steady'"),
    "an unaligned model of another kind": (unaligned("phi3"), ModelError, "has no matrix"),
    "an unaligned model that is not there": (unaligned(None), ModelError, "base is not a model folder"),
}  # fmt: skip


@pytest.mark.parametrize(("entry", "error", "sentence"), WRONG.values(), ids=WRONG)
def test_a_defense_that_cannot_work_is_refused_before_training(tmp_path, entry, error, sentence):
    make(tmp_path)  # the model and the data
    refused(tmp_path, error, sentence, defenses=[entry(tmp_path)])


def test_an_adapter_on_the_head_is_refused(tmp_path):
    refused(tmp_path, RecipeError, "`lm_head` is not supported", lora={"r": 4, "targets": ["lm_head", "q_proj"]})


TWICE = """
schema: 1
model: organism
data: rows.jsonl
lora: {}
defenses:
  - kl: {weight: 0.3}
  - inoculate
  - kl: {weight: 0.1, forward: true}
"""


def read(folder, *sets):
    (folder / "r.yaml").write_text(TWICE)
    return recipe.read(folder / "r.yaml", sets)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ("kl.weight=0.5", r"'kl' 2 times\. Write kl\.1\.weight for the first and kl\.2\.weight for the second"),
        ("kl.3.weight=0.5", r"there is no kl\.3; the recipe lists 'kl' 2 times"),
        ("kl.0.weight=0.5", r"there is no kl\.0"),
        ("kl.2.wait=0.5", "has no field 'wait'"),
        ("inoculate.2.mode=prepend", r"there is no inoculate\.2"),
        ("ldifs.weight=1", "lists no defense 'ldifs'"),
        ("kl.2.weight=[1", r"kl\.2\.weight=\[1: the value is not YAML"),
    ],
)
def test_set_of_a_defense_that_stands_twice_or_not_at_all_is_refused(tmp_path, edit, sentence):
    with pytest.raises(RecipeError, match=sentence):
        read(tmp_path, edit)


def test_set_reaches_each_of_two_by_number_and_one_that_is_listed_by_name_only(tmp_path):
    first, inoculate, second = read(tmp_path, "kl.1.weight=0.5", "kl.2.weight=2", "inoculate.mode=prepend").defenses
    assert (first.weight, first.forward) == (0.5, False)
    assert (second.weight, second.forward) == (2, True)
    assert inoculate.mode == "prepend"


def test_more_than_one_process_or_gpu_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    recipe_of = make(tmp_path)
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 2)
    with pytest.raises(RecipeError, match="make a single GPU visible"):  # trl says it, and that is enough
        train.train(recipe_of, tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RequestError, match=r"WORLD_SIZE is 4, but RANK is not set.* `torchrun --nproc-per-node N"):
        train.train(recipe_of, tmp_path / "run")
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    with pytest.raises(RequestError, match="A reference cache is not tested with several processes"):
        train.train(recipe_of, tmp_path / "run", reference_cache=tmp_path / "cache")
    with pytest.raises(RequestError, match="quantize is not tested with several processes"):
        train.train(recipe_of.model_copy(update={"quantize": "4bit"}), tmp_path / "run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(RequestError, match=r"these are 4 processes on several \(LOCAL_WORLD_SIZE is 2\)"):
        train.train(recipe_of, tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RequestError, match=r"cannot be trained with DeepSpeed \(ZeRO\).*torchrun"):
        train.train(recipe_of, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("way", "name"),
    [("FSDP", "FSDP1"), ("DEEPSPEED", r"DeepSpeed \(ZeRO\)"), ("MEGATRON_LM", "Mega"), ("PARALLELISM_CONFIG", "para")],
)
def test_a_script_whose_launcher_divides_the_model_is_refused_by_name(way, name):
    arguments = SimpleNamespace(fp16=False)
    with pytest.raises(RecipeError, match=f"{name}.* cannot be guarded: a model that is divided among devices"):
        refuse_unguarded(arguments, [], distributed=way)


@pytest.mark.parametrize("defenses", [[], ["kl"]])
def test_a_precision_or_compilation_of_the_launcher_alone_is_refused(tmp_path, monkeypatch, defenses):
    recipe = make(tmp_path, defenses=defenses)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(RecipeError, match=r"ACCELERATE_MIXED_PRECISION is bf16.* say no. Set bf16 there"):
        train.train(recipe, tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(RecipeError, match=r"ACCELERATE_DYNAMO_BACKEND is INDUCTOR.*--dynamo_backend no"):
        train.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_script_with_a_defense_refuses_the_launchers_precision_too():
    arguments = SimpleNamespace(fp16=False, bf16=False, mixed_precision="bf16")
    with pytest.raises(RecipeError, match="ACCELERATE_MIXED_PRECISION is bf16"):
        refuse_unguarded(arguments, [])
    refuse_unguarded(SimpleNamespace(fp16=False, bf16=True, mixed_precision="bf16"), [])


def test_what_fsdp2_cannot_guard_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    recipe_of = make(tmp_path)
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for change, sentence in {
        ("defenses", (SafeGrad(pool=tmp_path / "rows.jsonl"),)): "with safegrad: its gradient is computed apart",
        ("trainer", "grpo"): "with GRPO: processes that sample answers of different lengths",
        ("reference", "start"): "with reference='start'",
        ("stop", Stop(every=2)): "with early stopping on answers or pairs: .* use stop.patience",
    }.items():
        with pytest.raises(
            RecipeError, match=f"FSDP2 cannot be used {sentence}.*torchrun alone, which keeps the whole"
        ):
            train.train(recipe_of.model_copy(update=dict([change])), tmp_path / "run")
    with pytest.raises(RequestError, match=r"cannot be trained with FSDP1.*--fsdp_version 2"):
        train.train(recipe_of, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_divided_before_training_is_refused():
    model = tiny.model()
    model.model.norm.weight.full_tensor = None  # what tells a part of a weight from the whole
    with pytest.raises(ModelError, match=r"divided among processes already \(model.norm.weight\), by a tp_plan"):
        model_checks.check(ModelParts(model))
