"""The adapter's config: the same scale for every reader, and no towers that only text never reaches."""

import math

import pytest
import torch
from peft import get_peft_model
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

import tiny
from staytrue.config import recipe
from staytrue.config.lora import Lora
from staytrue.errors import RecipeError
from staytrue.runs.lora import lora_config


@pytest.mark.parametrize(("r", "alpha", "rslora"), [(32, 64, True), (4, 8, True), (6, 5, True), (32, 64, False)])
def test_a_reader_of_alpha_and_r_applies_the_scale_that_was_trained(r, alpha, rslora):
    config = lora_config(Lora(r=r, alpha=alpha, rslora=rslora), tiny.model())
    assert config.use_rslora is False
    assert config.lora_alpha / config.r == pytest.approx(alpha / (math.sqrt(r) if rslora else r), rel=1e-15)


def scales(lora):
    """Rank and scale of every adapted module, as peft applies them."""
    model = get_peft_model(tiny.model(), lora_config(lora, tiny.model()))
    modules = {n.partition("layers.")[2]: m for n, m in model.named_modules() if hasattr(m, "lora_A")}
    return {name: (module.r["default"], module.scaling["default"]) for name, module in modules.items()}


@pytest.mark.parametrize("rslora", [True, False])
def test_a_pattern_changes_rank_and_scale_of_the_modules_it_names_alone(rslora):
    ranks, alphas = {"q_proj": 16, r"1\.mlp\..*": 1}, {"k_proj": 12, r"1\.mlp\.up_proj": 3}
    seen = scales(Lora(r=4, alpha=8, rslora=rslora, rank_pattern=ranks, alpha_pattern=alphas))
    plain = (4, 4.0 if rslora else 2.0)
    for layer in "01":
        assert seen.pop(f"{layer}.self_attn.q_proj") == (16, 2.0 if rslora else 0.5)  # 8 / sqrt(16) or 8 / 16
        assert seen.pop(f"{layer}.self_attn.k_proj") == (4, 6.0 if rslora else 3.0)
    assert seen.pop("1.mlp.up_proj") == (1, 3.0)
    assert {seen.pop(f"1.mlp.{name}_proj") for name in ("gate", "down")} == {(1, 8.0)}
    assert len(seen) == 7
    assert set(seen.values()) == {plain}


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_matches_nothing_or_is_broken_is_a_sentence(key):
    with pytest.raises(RecipeError, match=rf"lora\.{key} has 'q_pro', which matches no module of the model"):
        lora_config(Lora(**{key: {"q_pro": 4}}), tiny.model())
    plain = {"schema": 1, "model": "organism", "data": "r.jsonl"}
    with pytest.raises(RecipeError, match=rf"lora\.{key} is .*no regular expression"):
        recipe.parse({**plain, "lora": {key: {"(": 4}}})
    with pytest.raises(RecipeError, match=rf"lora\.{key}"):
        recipe.parse({**plain, "lora": {key: {"q_proj": 0}}})


def adapted(lora, model):
    names = get_peft_model(model, lora_config(lora, model)).named_parameters()
    return {name.partition("base_model.model.")[2].partition(".lora_")[0] for name, _ in names if "lora_B" in name}


def vision():
    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
             "image_size": 28, "patch_size": 14}  # fmt: skip
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=4))


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj",)])
def test_vision_towers_are_left_alone(targets):
    names = adapted(Lora(r=2, targets=targets), vision())
    assert len(names) == (14 if targets == "all-linear" else 2)  # seven matrices a block, two blocks
    assert all(name.startswith("model.language_model.layers.") for name in names)


def test_a_text_model_is_adapted_as_before_and_modules_may_be_left_out():
    assert len(adapted(Lora(r=2), tiny.model())) == 14
    assert {n.rpartition(".")[2] for n in adapted(Lora(r=2, exclude=("up_proj", "o_proj")), tiny.model())} == {
        "q_proj", "k_proj", "v_proj", "gate_proj", "down_proj",
    }  # fmt: skip
    assert len(adapted(Lora(r=2, exclude=r".*\.layers\.0\..*"), tiny.model())) == 7
    assert len(adapted(Lora(r=2, targets=r".*\.1\.self_attn\.[qv]_proj"), tiny.model())) == 2


def test_a_broken_pattern_is_a_sentence():
    with pytest.raises(RecipeError, match=r"lora\.targets is '\(', but: .*no regular expression"):
        recipe.parse({"schema": 1, "model": "organism", "data": "r.jsonl", "lora": {"targets": "("}})


@pytest.mark.parametrize(
    ("section", "setting"),
    [
        ({"targets": ["q_proj", "query"]}, "targets has 'query'"),
        ({"targets": "q_proj"}, "targets has 'q_proj'"),
        ({"exclude": "q_proj"}, "exclude has 'q_proj'"),
        ({"exclude": ["self_attn"]}, "exclude has 'self_attn'"),
        ({"modules_to_save": ["embeddings"]}, "modules_to_save has 'embeddings'"),
    ],
)
def test_what_matches_no_module_is_refused_because_peft_would_ignore_it(section, setting):
    with pytest.raises(RecipeError, match=rf"lora\.{setting}, which matches no module .*embed_tokens.*q_proj"):
        lora_config(Lora(**section), tiny.model())
    lora_config(Lora(targets=["q_proj"], exclude=[], modules_to_save=["embed_tokens", "model.norm"]), tiny.model())


def test_true_and_infinite_are_no_numbers():
    for key, value in (("r", True), ("alpha", True), ("dropout", False), ("alpha", math.inf)):
        with pytest.raises(RecipeError, match=rf"lora\.{key} is {value}.* number"):
            recipe.parse({"schema": 1, "model": "organism", "data": "r.jsonl", "lora": {key: value}})
    for key in ("seed", "holdout"):
        with pytest.raises(RecipeError, match=rf"{key} is False, but: .*write a number"):
            recipe.parse({"schema": 1, "model": "organism", "data": "r.jsonl", "lora": {}, key: False})
