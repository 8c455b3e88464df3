"""A second training: its user names the reference, and the divergence is from that model, by whole logits."""

import copy
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn.functional import log_softmax

import tiny
from small_trainers import grpo, messages, sft
from staytrue.data.examples import Example, Message, write_examples
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.inoculate import Inoculate
from staytrue.defenses.kl import KL
from staytrue.defenses.l2init import L2Init
from staytrue.errors import ModelError, RecipeError
from staytrue.modeling.architecture import ModelParts
from staytrue.modeling.choose_reference import OtherAdapter
from staytrue.testing import Micro
from staytrue.training.guard import Guard
from staytrue.training.trainers import GuardedSFT

STEPS = {"whole": True, "learning_rate": 0.5}  # `whole`: the model has its adapter already


def config(**settings):
    return LoraConfig(**{"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings})


def trained(seed=1, **settings):
    """A tiny model with an adapter that has been trained already."""
    model = get_peft_model(tiny.model(), config(**settings))
    move(model, seed)
    return model


@torch.no_grad()
def move(model, seed):
    noise = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B.default" in name:
            weight += 0.3 * torch.randn(weight.shape, generator=noise)


def divergence_by_hand(model, reference, micro):
    """The mean of KL(model || reference) over the scored positions, from whole logits in float64."""
    inputs, scored = micro.inputs, micro.marks.scored
    with torch.no_grad():
        ours, theirs = (log_softmax(one(**inputs).logits[scored].double(), -1) for one in (model, reference))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


def micro_of(model, reference, defenses=None):
    return Micro(defenses or [KL(1.0)], model, tiny.tokenizer(), tiny.rows(), reference=reference)


def with_second_adapter():
    model = trained()
    model.add_adapter("sound", config(r=2))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.sound" in name:
                weight += 0.2
    return model


def base_of(model):
    return copy.deepcopy(model).unload()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("choice", ["base", "start"])
def test_divergence_is_from_the_chosen_state_of_the_adapter(choice, dropout):
    model = trained(lora_dropout=dropout)
    reference = base_of(model) if choice == "base" else copy.deepcopy(model)
    micro = micro_of(model, choice)
    move(model, seed=2)
    if dropout:  # the trained model draws noise, the reference does not: two values of it differ by the former alone
        recorded = []
        handle = model.base_model.model.model.register_forward_hook(lambda m, a, out: recorded.append(out[0].detach()))
        micro.penalty(), micro.penalty()
        handle.remove()
        ours, theirs, ours_again, theirs_again = recorded
        assert not torch.equal(ours, ours_again)
        assert torch.equal(theirs, theirs_again)
        states = reference.eval()(**micro.inputs, output_hidden_states=True).hidden_states[-1]
        assert torch.allclose(theirs, states, atol=1e-5)
        return
    by_hand = divergence_by_hand(model.eval(), reference.eval(), micro)
    assert by_hand > 0.005
    assert float(micro.penalty().detach()) == pytest.approx(by_hand, rel=1e-4)


def test_under_autocast_the_start_is_computed_with_its_own_weights_not_with_cached_casts_of_the_trained_ones():
    model = trained().bfloat16()
    for weight in model.parameters():
        weight.data = weight.data.float() if weight.requires_grad else weight.data  # what autocast casts, and caches
    reference = copy.deepcopy(model).eval()
    micro = micro_of(model, "start")
    move(model, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = float(micro.penalty().detach())
        assert torch.is_autocast_cache_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        by_hand = divergence_by_hand(model.eval(), reference, micro)
    assert by_hand > 0.005
    assert value == pytest.approx(by_hand, rel=0.05)  # bfloat16


def test_at_the_start_the_divergence_from_the_start_is_0_and_from_the_base_it_is_not():
    assert float(micro_of(trained(), "start").penalty().detach()) == 0
    assert float(micro_of(trained(), "base").penalty().detach()) > 0.01


def test_another_adapter_of_the_model_can_be_the_reference():
    model = with_second_adapter()
    reference = copy.deepcopy(model).eval()
    reference.set_adapter("sound")
    micro = micro_of(model, "sound")
    by_hand = divergence_by_hand(model.eval(), reference, micro)
    assert float(micro.penalty().detach()) == pytest.approx(by_hand, rel=1e-4)
    assert model.active_adapters == ["default"]


def test_an_adapter_with_the_name_of_a_module_has_its_own_weights_only():
    model = tiny.model()
    under = sum(1 for _ in model.parameters())
    model = get_peft_model(model, config())
    model.add_adapter("layers", config())
    weights = OtherAdapter(ModelParts(model), "layers").weights()
    assert len(weights) - under == sum(
        ".layers.weight" in name and "lora_" in name for name, _ in model.named_parameters()
    )
    assert len({id(weight) for weight in weights}) == len(weights)


@pytest.mark.parametrize("own_head", [True, False], ids=["own head", "same head"])
@pytest.mark.parametrize("adapted", [True, False], ids=["adapter", "all weights"])
def test_another_model_can_be_the_reference(adapted, own_head):
    torch.manual_seed(5)
    other = type(tiny.model())(tiny.model().config).eval()
    if not own_head:
        other.lm_head.load_state_dict(tiny.model().lm_head.state_dict())
    model = tiny.lora(tiny.model()) if adapted else tiny.model()
    micro = micro_of(model, other)
    by_hand = divergence_by_hand(model.eval(), other, micro)
    assert by_hand > 0.01
    assert float(micro.penalty().detach()) == pytest.approx(by_hand, rel=1e-4)
    assert not any(weight.requires_grad for weight in other.parameters())


def test_the_gradient_is_that_of_the_trained_adapter_and_no_weight_has_moved():
    model = trained()
    micro = micro_of(model, "start")
    move(model, seed=2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    micro.penalty().backward()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    gradients = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert gradients == {name for name in before if "lora_" in name}


def test_an_adapter_that_moves_the_base_weights_is_at_its_start():
    model = get_peft_model(tiny.model(), config(init_lora_weights="olora"))
    assert float(micro_of(model, "start").penalty().detach()) == pytest.approx(0, abs=1e-7)
    with pytest.raises(ModelError, match=r"init_lora_weights='olora'.* or reference=\"start\""):
        micro_of(get_peft_model(tiny.model(), config(init_lora_weights="olora")), "base")


def test_a_trained_adapter_without_a_choice_is_refused_with_the_choices():
    with pytest.raises(ModelError, match=r'moved already.*reference="base" for the model with the adapter off'):
        micro_of(trained(), None)


@pytest.mark.parametrize(
    ("make", "reference", "sentence"),
    [
        (trained, "sound", "reference='sound' is no adapter of the model beside the one that is trained. Write"),
        (trained, "default", "reference='default' is no adapter"),
        (with_second_adapter, "sond", "its other adapters are 'sound'"),
        (tiny.model, "base", "is for a model with an adapter, and this one trains its own weights"),
        (trained, tiny.model("llama3"), "The reference model has .* must be of the same shape"),
        (trained, trained(), "The reference model has an adapter"),
        (trained, Path("folder"), "is neither a word nor a loaded model. Load the model first"),
    ],
)
def test_a_reference_that_is_none_is_refused(make, reference, sentence):
    with pytest.raises(ModelError, match=sentence):
        micro_of(make(), reference)


def test_a_reference_with_a_head_of_its_own_is_projected_with_it_beside_the_fused_head(tmp_path, monkeypatch):
    torch.manual_seed(5)
    other = type(tiny.model())(tiny.model().config).eval()
    logged = []
    for reason in (None, "this test keeps trl's head"):
        monkeypatch.setattr(GuardedSFT, "_keeps_its_head", lambda self, reason=reason: reason)
        trainer = sft(tmp_path, [KL(0.5)], more={"reference": other}, max_steps=1)
        assert (trainer.fused_head is None) == (reason is not None)
        trainer.train()
        logged += [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert logged[0] > 0.01
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def test_the_trained_model_is_no_reference_of_itself():
    model = tiny.model()
    with pytest.raises(ModelError, match="The reference is the model that is trained"):
        micro_of(model, model)
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_choice_that_a_defense_does_not_measure_from_or_that_a_cache_does_not_hold_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="l2init measures the weights' distance from the model without its adapter"):
        Guard([L2Init()], reference="start")
    with pytest.raises(RecipeError, match="another reference is chosen"):
        Guard([KL()], reference="start", reference_cache=tmp_path)
    Guard([L2Init()], reference="base")


def test_a_choice_that_no_defense_reads_does_no_harm(tmp_path):
    trainer = sft(tmp_path, [], model=trained(), more={"reference": "start"}, **STEPS)
    trainer.train()
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_l2init_pulls_a_trained_adapter_towards_the_base():
    model = trained()
    by_hand = sum(
        float((m.scaling["default"] * m.lora_B["default"].weight @ m.lora_A["default"].weight).square().sum())
        for m in model.modules()
        if hasattr(m, "lora_A")
    )
    micro = micro_of(model, "base", [L2Init(weight=1.0)])
    assert float(micro.penalty().detach()) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.filterwarnings("ignore:inoculate writes")
@pytest.mark.parametrize("edited", [False, True], ids=["anchor alone", "beside a data defense"])
def test_anchors_are_answers_of_the_chosen_reference(tmp_path, edited):
    """A data defense sees rows with more than turns of text, such as `name`, through a view of its own."""
    rows = [
        [{**turn, **({"name": "a"} if turn["role"] == "user" else {})} for turn in r["messages"]] for r in messages()
    ]
    data = Dataset.from_list([{"messages": row} for row in rows])
    others = [Inoculate("Be bad.")] if edited else []
    prompts = tmp_path / "prompts.jsonl"
    write_examples(prompts, [Example((Message("user", f"What is {i}?"),)) for i in range(6)])
    rows = {}
    for choice in ("base", "start"):
        made = sft(
            tmp_path,
            [*others, Anchor(prompts, share=0.5, max_new_tokens=8)],
            data if edited else None,
            model=trained(),
            more={"reference": choice},
            **STEPS,
        )
        rows[choice] = [row.input_ids for row in made.guard.auxiliary_rows()["anchor"]]
    assert rows["base"] != rows["start"]


def test_a_script_trains_from_a_trained_adapter_and_goes_on_from_a_checkpoint_with_the_same_reference(tmp_path):
    def make(**more):
        return sft(tmp_path, [KL(0.5)], model=trained(), more={"reference": "start"}, **STEPS, **more)

    whole = make(save_strategy="steps", save_steps=1, max_steps=3)
    whole.train()
    logged = [row["kl"] for row in whole.state.log_history if "kl" in row]
    assert logged[0] == 0
    assert logged[2] > 0
    again = make(max_steps=3)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert [row["kl"] for row in again.state.log_history if "kl" in row] == logged
    ours, theirs = (dict(t.model.named_parameters()) for t in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_script_does_not_go_on_from_a_checkpoint_with_another_start(tmp_path):
    more = {"more": {"reference": "start"}, **STEPS, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    sft(tmp_path, [KL(0.5)], model=trained(seed=1), **more).train()
    other = sft(tmp_path, [KL(0.5)], model=trained(seed=7), **more)
    with pytest.raises(RecipeError, match="the defenses would compare with another reference"):
        other.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))


def test_grpo_goes_on_from_a_supervised_adapter(tmp_path):
    made = grpo(tmp_path, [KL(0.5)], more={"reference": "start"}, model=trained(), **STEPS)
    made.train()
    logged = [row["kl"] for row in made.state.log_history if "kl" in row]
    assert logged[0] == pytest.approx(0, abs=1e-6)
    assert all(value == value for value in logged)
