"""Full fine-tuning in a script: the reference is a frozen copy, and every number is that of the formula."""

import copy
import gc
import logging
import threading
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax
from transformers import Qwen2ForCausalLM
from trl import SFTTrainer

import tiny
from small_trainers import grpo, sft
from staytrue.data.examples import write_examples
from staytrue.defense import Defense
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.defenses.ldifs import LDIFS
from staytrue.defenses.rehearse import Rehearse
from staytrue.defenses.safelora import SafeLoRA
from staytrue.errors import ForwardPassError, ModelError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.reference_model import AdapterOff, FrozenCopy, NoReference
from staytrue.testing import Micro
from staytrue.training.all_weights import lost_updates

WHOLE = {"whole": True, "per_device_train_batch_size": 8, "max_steps": 3, "optim": "sgd", "learning_rate": 0.5}


def tied(seed=0):
    """A model whose head is its embedding."""
    torch.manual_seed(seed)
    config = copy.deepcopy(tiny.model().config)
    config.tie_word_embeddings = True
    return Qwen2ForCausalLM(config).eval()


def copies():
    return [thing for thing in gc.get_objects() if isinstance(thing, FrozenCopy)]


def steps(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]


def divergence_by_hand(model, before, micro):
    """The mean of KL(model || before) over the scored positions, from whole logits in float64."""
    inputs, scored = micro.inputs, micro.marks.scored
    ours, theirs = (log_softmax(one(**inputs).logits[scored].double(), -1) for one in (model, before))
    return (ours.exp() * (ours - theirs)).sum(-1).mean()


@pytest.mark.parametrize("make", [tiny.model, tied], ids=["own head", "tied head"])
def test_value_and_gradient_of_a_divergence_are_those_of_whole_logits(make):
    model = make()
    before, micro = copy.deepcopy(model), Micro([KL(1.0)], model, tiny.tokenizer(), tiny.rows())
    assert float(micro.penalty().detach()) == 0
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] += 3.0  # one weight of a block, and one of the head
        model.get_output_embeddings().weight[9, 2] += 1.0
    value = micro.penalty()
    value.backward()
    ours = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    oracle = divergence_by_hand(model, before, micro)
    oracle.backward()
    assert float(value.detach()) == pytest.approx(float(oracle.detach()), rel=1e-4)
    assert float(value.detach()) > 1e-3
    for name, weight in model.named_parameters():
        assert torch.allclose(ours[name], weight.grad, rtol=1e-3, atol=1e-7), name


def test_l2init_is_the_squared_length_of_a_known_change_and_its_gradient_twice_the_change():
    model = tied()
    micro = Micro([L2Init(weight=0.5)], model, tiny.tokenizer(), tiny.rows())
    with torch.no_grad():
        model.model.norm.weight[0] += 0.3
        model.model.embed_tokens.weight[7, 1] -= 0.4  # is the head too, and counts once
    value = micro.penalty()
    value.backward()
    assert float(value.detach()) == pytest.approx(0.5 * (0.09 + 0.16), rel=1e-5)
    assert float(model.model.norm.weight.grad[0]) == pytest.approx(0.5 * 2 * 0.3, rel=1e-5)
    assert float(model.model.embed_tokens.weight.grad[7, 1]) == pytest.approx(-0.5 * 2 * 0.4, rel=1e-5)
    assert micro.forwards["reference"] == 0


@pytest.mark.parametrize("made", [sft, grpo])
def test_the_copy_is_apart_from_the_training_and_stays_as_the_model_was(tmp_path, made):
    trainer = made(tmp_path, [KL(0.3)], **WHOLE)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    copied = trainer.guard.reference
    assert isinstance(copied, FrozenCopy)
    assert copied.bytes == sum(weight.nbytes for weight in trainer.model.parameters())
    trainer.train()
    after, kept = trainer.model.state_dict(), copied.parts.causal.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in before.items())
    assert any(not torch.equal(after[name], weight) for name, weight in before.items())
    assert after.keys() == before.keys()
    theirs = {id(weight) for weight in copied.parts.causal.parameters()}
    assert not theirs & {id(weight) for weight in trainer.model.parameters()}
    assert not theirs & {id(w) for group in trainer.optimizer.param_groups for w in group["params"]}
    assert not any(weight.requires_grad or weight.grad is not None for weight in copied.parts.causal.parameters())
    assert not copied.parts.causal.training
    kl = [row["kl"] for row in steps(trainer)]
    assert kl[0] == 0
    assert all(value > 0 for value in kl[1:])


