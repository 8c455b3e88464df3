"""A training whose gradients do not hold the defenses' penalties is refused or warned of, in one sentence."""

import warnings

import pytest
import torch
from transformers import TrainerCallback
from trl import SFTConfig

import tiny
from small_trainers import grpo, sft
from staytrue.config.trainer_args import recomputing
from staytrue.data.examples import write_examples
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.kl import KL
from staytrue.defenses.safegrad import SafeGrad
from staytrue.errors import ForwardPassError
from staytrue.training.kept_gradients import KeptGradients
from staytrue.training.trainers import GuardedGRPO, GuardedSFT

_UNTRAINED = r"trains on another loss than super\(\)\.compute_loss.*no gradient"
_REPLACED = "gradients were replaced after the backward pass"


@pytest.fixture
def pool(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    return tmp_path / "pool.jsonl"


def weights(made):
    return torch.cat([weight.detach().flatten() for weight in made.model.parameters() if weight.requires_grad])


def own(loss):
    """A subclass that calls the parent's compute_loss and returns another loss, as a function of the parent's."""

    class OwnLoss(GuardedSFT):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            parents = super().compute_loss(model, dict(inputs), False, num_items_in_batch)
            logits = model(input_ids=inputs["input_ids"]).logits[:, :-1]
            task = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())
            return loss(parents, task)

    return OwnLoss


@pytest.mark.parametrize(
    "loss",
    [
        lambda parents, task: task,
        lambda parents, task: parents.detach() + task,
        lambda parents, task: 0 * parents + task,
    ],
    ids=["dropped", "detached", "times 0"],
)
@pytest.mark.parametrize("defenses", ["kl", "anchor"])
def test_a_loss_whose_penalties_have_no_gradient_is_refused_in_its_first_step(tmp_path, pool, loss, defenses):
    chosen = [KL(1.0)] if defenses == "kl" else [Anchor(pool, share=0.5, answers="given")]
    made = sft(tmp_path, chosen, cls=own(loss))
    with pytest.raises(ForwardPassError, match=_UNTRAINED):
        made.train()
    assert made.state.global_step == 0


@pytest.mark.parametrize(
    "loss",
    [lambda parents, task: parents + task, lambda parents, task: 0.5 * parents, lambda parents, task: parents],
    ids=["added to", "scaled", "as it is"],
)
def test_a_loss_that_holds_the_parents_is_trained(tmp_path, loss):
    made = sft(tmp_path, [KL(1.0)], cls=own(loss))
    made.train()
    assert [row["kl"] for row in made.state.log_history if "kl" in row][-1] > 0


def test_a_gradient_that_is_combined_needs_no_place_in_the_loss(tmp_path, pool):
    made, plain = (
        sft(tmp_path, [SafeGrad(pool, share=0.5)], cls=cls)
        for cls in (own(lambda parents, task: 1 * parents), GuardedSFT)
    )
    made.train()
    plain.train()
    assert torch.equal(weights(made), weights(plain))


def test_grpo_is_refused_as_well(tmp_path):
    class OwnLoss(GuardedGRPO):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, inputs, *args, **kwargs).detach() + sum(
                weight.sum() for weight in model.parameters() if weight.requires_grad
            )

    with pytest.raises(ForwardPassError, match=f"OwnLoss {_UNTRAINED}"):
        grpo(tmp_path, [KL(1.0)], cls=OwnLoss).train()


class ForgetsGradients(GuardedSFT):
    """Makes a backward pass of its own after the parent's step."""

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        model.zero_grad()
        model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss.backward()
        return loss


