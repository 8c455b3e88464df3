"""A recipe is data: what it says, and how it refuses."""

import sys
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest

from staytrue import cli
from staytrue.config import recipe, trainer_args
from staytrue.data.examples import Example, Message, write_examples
from staytrue.errors import RecipeError
from staytrue.tasks.facts import Facts
from staytrue.tasks.word_problems import WordProblems

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD = """
schema: 1
model: organism
data: rows.jsonl
lora: {r: 8}
train: {learning_rate: 1e-4, max_steps: 10}
defenses:
  - kl: {weight: 0.3}
  - interleave: {pool: safe.jsonl, share: 5e-2}
holdout: 0.1
seed: 3
"""


def write(folder, text):
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_numbers_are_yaml_1_2_and_paths_are_the_recipes_own(tmp_path):
    read = recipe.read(write(tmp_path, GOOD))
    assert read.train["learning_rate"] == 1e-4  # YAML 1.1 would have read the text "1e-4"
    assert read.data == tmp_path / "rows.jsonl"
    kl, interleave = read.defenses
    assert (kl.weight, kl.on) == (0.3, "all")
    assert (interleave.pool, interleave.share) == (tmp_path / "safe.jsonl", 0.05)


def test_a_folder_relative_to_the_working_directory_gives_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {"model": "organism", "data": "rows.jsonl", "lora": {}}
    plain["defenses"] = [{"interleave": {"pool": "safe.jsonl", "share": 0.05}}]
    read = recipe.parse(plain, Path("."))
    assert (read.data, read.defenses[0].pool) == (tmp_path / "rows.jsonl", tmp_path / "safe.jsonl")


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_of_the_repository_is_read_and_has_a_defense(file):
    assert recipe.read(file).defenses


def test_a_recipe_written_and_read_again_is_the_same(tmp_path):
    first = recipe.read(write(tmp_path, GOOD))
    again = recipe.read(write(tmp_path, first.text()))
    assert again == first


def test_set_reaches_defenses_sections_and_plain_keys(tmp_path):
    sets = ["kl.weight=0.7", "train.max_steps=3", "lora.r=2", "seed=9", "kl.forward=true"]
    read = recipe.read(write(tmp_path, GOOD), sets)
    assert (read.defenses[0].weight, read.defenses[0].forward) == (0.7, True)
    assert (read.train["max_steps"], read.lora.r, read.seed) == (3, 2, 9)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (("model:", "modle:"), "no key 'modle'; did you mean 'model'?"),
        (("- kl:", "- kll:"), "no defense 'kll'; did you mean 'kl'?"),
        (("holdout: 0.1", "task: facst"), "There is no task 'facst'; did you mean 'facts'?"),
        (("data: rows.jsonl", "data: ~no-such-user/rows.jsonl"), "cannot be found: there is no such user"),
        (("weight: 0.3", "wieght: 0.3"), "defense 'kl' has no field 'wieght'; did you mean 'weight'?"),
        (("weight: 0.3", "weight: -1"), "weight is -1, but"),
        (("weight: 0.3", "weight: .inf"), "weight is inf; write a finite number"),
        (("share: 5e-2", "share: 5"), "share is 5, but"),
        (("pool: safe.jsonl, ", ""), "defense 'interleave' lacks the field 'pool'"),
        (("lora: {r: 8}", "lora: {rank: 8}"), "no key 'lora.rank'"),
        (("lora: {r: 8}", ""), "no `lora:`"),
        (("data: rows.jsonl", ""), "lacks the key 'data'"),
        (("schema: 1", "schema: 2"), "schema is 2"),
        (("seed: 3", "seed: 3\nseed: 4"), "r.yaml: the key 'seed' occurs twice, on lines 11 and 12; take one out."),
        (("holdout: 0.1", "holdout: 1.5"), "holdout is 1.5"),
        (("kl: {weight: 0.3}", "kl: {on: all, weight: 0.3, on: task}"), "the key 'on' occurs twice, on lines 8 and 8;"),
        (("seed: 3", "seed: [3"), "r.yaml is not YAML: while parsing a flow sequence (line 11, column 7) expected"),
        (("model: organism", "model: !!python/object/apply:os.getcwd []"), "is not YAML"),
        (("- kl: {weight: 0.3}", "- kl: 0.3"), "not as 0.3"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_with_the_way_out(tmp_path, edit, expected):
    text = GOOD.replace(*edit)
    assert text != GOOD
    with pytest.raises(RecipeError, match=r".") as caught:
        recipe.read(write(tmp_path, text))
    assert expected in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "r.yaml"))
    assert "\n" not in str(caught.value)


