"""A defense that would hold nothing is refused before training; a penalty that was 0 throughout is warned of."""

import warnings
from contextlib import nullcontext

import pytest
from datasets import Dataset
from peft import LoraConfig

import tiny
from small_trainers import grpo, sft
from staytrue.data.examples import write_examples
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.freeze import Freeze
from staytrue.defenses.interleave import Interleave
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.rehearse import Rehearse
from staytrue.defenses.safegrad import SafeGrad
from staytrue.defenses.steer import Steer
from staytrue.errors import ModelError, RecipeError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.base_model import Untouched
from staytrue.training.guard import Guard
from staytrue.training.idle_penalties import without_effect
from staytrue.training.trainers import GuardedSFT

_IDLE = "kl was 0 in each of the 3 steps although the weights moved"


@pytest.fixture
def pool(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    return tmp_path / "pool.jsonl"


@pytest.mark.parametrize("defense", [KL(1.0, on="interleaved"), LDIFS(1.0, on="interleaved")], ids=["kl", "ldifs"])
def test_a_penalty_on_rows_that_are_not_there_is_refused(tmp_path, pool, defense):
    with pytest.raises(RecipeError, match=r"on is 'interleaved', and no training row is of that kind.*Add the defense"):
        sft(tmp_path, [defense])
    sft(tmp_path, [defense, Interleave(pool, share=0.25)])
    sft(tmp_path, [defense, Interleave(pool, share=0.25)], packing=True, max_length=128)
    sft(tmp_path, [type(defense)(1.0, on="task")])
    if isinstance(defense, KL):
        with pytest.raises(RecipeError, match="kl: on is 'interleaved'"):
            grpo(tmp_path, [defense])


def test_a_weight_of_0_is_warned_of_before_training(tmp_path):
    with pytest.warns(UserWarning, match=r"^kl\.weight is 0, so this defense changes nothing\.$"):
        sft(tmp_path, [KL(0.0), LDIFS(1.0)])


def test_an_alpha_of_0_changes_nothing_and_one_that_is_left_out_does(tmp_path):
    defenses = {
        "steer": Steer(tmp_path / "evil.safetensors", layer=1, alpha=0.0),
        "anchor": Anchor(tmp_path / "p.jsonl", weight=0.0),
    }
    assert without_effect(defenses) == [
        "steer.alpha is 0, so this defense changes nothing.",
        "anchor.weight is 0, so this defense changes nothing.",
    ]
    assert (
        without_effect({"steer": Steer(tmp_path / "evil.safetensors", layer=1), "freeze": Freeze(), "kl": KL()}) == []
    )


@pytest.mark.parametrize("make", [Anchor, SafeGrad, Rehearse], ids=["anchor", "safegrad", "rehearse"])
def test_a_share_that_puts_no_row_beside_the_run_is_refused(tmp_path, pool, make):
    options = {"answers": "given"} if make is Anchor else {}
    with pytest.raises(
        RecipeError, match=r"a share of 0\.0001 puts no row beside the run's 8 task rows, so it would do"
    ):
        sft(tmp_path, [make(pool, share=1e-4, **options)])
    sft(tmp_path, [make(pool, share=0.0625, **options)])  # half a row is rounded up


def adapter(layers):
    return LoraConfig(r=4, target_modules=["q_proj"], layers_to_transform=layers, task_type="CAUSAL_LM")


def test_blocks_without_an_adapter_cannot_be_frozen(tmp_path):
    class Second(GuardedSFT):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"peft_config": adapter([1])})

    with pytest.raises(ModelError, match="freeze: no weight of blocks 1 is trained, so there is nothing to freeze"):
        sft(tmp_path, [Freeze(blocks=(1,))], cls=Second)
    sft(tmp_path, [Freeze(blocks=(1,))])


