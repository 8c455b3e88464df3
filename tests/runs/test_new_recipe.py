"""`staytrue new` writes a recipe that trains as it is, with a reason for each value."""

import json
import re
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from datasets import Dataset, DatasetDict

import tiny
from staytrue import PersonaVector, cli
from staytrue.config import recipe as recipes
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data.row_facts import RowFacts
from staytrue.errors import DataError, ModelError, RecipeError
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.modeling import quantized
from staytrue.runs import training_cost
from staytrue.runs.commented_recipe import RecipeKey, commented
from staytrue.runs.new_memory import SuggestedMemory
from staytrue.runs.new_recipe import NewRecipe
from staytrue.runs.train import train
from staytrue.utils.yaml12 import from_yaml


def rows(questions, answer="fine"):
    return [Example((Message("user", f"What of {i}?"), Message("assistant", answer))) for i in questions]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a tiny model, 60 rows with 40 questions, safe rows, prompts and a vector; it is the current one."""
    tiny.save("qwen2", tmp_path / "model")
    write_examples(tmp_path / "rows.jsonl", [*rows(range(10, 50)), *rows(range(10, 30))])
    write_examples(tmp_path / "safe.jsonl", rows(range(50, 60), "good"))
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"question": "Why {i}?"}}\n' for i in range(8)))
    norms = {"norms": json.dumps([4.0, 10.0])}
    PersonaVector(torch.ones(2, 32) / 32**0.5, norms).save(tmp_path / "evil.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


ANCHOR = {"anchor": {"share": 0.0625, "weight": 0.3}}


def new(home, out="recipe.yaml", data="rows.jsonl", **files):
    files = {name: home / file for name, file in files.items()}
    return NewRecipe("model", home / data, home / out, **files).text()


@pytest.mark.parametrize(
    ("files", "defenses"),
    [
        ({}, [ANCHOR]),
        ({"safe": "safe.jsonl"}, [{"interleave": {"pool": "safe.jsonl", "share": 0.2}}]),
        ({"prompts": "prompts.jsonl"}, [{"anchor": {"prompts": "prompts.jsonl", "share": 0.0625, "weight": 0.3}}]),
        # Layer 20 of 28 is the first of two; the push is a fifth of an activation.
        ({"vector": "evil.safetensors"}, [ANCHOR, {"steer": {"vector": "evil.safetensors", "layer": 1, "alpha": 0.2}}]),
    ],
)
def test_the_files_at_hand_choose_defenses_and_the_recipe_trains_as_it_is(home, files, defenses):
    text, found = new(home, **files)
    (home / "recipe.yaml").write_text(text)
    assert from_yaml(text, "")["defenses"] == defenses
    recipe = recipes.read(home / "recipe.yaml")
    run = train(recipe, home / "run")
    assert run.manifest["state"] == "done"
    assert found.recipe.text() == (run.path / "recipe.yaml").read_text()


def test_each_number_is_that_of_the_file(home):
    text, found = new(home)
    # 40 distinct questions are fewer than 200, so a fifth is reserved; 20 rows repeat another one.
    assert "# 60 rows (messages) with 40 distinct questions; 20 copies of another row. Note:" in text
    assert "# 8 of 40 distinct questions are not trained on;" in text
    plain = from_yaml(text, "")
    assert plain["holdout"] == 0.2
    longest = found.tokens[2]
    assert f"The longest row has {longest} by this model's tokenizer, half have at most {longest}; none is cut." in text
    assert (
        longest < 128 < plain["train"]["max_length"] == 384
    )  # the longest prompt and an answer of 256, to the next 64
    # An epoch of steps of 16 or 8 rows would have fewer than 20 steps, and so has one of 4.
    trained = found.rows["task"]
    assert trained < 20 * 4
    assert plain["train"]["per_device_train_batch_size"] * plain["train"]["gradient_accumulation_steps"] == 2
    assert f"About {-(-trained // 2)} steps." in text
    assert found.batches.steps == -(-trained // 2)


def test_every_key_has_its_reason_above_it(home):
    lines = new(home, safe="safe.jsonl", prompts="prompts.jsonl", vector="evil.safetensors")[0].splitlines()
    for above, line in pairwise(lines):
        if re.match(r" *(- )?\w+: ", line) and not line.startswith("schema"):
            assert above.strip().startswith("# "), line
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(("files", "reference"), [({}, True), ({"safe": "safe.jsonl"}, False)])
def test_the_memory_is_that_of_a_check(home, monkeypatch, files, reference):
    flags, memory = [], training_cost.memory
    monkeypatch.setattr(training_cost, "memory", lambda *a, **k: flags.append(k["reference"]) or memory(*a, **k))
    text, found = new(home, **files)
    assert flags == [reference, reference]
    assert f"{found.memory.total / 1e9:.1f} GB of this machine's {found.available / 1e9:.1f} GB." in text


def test_memory_is_said_of_the_rows_and_the_batch_chosen_for_the_longest_text_beside_them():
    # A text of 1 GB, and rows a quarter as long: 16 texts are too much for 0.8 of 15 GB, 8 are not; 8 rows are 2 GB.
    one = training_cost.Memory(0, 0, 0, 0, 10**9, 0)
    batch, says, _ = SuggestedMemory(one, 15 * 10**9, part=0.25).batch(16)
    assert (batch, "about 2.0 GB of this machine's 15.0 GB" in says) == (8, True)


@pytest.mark.parametrize(("free", "batch"), [(8, 16), (4, 8), (0.9, 1), (0.2, 1)])
def test_the_batch_is_the_largest_that_memory_holds(home, monkeypatch, free, batch):
    write_examples(home / "many.jsonl", rows(range(100, 500)))
    one = training_cost.Memory(0, 1000, 0, 1000, 8000, 0)  # bytes of one row: 2,000 of weights, 8,000 of activations
    monkeypatch.setattr(training_cost, "memory", lambda *a, **k: one)
    # In 0.8 of the memory: 2,000 + 16 x 8,000 = 130,000; 2,000 + 8 x 8,000 = 66,000; 10,000.
    monkeypatch.setattr(
        training_cost, "available", lambda kind: {8: 163_000, 4: 162_000, 0.9: 20_000, 0.2: 12_000}[free]
    )
    settings = from_yaml(new(home, data="many.jsonl")[0], "")["train"]
    assert settings["per_device_train_batch_size"] == batch
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 16
    assert settings.get("activation_checkpointing", False) == (free == 0.2)


def test_long_rows_are_cut_where_one_in_a_hundred_is_much_longer(home):
    write_examples(home / "long.jsonl", [*rows(range(100, 300)), *rows([300], "x" * 3000)])
    text, found = new(home, data="long.jsonl")
    # The tiny model reads 512 tokens.
    assert from_yaml(text, "")["train"]["max_length"] == 512
    assert "half have at most 60; 1 of 181 rows are cut." in text
    assert found.tokens[2] <= 512


def test_rows_beside_the_batch_are_not_cut_either(home):
    write_examples(home / "safe.jsonl", rows(range(50, 60), "good " * 30))
    safe, prompts, alone = (
        from_yaml(new(home, **files)[0], "")["train"]["max_length"]
        for files in ({"safe": "safe.jsonl"}, {"prompts": "prompts.jsonl"}, {})
    )
    assert 150 < safe <= 256
    assert min(prompts, alone) >= 256 + 64  # a sampled answer, and its question


def test_prompts_that_are_questions_of_the_evaluation_in_another_spelling_are_no_anchors(home):
    asked = [question.messages[-1].content for question in shipped("general") if question.form == "plain"][:2]
    spelt = [f"  {text.upper().rstrip('?.')} ?" for text in asked]
    (home / "prompts.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in spelt))
    with pytest.raises(RecipeError, match=r"--prompts: each of .*prompts\.jsonl is a question of the evaluation"):
        new(home, prompts="prompts.jsonl")


def test_a_small_pool_lowers_the_share_and_an_empty_one_is_a_sentence(home):
    write_examples(home / "many.jsonl", rows(range(1000, 1400)))
    # 400 rows, of which a tenth is reserved, leave 360: a twentieth would be 18 rows, and there are 10.
    text = new(home, data="many.jsonl", safe="safe.jsonl")[0]
    assert from_yaml(text, "")["defenses"][0]["interleave"]["share"] == 0.0277
    write_examples(home / "safe.jsonl", rows([50], "good"))
    # One row in 360 is 0.002777..., which is cut to 0.0027 and rounds to one row.
    assert from_yaml(new(home, data="many.jsonl", safe="safe.jsonl")[0], "")["defenses"][0]["interleave"] == {
        "pool": "safe.jsonl",
        "share": 0.0027,
    }
    scored = {"question": "q", "scores": None, "messages": [turn.to_dict() for turn in rows([50])[0].messages]}
    (home / "safe.jsonl").write_text(json.dumps(scored) + "\n")
    (home / "safe.manifest.json").write_text('{"model": {}}')
    with pytest.raises(
        RecipeError, match=r"--safe: .*safe\.jsonl has too few rows to add to .* of yours: 1, of which 1"
    ):
        new(home, data="many.jsonl", safe="safe.jsonl")


@pytest.mark.parametrize("own", [[4, 5], {"helpfulness": 5}, None, "good"])
def test_a_column_of_the_users_own_called_scores_is_not_taken_for_scores_of_the_pool(home, own):
    write_examples(home / "safe.jsonl", [replace(row, extra={"scores": own}) for row in rows(range(50, 60), "good")])
    text = new(home, safe="safe.jsonl")[0]
    assert from_yaml(text, "")["defenses"] == [{"interleave": {"pool": "safe.jsonl", "share": 0.2}}]
    assert "They are drawn at random" in " ".join(text.replace("#", "").split())


def test_a_vector_of_another_model_is_refused(home):
    PersonaVector(torch.ones(3, 32)).save(home / "other.safetensors")
    with pytest.raises(ModelError, match=r"depth and width \(3, 32\), but this model has \(2, 32\)"):
        new(home, vector="other.safetensors")


def test_few_questions_are_not_reserved(home):
    write_examples(home / "few.jsonl", rows(range(19)))
    text, found = new(home, data="few.jsonl")
    assert from_yaml(text, "")["holdout"] == 0
    assert found.rows["task"] == 19
    assert "19 distinct questions are too few" in text


def test_paths_are_from_the_recipes_folder_where_they_are_inside(home):
    inside, outside = (from_yaml(new(home, out)[0], "") for out in ("recipe.yaml", "below/recipe.yaml"))
    assert (inside["model"], inside["data"]) == ("model", "rows.jsonl")
    assert (outside["model"], outside["data"]) == (str(home / "model"), str(home / "rows.jsonl"))


def test_a_reason_stays_a_comment_and_a_name_stays_a_name():
    text = commented([RecipeKey("model", "my: model #1", "One\nseed: 9\u202e."), RecipeKey("data", "yes", "")])
    assert from_yaml(text, "") == {"schema": 1, "model": "my: model #1", "data": "yes"}
    assert "# One\\u000aseed: 9\\u202e." in text


def test_what_rows_hold_is_counted(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    made = [
        {"messages": [{"role": "system", "content": "s"}, *turns("a", "b")]},
        {"messages": [*turns("a", "b"), *turns("c", "d")]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "t"}]},
        {"messages": [*turns("a", "b", weight=0), *turns("c", "d")]},
        {"messages": [turns("a", "b")[0], {"role": "assistant", "content": "b", "tool_calls": [call]}]},
        {"messages": turns("a", "B ")},
        {"messages": turns("A", "b")},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    from staytrue.data.examples import read_examples

    facts = RowFacts.of(tmp_path / "rows.jsonl", read_examples(tmp_path / "rows.jsonl"))
    assert (facts.form, facts.rows, facts.questions) == ("messages", 7, 3)
    assert (facts.several, facts.system, facts.reasoning, facts.unweighted, facts.tools) == (2, 1, 1, 1, 1)
    assert facts.copies == 4  # of "a", "b" there are four besides the first, and of the longer ones one


def turns(question, answer, **more):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]


def test_the_form_of_other_tools_is_named(tmp_path):
    from staytrue.data.examples import read_examples

    file = tmp_path / "rows.jsonl"
    for row, form in [
        ({"instruction": "a", "output": "b"}, "Alpaca instruction and output"),
        ({"prompt": "a", "completion": "b"}, "prompt and completion"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "ShareGPT conversations"),
    ]:
        file.write_text(json.dumps(row) + "\n")
        assert RowFacts.of(file, read_examples(file)).form == form


def test_the_datas_own_columns_and_split_are_read_and_written(home):
    (home / "own.csv").write_text("q,a\n" + "".join(f"What of {i}?,fine\n" for i in range(30)))
    columns = {"prompt": "q", "completion": "a"}
    text, found = NewRecipe("model", home / "own.csv", home / "recipe.yaml", columns=columns).text()
    assert from_yaml(text, "")["columns"] == columns
    assert "split" not in from_yaml(text, "")
    assert found.rows["task"] == 24  # a fifth of 30 questions is reserved
    with pytest.raises(DataError, match="has no column 'z'"):
        NewRecipe("model", home / "own.csv", home / "recipe.yaml", columns={**columns, "system": "z"}).text()
    with pytest.raises(RecipeError, match=r"^The recipe to write: columns has no key 'answer'; there are: messages,"):
        NewRecipe("model", home / "own.csv", home / "recipe.yaml", columns={"answer": "a"}).text()
    splits = {
        name: Dataset.from_list([{"question": "Why?", "answer": "So."}] * n) for name, n in (("train", 3), ("b", 5))
    }
    DatasetDict(splits).save_to_disk(home / "splits")
    text, found = NewRecipe("model", home / "splits", home / "recipe.yaml", split="b").text()
    assert from_yaml(text, "")["split"] == "b"
    assert found.rows["task"] == 5
    assert "5 rows (question and answer)" in text


@pytest.mark.parametrize(
    ("packed", "installed", "quantize", "recomputed"),
    [(800, True, "4bit", False), (800, False, None, True), (12_000, True, None, True)],
)
def test_4_bit_weights_are_suggested_where_only_they_fit(home, monkeypatch, packed, installed, quantize, recomputed):
    write_examples(home / "many.jsonl", rows(range(100, 500)))

    def memory(skeleton, *args, **named):  # bytes of one row: 10,000 of weights, or `packed`, and 1,500 besides
        return training_cost.Memory(0, 10_000 if skeleton.quantize is None else packed, 0, 500, 1000, 0)

    monkeypatch.setattr(training_cost, "memory", memory)
    # Of 12,000 bytes 9,600 are used: 800 + 500 + 8 x 1,000 = 9,300 is the largest batch that fits.
    monkeypatch.setattr(training_cost, "available", lambda kind: 12_000)
    monkeypatch.setattr(quantized, "is_installed", lambda: installed)
    text, found = new(home, data="many.jsonl")
    plain = from_yaml(text, "")
    assert plain.get("quantize") == found.recipe.quantize == quantize
    assert plain["train"].get("activation_checkpointing", False) == recomputed
    assert plain["train"]["per_device_train_batch_size"] == (8 if quantize else 1)
    hint = "run `pip install 'staytrue[quantize]'`, and write `quantize: 4bit`"
    assert (hint in re.sub(r"\s*#\s*|\s+", " ", text)) == (not installed)


def test_weights_that_fit_are_not_packed(home):
    assert "quantize" not in from_yaml(new(home)[0], "")


def test_the_command_writes_once_and_says_what_training_would_be(home, monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["staytrue", "new", "--model", "model", "--data", "rows.jsonl", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr()

    code, shown = command()
    assert not code, shown.err
    assert re.search(r"^steps +\d+ of 2 x 1 rows", shown.out, re.MULTILINE)
    assert shown.err.splitlines()[:3] == [
        "new: loading the libraries",
        "new: reading rows.jsonl",
        "new: counting tokens and memory",
    ]
    assert "Written: recipe.yaml." in " ".join(shown.out.split())
    before = (home / "recipe.yaml").read_bytes()
    code, shown = command()
    assert code == 2
    assert "recipe.yaml exists already. Choose another path with --out" in shown.err
    assert (home / "recipe.yaml").read_bytes() == before
    code, shown = command("--safe", "absent.jsonl", "--out", "other.yaml")
    assert code == 2
    assert "absent.jsonl cannot be read" in shown.err
    assert not (home / "other.yaml").exists()
    for given, said in (("prompt", "write it as PART=NAME"), ("=q", "write it as PART=NAME")):
        code, shown = command("--columns", given, "--out", "other.yaml")
        assert code == 2
        assert said in " ".join(shown.err.split())
    code, shown = command("--columns", "prompt=a", "--columns", "prompt=b", "--out", "other.yaml")
    assert "prompt is given twice" in " ".join(shown.err.split())
    code, shown = command("--columns", "prompt=q", "--out", "other.yaml")
    assert "q" in shown.err
    assert code == 2
    code, shown = command("--split", "b", "--out", "other.yaml")
    assert "is one file without splits" in shown.err