class Forget(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.zero_grad()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("by", ["subclass", "callback"])
def test_gradients_that_were_replaced_are_warned_of_once(tmp_path, by, parts):
    made = sft(
        tmp_path,
        [KL(1.0)],
        cls=ForgetsGradients if by == "subclass" else GuardedSFT,
        gradient_accumulation_steps=parts,
    )
    if by == "callback":
        made.callback_handler.callbacks.insert(0, Forget())
    with pytest.warns(UserWarning, match=_REPLACED) as seen:
        made.train()
    assert sum("gradients were replaced" in str(warning.message) for warning in seen) == 1


class ZeroesGradients(GuardedSFT):
    """Sets the gradients to 0 after the parent's step, and makes a backward pass of its own."""

    own = True

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        zero(model)
        if self.own:
            model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss.backward()
        return loss


class ZeroesAlone(ZeroesGradients):
    own = False


class Zero(TrainerCallback):
    """The same before the optimizer step, by a callback."""

    def __init__(self, trainer, own):
        self.trainer, self.own = trainer, own

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        zero(model)
        if self.own:
            batch = self.trainer.data_collator([self.trainer.train_dataset[i] for i in range(2)])
            model(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()


def zero(model):
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad.zero_()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("by", ["subclass", "subclass alone", "callback before", "callback after", "callback alone"])
def test_gradients_that_were_set_to_0_in_place_are_warned_of_once(tmp_path, by, parts):
    cls = {"subclass": ZeroesGradients, "subclass alone": ZeroesAlone}.get(by, GuardedSFT)
    made = sft(tmp_path, [KL(1.0)], cls=cls, gradient_accumulation_steps=parts)
    if by.startswith("callback"):
        callbacks = made.callback_handler.callbacks
        callbacks.insert(len(callbacks) if by == "callback after" else 0, Zero(made, own="alone" not in by))
    with pytest.warns(UserWarning, match="gradients were set to 0 after the backward pass") as seen:
        made.train()
    assert sum("gradients were set to 0" in str(warning.message) for warning in seen) == 1
    assert not any(weight._backward_hooks for weight in made.model.parameters())


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2, "max_grad_norm": 1e-3}])
@pytest.mark.parametrize("defenses", ["none", "kl", "safegrad"])
def test_gradients_that_are_clipped_or_combined_are_kept(tmp_path, pool, changes, defenses):
    chosen = {"none": [], "kl": [KL(1.0)], "safegrad": [SafeGrad(pool, share=0.5), KL(1.0)]}[defenses]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gradients were")
        sft(tmp_path, chosen, **changes).train()


@pytest.mark.parametrize("planned", [True, False])
def test_a_loop_of_ones_own_that_calls_no_callback_is_not_warned_of(tmp_path, planned):
    made = sft(tmp_path, [KL(1.0)])
    made.model.train()
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1
    batches = iter(made.get_train_dataloader())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gradients were replaced")
        for _ in range(2):
            batch = made.get_batch_samples(batches, 1, made.args.device)[0][0] if planned else next(batches)
            made.training_step(made.model, batch)
            made.optimizer.step()
            made.optimizer.zero_grad()


def off_in_the_step(made):
    step = made.training_step

    def without(model, *args, **kwargs):
        with model.disable_adapter():
            return step(model, *args, **kwargs)

    made.training_step = without


@pytest.mark.parametrize("recomputes", [False, True])  # which gives the inputs a gradient
@pytest.mark.parametrize("defenses", [[], [KL(1.0)]], ids=["none", "kl"])
@pytest.mark.parametrize(
    "freeze",
    [
        lambda made: [weight.requires_grad_(False) for weight in made.model.parameters()],
        lambda made: made.model.disable_adapter_layers(),
        off_in_the_step,
    ],
    ids=["frozen", "switched off", "off in the step"],
)
def test_a_model_of_which_no_weight_is_trained_is_refused(tmp_path, defenses, freeze, recomputes):
    made = sft(tmp_path, defenses, **{recomputing(SFTConfig): recomputes})
    freeze(made)
    with pytest.raises(ForwardPassError, match="loss has no gradient, so nothing would be trained"):
        made.train()


@pytest.mark.filterwarnings("ignore:.*compute_loss_func")  # deprecated
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_constant_loss_is_refused(tmp_path, recomputes):
    def constant(outputs, labels, num_items_in_batch=None):
        return torch.tensor(1.0)

    made = sft(tmp_path, [], more={"compute_loss_func": constant}, **{recomputing(SFTConfig): recomputes})
    with pytest.raises(ForwardPassError, match=r"loss has no gradient.*compute_loss_func returns a constant"):
        made.train()


@pytest.mark.parametrize(
    ("dtype", "first", "second"),
    [
        (torch.bfloat16, 1e-3, 1.0),  # rounding absorbs the first
        (torch.float32, float("inf"), float("inf")),
        (torch.float32, 1.0, 1.0),
    ],
)
def test_gradients_that_are_kept_are_not_taken_for_gradients_that_were_set_to_0(recwarn, dtype, first, second):
    weight, kept = torch.nn.Parameter(torch.zeros(3, dtype=dtype)), KeptGradients()
    for factor in (first, second):
        (weight * factor).sum().backward()
        kept.keep([weight])
    kept.check()
    assert not recwarn.list
    weight.grad.zero_()
    with pytest.warns(UserWarning, match="were set to 0"):
        weight.sum().backward()