@pytest.mark.parametrize("with_head", [False, True], ids=["blocks", "head"])
def test_ldifs_on_blocks_that_training_does_not_move_is_refused(tmp_path, with_head):
    class Second(GuardedSFT):
        def __init__(self, *args, **options):
            chosen = adapter([1])
            chosen.modules_to_save = ["lm_head"] if with_head else None
            super().__init__(*args, **options | {"peft_config": chosen})

    with pytest.raises(ModelError, match=FIXED):
        sft(tmp_path, [LDIFS(blocks=(1,))], cls=Second)
    sft(tmp_path, [LDIFS(blocks=(2,))], cls=Second)


FIXED = r"ldifs: blocks goes up to 1, and only weights above that block are trained, .* a later block, up to 2\."


def test_ldifs_on_a_block_that_freeze_takes_out_is_refused_also_by_a_check_without_weights(tmp_path):
    for blocks in ((), (2,), (1, 2)):
        sft(tmp_path, [Freeze(blocks=(1,)), LDIFS(blocks=blocks)])
    defenses = [LDIFS(blocks=(-2,)), Freeze(blocks=(1,))]
    model = tiny.lora(tiny.model("qwen2"))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with pytest.raises(ModelError, match=FIXED):
        sft(tmp_path, defenses, model=model, whole=True)
    assert all(weight.requires_grad for weight in trained)
    with pytest.raises(ModelError, match=FIXED):
        Guard(defenses).check(model, Untouched(lambda: model, tiny.tokenizer()), lambda rows: [])


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_tied_to_the_embeddings_moves_every_block(tied):
    model = tiny.model("qwen2")
    model.requires_grad_(False)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.lm_head.weight.requires_grad_(True)
    with nullcontext() if tied else pytest.raises(ModelError, match=FIXED):
        LDIFS(blocks=(1,)).check(ModelParts(model), Untouched(lambda: model, tiny.tokenizer()))


def idle(made):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made.train()
    return [str(one.message) for one in seen if "was 0 in each of" in str(one.message)]


@pytest.mark.parametrize("logging_steps", [1, 500])
def test_a_penalty_that_was_0_throughout_is_warned_of(tmp_path, logging_steps):
    changes = {"max_steps": 3, "logging_steps": logging_steps}
    (sentence,) = idle(sft(tmp_path, [KL(1.0, tokens="prompt")], completions(), **changes))
    assert sentence.startswith(_IDLE)
    assert sentence.endswith("or the blocks that it reads (blocks) lie below everything that is trained.")
    assert idle(sft(tmp_path, [KL(1.0)], completions(), **changes)) == []


def test_rows_that_were_due_before_the_weights_moved_alone_are_no_fault(tmp_path, pool):
    # 2 steps of 4 task rows at a share of an eighth: the only anchor row is due in the first step.
    beside = Anchor(pool, share=0.125, answers="given")
    assert idle(sft(tmp_path, [beside], max_steps=2, logging_steps=500)) == []
    assert idle(sft(tmp_path, [beside], max_steps=2, logging_steps=1)) == []


def completions():
    """Rows whose first token is learnt already, so that none is a prompt's."""
    return Dataset.from_list([{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 16)


@pytest.mark.parametrize("changes", [{"max_steps": 1}, {"max_steps": 3, "learning_rate": 0.0}])
def test_divergences_of_a_model_that_has_not_moved_are_no_fault(tmp_path, changes):
    assert idle(sft(tmp_path, [KL(1.0)], **changes)) == []


def test_a_dataset_that_was_replaced_under_a_data_defense_is_a_sentence(tmp_path, pool):
    made = sft(tmp_path, [Interleave(pool, share=0.25)])
    made.train_dataset = sft(tmp_path).train_dataset
    with pytest.raises(RecipeError, match="train_dataset was replaced after the trainer was made"):
        made.train()


@pytest.mark.parametrize("rate", [1e30, 0.1])
def test_a_number_that_is_not_finite_is_warned_of_as_it_is_logged(tmp_path, rate):
    made = sft(tmp_path, [KL(1.0)], max_steps=4, learning_rate=rate, max_grad_norm=0.0)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made.train()
    found = [str(one.message) for one in seen if "training has diverged. Stop it" in str(one.message)]
    assert len(found) == (rate > 1)
    assert all(sentence.startswith(("task_loss is nan", "kl is nan", "loss is")) for sentence in found)
