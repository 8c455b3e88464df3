"""Settings of `peft_config` that would do nothing are warned of, and peft's errors without a sentence become one."""

import re
import warnings

import pytest
from peft import LoraConfig
from peft.tuners.lora.config import KasaConfig
from trl import SFTConfig

import tiny
from small_trainers import _SETTINGS, messages, sft
from staytrue.data.examples import write_examples
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.defenses.safelora import SafeLoRA
from staytrue.errors import ModelError, RecipeError
from staytrue.modeling.architecture import ModelParts
from staytrue.training.reference.model_checks import check
from staytrue.training.trainers import GuardedSFT

NAN = float("nan")


def make(folder, defenses=(), model=None, **changes):
    settings = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | changes
    return GuardedSFT(
        model=model or tiny.model(),
        args=SFTConfig(**_SETTINGS | {"output_dir": str(folder)}),
        train_dataset=messages(4),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(**settings),
        defenses=defenses,
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"modules_to_save": ["norm", "zzz"]}, "modules_to_save names 'zzz'"),
        ({"rank_pattern": {"q_proj": 8, "zzz": 8}}, "rank_pattern names 'zzz'"),
        ({"alpha_pattern": {"zzz": 8, r".*\.1\..*q_proj": 8}}, "alpha_pattern names 'zzz'"),
        ({"target_modules": ["q_proj", "zzz"]}, "target_modules names 'zzz'"),
        (
            {"target_modules": ["q_proj"], "target_parameters": ["gate_proj.weight", "zzz"]},
            "target_parameters names 'zzz'",
        ),
        ({"target_modules": ["q_proj"], "layers_to_transform": [1, 99]}, "layers_to_transform names 99"),
    ],
)
def test_a_name_that_matches_nothing_is_warned_of(tmp_path, changes, key):
    with pytest.warns(UserWarning, match=f"^peft_config.{key}, which matches nothing in the model") as seen:
        make(tmp_path, **changes)
    assert sum("matches nothing" in str(one.message) for one in seen) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": None},
        {"target_modules": ".*q_proj"},
        {"target_modules": ["model.layers.1.self_attn.q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "layers_to_transform": 1},
        {"trainable_token_indices": [5]},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_names_that_match_are_not(tmp_path, changes):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*matches nothing")
        make(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"r": 2.5}, ".* must be tuple of ints"),
        ({"layer_replication": [(0, 9)]}, "IndexError: index 2 is out of range"),
        ({"trainable_token_indices": [99_999]}, "IndexError: index 99999 is out of bounds"),
    ],
)
def test_an_error_of_peft_is_a_sentence(tmp_path, changes, sentence):
    with pytest.raises(RecipeError, match=f"^peft cannot add the adapter of peft_config: {sentence}"):
        make(tmp_path, **changes)


def test_tokens_that_name_none_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"trainable_token_indices is \[\], which names no token"):
        make(tmp_path, trainable_token_indices=[])


def test_an_adapter_that_is_active_in_a_part_of_each_row_is_refused_beside_rows_of_a_defense(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    tokens = tiny.tokenizer().encode("<|im_start|>assistant\n", add_special_tokens=False)
    with pytest.raises(ModelError, match="alora_invocation_tokens, so peft looks up in the trainer's rows"):
        make(
            tmp_path,
            [Anchor(tmp_path / "pool.jsonl", share=0.5, answers="given")],
            alora_invocation_tokens=tokens,
        )
    made = make(tmp_path, [KL(1.0)], alora_invocation_tokens=tokens)
    made.train()
    assert [row["kl"] for row in made.state.log_history if "kl" in row][-1] > 0


def test_other_errors_are_left_as_they_are(tmp_path):
    class Broken(GuardedSFT):
        def _prepare_dataset(self, *args, **kwargs):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sft(tmp_path, cls=Broken)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"layer_replication": [(0, 2), (1, 2)]},
            "layer_replication, so with the adapter off the model has other layers",
        ),
        ({"lora_alpha": NAN}, "numbers for two tokens that are not finite (NaN). Check its weights, and lora_alpha"),
        ({"kasa_config": KasaConfig()}, "a kasa_config, which changes the base weights"),
        ({"init_lora_weights": "orthogonal"}, "init_lora_weights='orthogonal', so it starts as random numbers"),
    ],
)
def test_a_model_without_a_reference_is_refused_by_the_setting(tmp_path, changes, sentence):
    with pytest.raises(ModelError, match=re.escape(sentence)):
        make(tmp_path, [KL(1.0)], **changes)


@pytest.mark.parametrize("kind", [L2Init(0.1), SafeLoRA("unread")], ids=str)
def test_dora_is_refused_where_a_defense_reads_the_update(tmp_path, kind):
    with pytest.raises(ModelError, match=r"adapted by DoRA, which scales the weights.* Take `dora` out"):
        make(tmp_path, [kind], use_dora=True)


def test_a_new_dora_adapter_on_rounded_weights_is_refused_by_its_name(tmp_path):
    model = tiny.model().bfloat16()
    with pytest.raises(ModelError, match=r"'default' is DoRA, and its magnitudes are rounded.* `dtype: float32`"):
        make(tmp_path, [KL(1.0)], model, use_dora=True)
    made = make(tmp_path, [KL(1.0)], use_dora=True)
    made.train()
    with pytest.raises(ModelError, match="The adapter has moved already"):
        check(ModelParts(made.model))


def test_a_model_that_fails_on_two_tokens_is_a_sentence_without_defenses_too(tmp_path):
    with pytest.raises(
        ModelError, match=r"fails on two tokens, so it cannot be trained: IndexError.*layer_replication"
    ):
        make(tmp_path, layer_replication=[(0, 2), (1, 2)])