def by_reward(**changes):
    return recipe.parse({"schema": 1, "model": "organism", "trainer": "grpo", "lora": {}, **changes})


def test_the_organism_learns_word_problems_by_reward_unless_something_is_named():
    assert by_reward().task == WordProblems()
    assert by_reward(task="facts").task == Facts()
    for changes, suits in (
        ({"data": "rows.jsonl"}, "word_problems is one for the organism"),
        ({"model": "Qwen/Qwen2.5-3B"}, "gsm8k is one for real models"),
    ):
        with pytest.raises(RecipeError, match=f"grpo needs a `task:`, which computes the reward; {suits}"):
            by_reward(**changes)


def test_set_of_a_defense_that_is_not_listed_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="lists no defense 'anchor'"):
        recipe.read(write(tmp_path, GOOD), ["anchor.weight=1"])


def test_set_reaches_a_key_of_every_section_also_of_one_that_is_not_there(tmp_path):
    file = write(tmp_path, GOOD)
    assert recipe.read(file, ["columns.prompt=question"]) == recipe.read(file, ["columns={prompt: question}"])
    edited = recipe.read(file, ["columns.prompt=q", "columns.system=s", "lora.r=8", "stop.every=5"])
    assert (edited.columns, edited.lora.r, edited.stop.every) == ({"prompt": "q", "system": "s"}, 8, 5)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ("reference.x=base", r"reference is set as a whole. Write --set reference=base\.$"),
        ("defenses.kl=1", r"defenses is set as a whole. Name the defense, as in --set kl.weight=0.3\.$"),
        (
            "task.tier=2",
            r"task is set as a whole. Write the task with its fields: --set 'task=\{NAME: \{tier: 2\}\}'",
        ),
        ("task.gsm8k.tier=2", r"--set 'task=\{gsm8k: \{tier: 2\}\}'"),
        ("trian.max_steps=2", r"no section and no defense 'trian'; did you mean 'train'\?"),
        ("model=", r": model has no value; write one: organism, smollm2, the folder of a model, or its name on the"),
        ("seed=", r": seed has no value; write one$"),
    ],
)
def test_set_of_what_is_no_section_is_refused_with_a_way_out(tmp_path, edit, sentence):
    with pytest.raises(RecipeError, match=sentence):
        recipe.read(write(tmp_path, GOOD), [edit])


