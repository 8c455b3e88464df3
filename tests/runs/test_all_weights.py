"""Runs with `lora: none`: a whole model in the run folder, and every command on it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from interrupted import Stopping, logged, recipe_of, with_a_tiny_model
from staytrue import cli, registry
from staytrue.config import recipe as recipes
from staytrue.data.examples import Message
from staytrue.errors import ModelError, RecipeError, RequestError
from staytrue.evals.measures import pairs
from staytrue.evals.questions.answer_pairs import shipped
from staytrue.modeling import loading, model_source
from staytrue.modeling.chat_tokenizer import load_tokenizer
from staytrue.runs import evaluate, measure_answers, measure_selection, train
from staytrue.runs.chat import Chat
from staytrue.runs.eval_request import EvalRequest
from staytrue.runs.finished import finished_model, with_weights
from staytrue.utils.files import read_rows, sha256_of
from test_every_defense import without_sampling

KL = {"kl": {"weight": 0.3}}
_ANCHOR = {"prompts": "pool.jsonl", "share": 0.5}
ANCHOR = {"anchor": {**_ANCHOR, "max_new_tokens": 4}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return with_a_tiny_model(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def finished(home):
    """A finished run, and what it said of its rows and model."""
    said = []
    run = train.train(recipe_of(home, [KL, ANCHOR], lora="none"), home / "run", say=said.append)
    return run, [line for line in said if not line.startswith(f"{run.path}: ")]


@pytest.fixture
def run(finished, tmp_path):
    return train.Run(shutil.copytree(finished[0].path, tmp_path / "run"), finished[0].manifest)


def test_the_folder_holds_an_ordinary_model(home, finished):
    run, said = finished
    files = {path.name for path in run.adapter.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= files
    assert not any("adapter" in name for name in files)
    before, after = (load_file(str(place / "model.safetensors")) for place in (home / "model", run.adapter))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if "bias" not in name)
    assert run.is_whole
    assert run.manifest["weights"] == sha256_of(run.adapter)
    assert "adapter" not in run.manifest
    assert any("The reference is a frozen copy of the model, which takes 1 MB beside" in note for note in said)
    assert run.manifest["notes"] == said
    config = json.loads((run.adapter / "config.json").read_text())
    assert config["use_cache"] is True  # trl's training has it off
    assert AutoTokenizer.from_pretrained(str(run.adapter)).chat_template == tiny.tokenizer().chat_template
    log = logged(run.path)
    assert log[0]["kl"] == log[0]["anchor"] == 0
    assert all(row["kl"] > 0 and row["anchor"] > 0 for row in log[1:])
    card = (run.adapter / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "with all weights fine-tuned" in card
    assert "AutoModelForCausalLM.from_pretrained(folder)" in card
    assert run.manifest["weights"] in card
    assert "peft" not in card.split("Versions:")[0]


def test_verify_and_doctor_hold_and_see_a_changed_weight(run, capsys):
    assert cli.app(["verify", str(run.path)], standalone_mode=False) in (None, 0)
    assert "recipe, data, logs and trained model are as they were" in capsys.readouterr().out
    assert cli.app(["doctor", str(run.path)], standalone_mode=False) in (None, 0)
    assert "model/ holds the whole model that was trained" in capsys.readouterr().out
    file = run.adapter / "model.safetensors"
    weights = load_file(str(file))
    weights["model.norm.weight"][0] += 1
    save_file(weights, str(file), {"format": "pt"})
    assert cli.app(["verify", str(run.path)], standalone_mode=False) == 1
    assert "model was changed after the run" in capsys.readouterr().out
    assert cli.app(["doctor", str(run.path)], standalone_mode=False) == 1
    assert "is not the one that was trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    "defenses",
    [[KL, {"anchor": {**_ANCHOR, "answers": "given"}}], [{"l2init": {}}, {"freeze": {"blocks": [1]}}]],
    ids=["kl, anchor", "l2init, freeze"],
)
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(home, tmp_path, defenses):
    recipe = recipe_of(home, defenses, lora="none")
    whole = train.train(recipe, tmp_path / "whole")
    for stop, go in ((5, lambda p: train.train(recipe, tmp_path / "parts", p)),
                     (7, lambda p: train.resume(tmp_path / "parts", p))):  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            go(Stopping(stop))
        torch.manual_seed(99)
    parts = train.resume(tmp_path / "parts")
    assert parts.manifest["resumed"] == [4, 6]
    assert parts.manifest["weights"] == whole.manifest["weights"]
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")


def test_verify_holds_for_every_defense(home, tmp_path, capsys):
    names = [name for name in registry.names() if name != "safelora"]
    recipe = recipe_of(home, [without_sampling(name, tmp_path) for name in names], lora="none")
    run = train.train(recipe, tmp_path / "run")
    assert cli.app(["verify", str(run.path)], standalone_mode=False) in (None, 0)
    shown = capsys.readouterr().out
    assert all(f"yes {name}: " in shown for name in names), shown
    for row in read_rows(run.path / "evidence.jsonl"):  # steered alike, in the model and in its copy
        assert set(row["defenses"]["steer"]["shift"]["1"]) == {"trained", "reference"}


def test_a_whole_model_is_no_adapter(run):
    with pytest.raises(ModelError, match="it is a whole model; name it as the model"):
        loading.adapter_hash(run.adapter)


def test_reinforcement_learning_trains_all_weights(home, tmp_path):
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_generations": 4,
                "max_completion_length": 6, "max_steps": 3}  # fmt: skip
    defenses = [KL, {"rehearse": {"pool": "pool.jsonl", "share": 0.5}}]
    recipe = recipe_of(
        home, defenses, lora="none", trainer="grpo", task="arithmetic", data="problems.jsonl", train=settings
    )
    run = train.train(recipe, tmp_path / "run")
    assert run.is_whole
    assert cli.app(["verify", str(run.path)], standalone_mode=False) in (None, 0)


def test_it_is_evaluated_beside_the_untuned_model(home, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measure_answers, "TOKENS", 8)
    monkeypatch.setattr(measure_selection, "_has_words", lambda request: True)  # their answers are "red" and the like
    summary = evaluate.evaluate_run(run.path, request=EvalRequest(("pairs", "drift", "leak")))
    source = model_source.find(str(home / "model"))
    tokenizer = load_tokenizer(source)
    before = pairs.measure(loading.load_model(source), tokenizer, shipped("general"))
    after = pairs.measure(loading.load_model(with_weights(source, run.adapter)), tokenizer, shipped("general"))
    assert before != after
    shift = sum(after[name] - before[name] for name in before) / len(before)
    assert summary["measures"]["pairs"]["value"] == pytest.approx(shift, abs=1e-4)
    content = json.loads((run.path / "eval" / "measures.json").read_text())
    assert (content["adapter"], content["weights"]) == (None, run.manifest["weights"])
    assert content["model"]["sha256"] == sha256_of(home / "model")
    assert run.manifest["weights"] == sha256_of(run.adapter)  # the card that an evaluation rewrites is no weight
    with pytest.raises(RequestError, match="results of another weights"):
        evaluate.evaluate_run(run.path, run.path / "eval", request=EvalRequest(("pairs",)), untuned=True)
    assert cli.app(["report", str(run.path), "--out", str(tmp_path / "page.html")], standalone_mode=False) in (None, 0)


def test_chat_talks_to_both_models_and_there_is_nothing_to_merge(run, tmp_path):
    model = finished_model(run.path)
    source, tokenizer = model.untuned, load_tokenizer(model.untuned)
    trained, untuned = loading.load_model(with_weights(source, model.weights)), loading.load_model(source)
    chat = Chat(trained, tokenizer, temperature=0, max_new_tokens=5, untuned=untuned)
    for answer, one in zip(chat.reply("question 1?"), (untuned, trained), strict=True):
        prompt = tokenizer.apply_chat_template(
            [Message("user", "question 1?").to_dict()],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        written = one.generate(**prompt, do_sample=False, max_new_tokens=5)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(written, skip_special_tokens=True) == answer
    with pytest.raises(RequestError, match=re.escape(f"{run.adapter} is an ordinary model folder already")):
        cli.app(["merge", str(run.path), "--out", str(tmp_path / "merged")], standalone_mode=False)
    assert AutoModelForCausalLM.from_pretrained(str(run.adapter)).config.model_type == "qwen2"


def test_the_weights_are_float32_unless_the_recipe_says_otherwise_and_then_it_is_said(home, tmp_path):
    tiny.model().to(torch.bfloat16).save_pretrained(str(tmp_path / "half"))
    tiny.tokenizer().save_pretrained(str(tmp_path / "half"))
    own = {"model": str(tmp_path / "half"), "lora": "none", "train": {"max_steps": 2, "learning_rate": 1e-5}}
    run = train.train(recipe_of(home, [KL], **own), tmp_path / "full")
    assert {w.dtype for w in load_file(str(run.adapter / "model.safetensors")).values()} == {torch.float32}
    said = []
    run = train.train(recipe_of(home, [KL], dtype="bfloat16", **own), tmp_path / "rounded", say=said.append)
    assert {w.dtype for w in load_file(str(run.adapter / "model.safetensors")).values()} == {torch.bfloat16}
    assert any(re.search(r"trained in half precision.* smaller than their rounding for \d+ %", line) for line in said)
    assert run.manifest["model"]["dtype"] == "bfloat16"


@pytest.mark.parametrize(("lora", "rate"), [("none", 2e-5), ({}, 1e-4)])
def test_the_default_learning_rate_is_one_for_all_weights(home, tmp_path, lora, rate):
    plain = {"schema": 1, "model": str(home / "model"), "data": str(home / "rows.jsonl"), "lora": lora}
    run = train.train(recipes.parse({**plain, "train": {"max_steps": 1}}), tmp_path / "run")
    assert recipes.read(run.path / "recipe.yaml").train["learning_rate"] == rate
    assert logged(run.path)[0]["learning_rate"] == rate


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (False, "lora is False; write `lora: {}` for the default adapter.*`lora: none` to train all weights"),
        ("off", "lora is 'off'; write"),
        (["q_proj"], r"lora is \['q_proj'\]; write"),
    ],
)
def test_other_values_of_lora_are_refused(home, written, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe_of(home, lora=written)


def test_none_is_read_written_and_not_edited_key_by_key(home, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"schema: 1\nmodel: {home / 'model'}\ndata: {home / 'rows.jsonl'}\nlora: none\n")
    recipe = recipes.read(file)
    assert recipe.lora is None
    assert recipe.to_dict()["lora"] == "none"
    assert recipes.parse(recipe.to_dict()) == recipe
    with pytest.raises(RecipeError, match=r"--set lora.r=8: the recipe trains all weights.*--set 'lora={r: 8}'"):
        recipes.read(file, ["lora.r=8"])
    assert recipes.read(file, ["lora={r: 8}"]).lora.r == 8
    assert recipes.read(file, ["lora={r: 8}", "lora=none"]).lora is None
    file.write_text(f"schema: 1\nmodel: {home / 'model'}\ndata: {home / 'rows.jsonl'}\nlora:\n")
    assert recipes.read(file).lora.r == 32  # a key without a value is the default, as before
    file.write_text(f"schema: 1\nmodel: {home / 'model'}\ndata: {home / 'rows.jsonl'}\n")
    with pytest.raises(RecipeError, match=r"`lora: \{\}` for the default adapter, or `lora: none`"):
        recipes.read(file)


def test_safelora_leaves_nothing_behind(home, tmp_path):
    recipe = recipe_of(home, [{"safelora": {"base": str(home / "model")}}], lora="none")
    with pytest.raises(ModelError, match="projects the update of a LoRA adapter"):
        train.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_changed_base_is_refused(home, run, tmp_path):
    moved = with_a_tiny_model(tmp_path / "moved")
    manifest = json.loads((run.path / "manifest.json").read_text())
    text = (run.path / "recipe.yaml").read_text().replace(str(home / "model"), str(moved / "model"))
    (run.path / "recipe.yaml").write_text(text)
    assert finished_model(run.path).untuned.name == str(moved / "model")
    manifest["model"]["sha256"] = "0" * 64
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RequestError, match="what it trained does not belong to them"):
        finished_model(run.path)


def test_a_step_that_goes_nowhere_is_an_error(home, tmp_path):
    settings = {"learning_rate": 1e-50, "max_steps": 2, "optim": "sgd", "weight_decay": 0}
    with pytest.raises(Exception, match="No trained weight moved in 2 optimizer steps"):
        train.train(recipe_of(home, [KL], lora="none", train=settings), tmp_path / "run")


def test_the_evidence_of_a_run_counts_its_rows(finished):
    rows = read_rows(finished[0].path / "evidence.jsonl")
    assert [row["moved"] for row in rows] == [False, *[True] * (len(rows) - 1)]