def test_the_logged_penalty_is_the_divergence_from_the_model_before_training(tmp_path):
    model, before = tied(), tied()
    alone = sft(tmp_path, [], model=model, **WHOLE | {"max_steps": 1})
    alone.train()  # where the first step of a defended training ends too, since its penalty is 0 there
    defended = sft(tmp_path, [KL(0.3)], model=tied(), **WHOLE | {"max_steps": 2})
    seen = []
    inner = defended.compute_loss

    def keep(model, inputs, *args, **kwargs):
        seen.append({name: value.clone() for name, value in inputs.items()})
        return inner(model, inputs, *args, **kwargs)

    defended.compute_loss = keep
    defended.train()
    inputs, labels = {k: v for k, v in seen[1].items() if k in ("input_ids", "attention_mask")}, seen[1]["labels"]
    with torch.no_grad():
        ours, theirs = (log_softmax(m(**inputs).logits[:, :-1].double(), -1) for m in (model, before))
    by_token = (ours.exp() * (ours - theirs)).sum(-1)[labels[:, 1:] != -100]
    assert steps(defended)[1]["kl"] == pytest.approx(float(by_token.mean()), rel=1e-3)
    assert steps(defended)[1]["loss"] == pytest.approx(steps(defended)[1]["task_loss"] + 0.3 * float(by_token.mean()))


def test_without_defenses_it_is_trls_own_training_bit_for_bit(tmp_path):
    ours, theirs = sft(tmp_path, [], **WHOLE), sft(tmp_path, cls=SFTTrainer, **WHOLE)
    for trainer in (ours, theirs):
        trainer.train()
    assert isinstance(ours.guard.reference, NoReference)
    for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_recomputed_activations_give_the_same_weights(tmp_path):
    runs = [sft(tmp_path, [KL(0.3)], activation_checkpointing=on, **WHOLE) for on in (False, True)]
    for trainer in runs:
        trainer.train()
    for one, other in zip(*(trainer.model.parameters() for trainer in runs), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_under_autocast_an_unmoved_model_has_no_penalty_and_its_master_weights_move(tmp_path):
    trainer = sft(tmp_path, [KL(0.3), LDIFS(0.3)], **WHOLE | {"bf16": True, "learning_rate": 0.05})
    trainer.train()
    assert steps(trainer)[0]["kl"] == steps(trainer)[0]["ldifs"] == 0
    assert all(row["kl"] > 0 and row["ldifs"] > 0 for row in steps(trainer)[1:])
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_a_reference_cache_holds_the_copys_states_and_gives_the_same_weights(tmp_path):
    cache = {"more": {"reference_cache": tmp_path / "cache"}}
    runs = [sft(tmp_path, [KL(0.3)], **WHOLE, **more) for more in ({}, cache, cache)]
    for trainer in runs:
        trainer.train()
    assert [trainer.guard.cache and bool(trainer.guard.cache.computed) for trainer in runs] == [None, True, False]
    for trainer in runs[1:]:
        for one, other in zip(runs[0].model.parameters(), trainer.model.parameters(), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_no_copy_is_made_where_no_defense_reads_one(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    trainer = sft(tmp_path, [Rehearse(tmp_path / "pool.jsonl", share=0.25)], **WHOLE)
    assert isinstance(trainer.guard.reference, NoReference)
    assert trainer.guard.reference.bytes == 0
    trainer.train()
    assert isinstance(sft(tmp_path, [KL()]).guard.reference, AdapterOff)


class Untrue(Defense):
    """Reads the reference, and declares that it does not."""

    weight = 1.0
    reads_reference = False

    def penalty(self, step):
        return step.mean(step.divergence(step.span()), step.span())


def test_a_defense_that_reads_what_it_does_not_declare_is_refused(tmp_path):
    trainer = sft(tmp_path, [Untrue()], **WHOLE)
    with pytest.raises(ForwardPassError, match="declares reads_reference = False"):
        trainer.train()


def frozen():
    return tiny.model().requires_grad_(False)


def merged():
    adapted = tiny.lora(tiny.model())
    adapted.merge_adapter()
    return adapted


def bare_layers():
    return get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear")).get_base_model()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (frozen, "Every weight of the model is frozen"),
        (merged, r"is merged into the weights.*unmerge_adapter\(\)"),
        (bare_layers, "has layers of an adapter, but it is no PeftModel"),
    ],
)
def test_models_whose_reference_would_be_wrong_are_refused(make, sentence):
    with pytest.raises(ModelError, match=sentence):
        Micro([KL()], make(), tiny.tokenizer(), tiny.rows())


def test_quantised_weights_are_refused():
    model = tiny.model()
    model.is_quantized = True
    with pytest.raises(ModelError, match=r"is quantised.*cannot be trained themselves"):
        Micro([KL()], model, tiny.tokenizer(), tiny.rows())


def test_safelora_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ModelError, match="projects the update of a LoRA adapter, and this training has none"):
        sft(tmp_path, [SafeLoRA(base="organism-base")], **WHOLE)


