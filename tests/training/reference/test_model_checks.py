"""Models without a reference are refused, each in a sentence."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.steer import Steer
from staytrue.errors import ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.base_model import Untouched
from staytrue.modeling.block_outputs import hooked
from staytrue.registry import labelled
from staytrue.training.defense_fit import checked_layers
from staytrue.training.reference.model_checks import check, check_noise

_SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("opt", "dropout"),
        ("opt", "layerdrop"),
        ("bloom", "hidden_dropout"),
        ("falcon", "hidden_dropout"),
        ("biogpt", "hidden_dropout_prob"),
        ("starcoder2", "residual_dropout"),
    ],
)
def test_dropout_that_is_no_module_is_refused_by_its_setting(kind, key, device):
    others = dict.fromkeys(("dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    config = AutoConfig.for_model(kind, **_SIZES, **{**others, key: 0.25})
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=f"noise of its own in training \\({key}=0.25\\)"):
        check_noise(ModelParts(model))
    check(ModelParts(model))


def test_the_keys_of_the_config_that_turn_dropout_off_are_named():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 64}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes, embd_pdrop=0.2, resid_pdrop=0.0))
    named = "Load it with embd_pdrop, attn_pdrop, summary_first_dropout at 0.0"  # 0.1 is the default of the last two
    with pytest.raises(ModelError, match=rf"in training \(transformer\.drop=0\.2\): .* {named} \(lora"):
        check(ModelParts(model))


def noisy(model):
    """Dropout in a block, which no setting and no module shows."""
    block = ModelParts(model).blocks[1].mlp
    plain = block.forward
    block.forward = lambda hidden: functional.dropout(plain(hidden), 0.1, training=block.training)
    return model


@pytest.mark.parametrize("adapted", [False, True])
def test_noise_that_no_setting_names_is_refused(adapted):
    make = tiny.lora if adapted else lambda model: model
    model = make(noisy(tiny.model()))
    before, training = torch.get_rng_state(), model.training
    with pytest.raises(ModelError, match=r"noise of its own in training \(two forwards of the same tokens differ"):
        check_noise(ModelParts(model))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == training
    check_noise(ModelParts(make(tiny.model())))


def test_noise_matters_only_to_a_penalty_that_reads_the_reference():
    parts = ModelParts(tiny.lora(noisy(tiny.model())))
    base = Untouched(lambda: parts.model, tiny.tokenizer())
    checked_layers(parts, labelled([L2Init(0.1)]), base, None)
    with pytest.raises(ModelError, match="noise of its own"):
        checked_layers(parts, labelled([KL(0.1)]), base, None)


def gemma_3n():
    """Its blocks return four streams of activations, (4, rows, tokens, width)."""
    sizes = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    own = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 300, "laurel_rank": 4}
    kinds = ["sliding_attention", "full_attention"]
    config = AutoConfig.for_model(
        "gemma3n_text", **sizes, **own, layer_types=kinds, num_kv_shared_layers=0, activation_sparsity_pattern=None
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("defense", [LDIFS(), Steer("v.safetensors", layer=1)], ids=str)
def test_blocks_with_several_streams_are_refused_where_they_are_read_or_steered(defense):
    parts, sentence = ModelParts(gemma_3n()), r"\(Gemma3nTextDecoderLayer\) return .* \(4, 1, 2, 32\), not \(rows, tok"
    with pytest.raises(ModelError, match=sentence):
        checked_layers(parts, labelled([defense]), None, None)
    with pytest.raises(ModelError, match=sentence), hooked(parts.blocks, lambda layer, hidden: None):
        parts.backbone(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    checked_layers(parts, labelled([KL(1.0)]), None, None)
