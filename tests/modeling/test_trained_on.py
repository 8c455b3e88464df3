"""An adapter in a run's folder is loaded on the model that the run names, and on no other."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import tiny
from staytrue.data.examples import write_examples
from staytrue.data_selection import score_pool
from staytrue.errors import ModelError
from staytrue.modeling import loading, model_source
from staytrue.modeling.trained_on import refuse_other_model
from staytrue.utils.files import write_json


@pytest.fixture
def home(tmp_path):
    """A model, its copy, another of the same shapes, and a run that trained an adapter on the first."""
    tiny.save("qwen2", tmp_path / "mine")
    shutil.copytree(tmp_path / "mine", tmp_path / "moved")
    shutil.copytree(tmp_path / "mine", tmp_path / "other")
    other = tiny.model("qwen2")
    other.lm_head.weight.data += 0.1
    other.save_pretrained(str(tmp_path / "other"))
    adapted = tiny.lora(tiny.model("qwen2"))
    tiny.nudge(adapted, 0.3, 0)
    adapted.save_pretrained(str(tmp_path / "run" / "model"), safe_serialization=True)
    (tmp_path / "run" / "recipe.yaml").touch()
    trained_on(tmp_path, model_source.find(str(tmp_path / "mine")).identity())
    return tmp_path


def trained_on(home, identity):
    write_json(home / "run" / "manifest.json", {"state": "done", "model": identity})


def test_it_is_loaded_on_its_model_wherever_that_lies(home):
    for name in ("mine", "moved"):
        assert loading.load_model(model_source.find(str(home / name)), home / "run" / "model")


def test_on_another_model_it_is_refused_with_both_names_and_the_way_out(home, monkeypatch):
    other = model_source.find(str(home / "other"))
    sentence = r"model was trained on \S+/mine \(SHA-256 \w{12}\), not on \S+/other \(SHA-256 .* Name the model that"
    with pytest.raises(ModelError, match=sentence):
        loading.load_model(other, home / "run" / "model")
    write_examples(home / "pool.jsonl", tiny.rows(2))
    pools = [score_pool.Pool(home / "pool.jsonl")]
    with pytest.raises(ModelError, match=sentence):
        score_pool.score(other.name, {"a": home / "run" / "model"}, pools, home / "s.jsonl")
    monkeypatch.chdir(home / "run" / "model")
    with pytest.raises(ModelError, match="not on"):
        refuse_other_model(Path("."), other)


def test_out_of_its_run_it_is_loaded_as_the_sentence_says(home):
    shutil.copytree(home / "run" / "model", home / "out")
    assert loading.load_model(model_source.find(str(home / "other")), home / "out")


@pytest.mark.parametrize(
    ("trained", "given", "refused"),
    [
        ({"name": "org/one", "commit": "1"}, "org/one", False),
        ({"name": "org/one", "commit": "1"}, "org/two", True),
        ({"name": "org/one", "commit": "1"}, "mine", False),  # a local copy of it, or not: unknown
        ({"name": "mine", "sha256": "1" * 64}, "org/one", False),
    ],
)
def test_models_on_the_hub_are_compared_by_name(home, trained, given, refused):
    trained_on(home, trained)
    place = str(home / given) if given == "mine" else given
    source = model_source.Source(given, place)
    if not refused:
        refuse_other_model(home / "run" / "model", source)
        return
    with pytest.raises(ModelError, match=f"not on {given}"):
        refuse_other_model(home / "run" / "model", source)


def test_weights_of_other_shapes_are_refused_with_the_first_that_does_not_fit(home):
    file = home / "run" / "model" / "adapter_model.safetensors"
    weights = load_file(file)
    for name in [name for name in weights if ".lora_A" in name][:2]:
        weights[name] = weights[name][:, :3].contiguous()
    save_file(weights, file)
    with pytest.raises(
        ModelError, match=r"does not fit this model: .*size mismatch for \S+lora_A\S+: .* Name the model that"
    ) as refused:
        loading.load_model(model_source.find(str(home / "mine")), home / "run" / "model")
    assert "[4, 3]" in str(refused.value)
    assert str(refused.value).count("size mismatch") == 1
    assert "\n" not in str(refused.value)