def test_frozen_embeddings_and_head_are_shared_in_value_and_have_no_gradient(tmp_path):
    model = tiny.model()
    for part in (model.model.embed_tokens, model.lm_head):
        part.requires_grad_(False)
    trainer = sft(tmp_path, [KL(0.3)], model=model, **WHOLE)
    assert trainer.which_head == "one pass"
    head = model.lm_head.weight.clone()
    trainer.train()
    assert torch.equal(model.lm_head.weight, head)
    assert steps(trainer)[1]["kl"] > 0


def test_updates_that_bfloat16_would_lose_are_counted_exactly():
    # At 1.5, numbers of bfloat16 are 2^-7 apart, so 2^-8 is the least move that is not lost, and 1.5 + 2^-9 is 1.5.
    weight = torch.nn.Linear(1, 4, bias=False).bfloat16()
    weight.weight.data = torch.tensor([[1.5], [1.5], [0.0], [0.01]]).bfloat16()
    assert lost_updates(weight, 2.0**-8) is None
    assert "for 50 % of them" in lost_updates(weight, 2.0**-8 - 1e-5)
    assert "for 75 % of them" in lost_updates(weight, 1e-6)
    moved = weight.weight.data + torch.tensor(2.0**-8 - 1e-5).bfloat16()
    assert (moved == weight.weight.data).flatten().tolist() == [True, True, False, False]
    assert lost_updates(weight.float(), 1e-9) is None


def test_a_script_is_warned_of_lost_updates_and_told_of_the_copy(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "staytrue"), pytest.warns(UserWarning, match="trained in half precision"):
        sft(tmp_path, [KL()], model=tiny.model().bfloat16(), **WHOLE | {"learning_rate": 1e-7, "optim": "adamw_torch"})
    assert "The reference is a frozen copy of the model, which takes" in caplog.text
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*half precision")
        sft(tmp_path, [KL()], **WHOLE)
        sft(tmp_path, [KL()], model=tiny.model().bfloat16(), **WHOLE)


def test_a_copy_of_a_model_that_a_trainer_has_patched_calls_itself(tmp_path):
    trainer = sft(tmp_path, [], **WHOLE)  # trl replaces the model's forward by one that is bound to this model
    copied = FrozenCopy(ModelParts(trainer.model)).parts.causal
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    before = copied(**inputs).logits
    with torch.no_grad():
        trainer.model.lm_head.weight.zero_()
    assert torch.equal(copied(**inputs).logits, before)


@pytest.mark.parametrize("kept", [False, True], ids=["trainers deleted", "trainers kept"])
def test_each_training_of_a_model_has_one_copy_which_goes_with_its_trainer(tmp_path, kept):
    gc.collect()
    model, trainers, others = tiny.model(), [], len(copies())
    for _ in range(3):
        trainer = sft(tmp_path, [KL(1.0)], model=model, **WHOLE | {"max_steps": 1})
        trainer.train()
        trainers += [trainer] if kept else []
        del trainer
        gc.collect()
    assert len(copies()) - others == len(trainers)
    assert len(model.model._forward_hooks) == len(trainers)


def test_of_two_trainers_that_were_made_for_one_model_each_is_defended_by_its_own_reference(tmp_path):
    model = tiny.model()
    first, second = (sft(tmp_path, [KL(1.0)], model=model, **WHOLE | {"logging_steps": 1}) for _ in range(2))
    first.train(), second.train()
    assert steps(first)[0]["kl"] == 0  # nothing has moved yet
    assert steps(second)[0]["kl"] > 1e-6  # its reference was copied before the first training


def test_a_forward_of_a_copy_is_not_taken_for_the_trainers():
    model = tiny.model()
    micro = Micro([KL(1.0)], model, tiny.tokenizer(), tiny.rows())
    teacher = copy.deepcopy(model)
    with micro.guard.watch(micro.marks) as calls:
        model(**micro.inputs), teacher(**micro.inputs)
    assert len(calls) == 1
    states = model(**micro.inputs, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(calls[0].final, states)


def test_a_model_that_cannot_be_copied_is_a_sentence():
    class Locked:
        def __init__(self):
            self.own = threading.Lock()

        def hook(self, *args):
            pass

    model = tiny.model()
    model.register_forward_hook(Locked().hook)
    with pytest.raises(ModelError, match=r"cannot be copied, and its copy is the reference .* or train an adapter\."):
        FrozenCopy(ModelParts(model))


@pytest.mark.parametrize(("optimizer", "warned"), [("adamw_torch", True), ("sgd", False)])
def test_only_the_updates_of_an_adam_are_known_to_be_lost(tmp_path, recwarn, optimizer, warned):
    settings = WHOLE | {"learning_rate": 1e-7, "optim": optimizer}
    sft(tmp_path, [KL()], model=tiny.model().bfloat16(), **settings)
    assert any("half precision" in str(one.message) for one in recwarn.list) == warned