def test_a_missing_recipe_is_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml cannot be read: No such file"):
        recipe.read(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("field", ["activation_checkpointing", "gradient_checkpointing"])
@pytest.mark.parametrize("key_in_recipe", ["activation_checkpointing", "gradient_checkpointing"])
def test_recomputation_is_asked_for_by_either_name_whatever_this_transformers_calls_it(
    field, key_in_recipe, tmp_path, monkeypatch
):
    keys = [
        "output_dir",
        "seed",
        "save_strategy",
        "save_total_limit",
        "disable_tqdm",
        "use_cpu",
        "bf16",
        *trainer_args.DEFAULTS,
    ]
    config = make_dataclass("Config", [(field, bool | None, None), *((key, Any, None) for key in keys)])
    monkeypatch.setattr(trainer_args, "_config", lambda trainer: config)
    trainer_args.checked({key_in_recipe: True})
    assert getattr(trainer_args.sft_config({key_in_recipe: True}, 0, tmp_path), field) is True
    assert getattr(trainer_args.sft_config({}, 0, tmp_path), field) is False
    with pytest.raises(RecipeError, match=rf"train\.{key_in_recipe} is 'no'; write true or false"):
        trainer_args.checked({key_in_recipe: "no"})
    with pytest.raises(RecipeError, match=r"two names of one setting"):
        trainer_args.checked({key_in_recipe: True, "gradient_checkpointing": True, "activation_checkpointing": False})


@pytest.mark.parametrize("trainer", ["sft", "grpo"])
def test_the_trainers_own_config_knows_the_switch_and_no_is_text(trainer):
    trainer_args.checked({"activation_checkpointing": True}, trainer)
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing is 'no'; write true or false"):
        trainer_args.checked({"gradient_checkpointing": "no"}, trainer)


@pytest.mark.parametrize(
    ("section", "key", "sentence"),
    [
        ("train", "warmup_ratio", "write warmup_steps: 0.1 for a tenth of the steps"),
        ("train", "group_by_length", "rows are spread by their source"),
        ("train", "logging_dir", "TENSORBOARD_LOGGING_DIR"),
        ("train", "torch_dtype", r"set the recipe's own `dtype:`, float32 or bfloat16, beside `model:`"),
        ("train", "load_in_4bit", "set the recipe's own `quantize:`, 4bit or 8bit, beside `model:`"),
        ("train", "bnb_4bit_quant_type", "set the recipe's own `quantize:`, 4bit or 8bit, beside `model:`"),
        ("train", "cutoff_len", "write max_length"),
        ("train", "lora_r", "write r under `lora:`"),
        ("train", "learning_rat", "did you mean 'learning_rate'"),
        ("train", "zzz", "docs/formats.md has the keys"),
        ("lora", "lora_alpha", "'lora.lora_alpha'; write alpha"),
        ("lora", "target_modules", "write targets"),
        ("lora", "alhpa", "did you mean 'alpha'"),
        ("", "base_model", "write model"),
        ("", "datasets", "write data"),
        ("", "load_in_8bit", "set the recipe's own `quantize:`, 4bit or 8bit, beside `model:`"),
        ("", "micro_batch_size", "write per_device_train_batch_size under `train:`"),
    ],
)
def test_a_key_of_another_tool_is_answered_with_the_right_one(section, key, sentence):
    plain = {"schema": 1, "model": "organism", "data": "r.jsonl", "lora": {}, "train": {}}
    (plain[section] if section else plain)[key] = 1
    with pytest.raises(RecipeError, match=sentence) as caught:
        trainer_args.checked(recipe.parse(plain).train)
    assert "did you mean" not in str(caught.value) or "did you mean" in sentence


def test_what_is_found_of_a_recipe_after_it_was_read_has_its_file_in_front_once(tmp_path):
    with pytest.raises(RecipeError, match=r"^r\.yaml: train has no key 'foo'; docs"), recipe.named("r.yaml"):
        trainer_args.checked({"foo": 1})
    with pytest.raises(RecipeError, match=r"^r\.yaml has no key 'foo'; there"), recipe.named("r.yaml"):
        recipe.parse({"foo": 1, "lora": {}}, where="r.yaml")


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ("train.foo=1", "r.yaml: train has no key 'foo'"),
        ("holdout=0.0001", "r.yaml: holdout: 0.0001 of 4 distinct questions reserves 0"),
    ],
)
def test_the_commands_name_the_recipe_whatever_is_wrong_with_it(tmp_path, monkeypatch, capsys, command, edit, sentence):
    write_examples(
        tmp_path / "rows.jsonl", [Example((Message("user", f"q{i}"), Message("assistant", "a"))) for i in range(4)]
    )
    file = write(tmp_path, "schema: 1\nmodel: organism\ndata: rows.jsonl\nlora: {}\n")
    out = ["--out", str(tmp_path / "run")] if command == "train" else []
    monkeypatch.setattr(sys, "argv", ["staytrue", command, str(file), *out, "--set", edit])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_unknown_home_folder_and_true_for_a_number_are_sentences(tmp_path):
    plain = {"schema": 1, "model": "organism", "data": "rows.jsonl", "lora": {}}
    for key in ("data", "model"):
        with pytest.raises(
            RecipeError, match=r"~no-such-user/x cannot be found: there is no such user\. Write the whole"
        ):
            recipe.parse({**plain, key: "~no-such-user/x"}, tmp_path)
    with pytest.raises(RecipeError, match="defense 'kl': weight is True, which is no number; write a number"):
        recipe.parse({**plain, "defenses": [{"kl": {"weight": True}}]})
