"""A training whose gradients do not hold the defenses' penalties is refused or warned of, in one sentence."""

import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback
from trl import SFTConfig

import tiny
from small_trainers import grpo, sft
from staytrue.config.trainer_args import recomputing
from staytrue.data.examples import write_examples
from staytrue.defenses.anchor import Anchor
from staytrue.defenses.kl import KL
from staytrue.defenses.safegrad import SafeGrad
from staytrue.defenses.steer import Steer
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


class Overwrites(GuardedSFT):
    """Puts the gradient of a loss without penalties in the place of the parent's, after the parent's step."""

    put = staticmethod(torch.Tensor.copy_)

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        overwrite(model, inputs, self.put)
        return loss


class OverwritesData(Overwrites):
    """The same without a trace in the tensors' versions."""

    put = staticmethod(lambda gradient, other: gradient.data.copy_(other))


class Overwrite(TrainerCallback):
    """The same before the optimizer step, by a callback."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        overwrite(model, self.trainer.data_collator([self.trainer.train_dataset[i] for i in range(2)]))


class OverwritingSGD(torch.optim.SGD):
    """The same by an optimizer's own hook, after all callbacks."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_step_pre_hook(self.overwrite)

    def overwrite(self, *_):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad.fill_(1.0)


def overwrite(model, inputs, put=torch.Tensor.copy_):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    loss = model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        put(weight.grad, gradient)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("by", ["subclass", "subclass, data", "callback before", "callback after", "optimizer"])
def test_gradients_that_were_overwritten_in_place_are_warned_of_once(tmp_path, by, parts):
    cls = {"subclass": Overwrites, "subclass, data": OverwritesData}.get(by, GuardedSFT)
    more = {"optimizer_cls_and_kwargs": (OverwritingSGD, {"lr": 0.1})} if by == "optimizer" else {}
    made = sft(tmp_path, [KL(1.0)], cls=cls, gradient_accumulation_steps=parts, more=more)
    if by.startswith("callback"):
        callbacks = made.callback_handler.callbacks
        callbacks.insert(len(callbacks) if by == "callback after" else 0, Overwrite(made))
    with pytest.warns(UserWarning, match="gradients were overwritten in place after the backward pass") as seen:
        made.train()
    assert sum("gradients were" in str(warning.message) for warning in seen) == 1
    assert not any(weight._backward_hooks for weight in made.model.parameters())
    assert not made.optimizer.optimizer._optimizer_step_pre_hooks or by == "optimizer"


class ScalesGradients(GuardedSFT):
    """Scales the gradients or clips their entries, and makes a further backward pass, which keeps the penalties."""

    factor, most = 3.0, float("inf")

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.mul_(self.factor)
        torch.nn.utils.clip_grad_value_(model.parameters(), self.most)
        model(input_ids=inputs["input_ids"], labels=inputs["labels"]).loss.backward()
        return loss


class ClipsGradients(ScalesGradients):
    factor, most = 1.0, 1e-4


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("cls", [ScalesGradients, ClipsGradients])
def test_gradients_that_are_scaled_or_added_to_by_backward_passes_are_kept(tmp_path, parts, cls):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*gradients were")
        sft(tmp_path, [KL(1.0)], cls=cls, gradient_accumulation_steps=parts).train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("change", "lost"),
    [
        (lambda g: g.mul_(0.3), False),
        (lambda g: g.mul_(1.7), False),
        (lambda g: g.clamp_(-0.5, 0.5), False),
        (lambda g: g[:2].zero_(), False),
        (lambda g: g.sign_(), True),
        (lambda g: g.neg_(), True),
        (lambda g: g.add_(0.1), True),
        (lambda g: g[:1].mul_(2.0), True),
    ],
    ids=["scaled down", "scaled up", "clipped", "masked", "signs", "turned", "added to", "one entry"],
)
def test_a_gradient_that_is_a_multiple_or_smaller_in_each_entry_is_kept(recwarn, change, lost, dtype):
    weight, kept = torch.nn.Parameter(torch.zeros(5, dtype=dtype)), KeptGradients()
    (weight * torch.tensor([0.1, -0.2, 0.7, -1.3, 0.9], dtype=dtype)).sum().backward()
    kept.keep([weight])
    change(weight.grad)
    kept.check()
    kept.forget()
    assert ["overwritten in place" in str(w.message) for w in recwarn.list] == [True] * lost


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
    weight.sum().backward()
    kept.check()
    kept.forget()
    assert not recwarn.list
    weight.grad.fill_(2.0)
    kept.keep([weight])
    weight.grad.zero_()
    weight.sum().backward()
    with pytest.warns(UserWarning, match="were set to 0"):
        kept.forget()


def other_labels(place, change):
    """A subclass that changes what the loss reads, in its training_step or compute_loss."""

    class Changes(GuardedSFT):
        def training_step(self, model, inputs, *args, **kwargs):
            return super().training_step(model, change(inputs) if place == "step" else inputs, *args, **kwargs)

        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, change(inputs) if place == "loss" else inputs, *args, **kwargs)

    return Changes


def without_first_labels(inputs):
    labels = inputs["labels"].clone()
    labels[0] = -100
    return {**inputs, "labels": labels}


def in_place(inputs):
    inputs["labels"][0] = -100
    return inputs


def shorter(inputs):
    return {
        key: value[:, :-1] if hasattr(value, "ndim") and value.ndim == 2 else value for key, value in inputs.items()
    }


def all_read(inputs):
    return {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}


def other_token(inputs):
    labels = inputs["labels"].clone()
    labels[labels != -100] = 5
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("place", ["step", "loss"])
@pytest.mark.parametrize("change", [without_first_labels, in_place, all_read])
def test_labels_that_are_changed_after_the_step_was_planned_are_refused(tmp_path, place, change):
    made = sft(tmp_path, [KL(1.0)], cls=other_labels(place, change), gradient_accumulation_steps=2)
    with pytest.raises(ForwardPassError, match="Changes changed the labels or the mask of a batch after"):
        made.train()
    assert made.state.global_step == 0


@pytest.mark.parametrize("place", ["step", "loss"])
@pytest.mark.parametrize("steered", [False, True])
def test_a_batch_that_is_cut_after_the_step_was_planned_is_refused(tmp_path, place, steered):
    save_file({"vectors": torch.ones(2, 32)}, str(tmp_path / "vector.safetensors"))
    chosen = [Steer(tmp_path / "vector.safetensors", layer=1, alpha=0.5)] if steered else [KL(1.0)]
    with pytest.raises(ForwardPassError, match=r"read 4 x .* planned with 4 x .* changes the batch after"):
        sft(tmp_path, chosen, cls=other_labels(place, shorter)).train()


@pytest.mark.parametrize("place", ["step", "loss"])
def test_labels_of_other_tokens_at_the_same_positions_are_trained(tmp_path, place):
    sft(tmp_path, [KL(1.0)], cls=other_labels(place, other_token)).train()


def test_labels_may_change_where_no_defense_counts_them(tmp_path):
    sft(tmp_path, [], cls=other_labels("loss", without_first_labels)).train()


def test_completions_that_are_masked_after_the_step_was_planned_are_refused(tmp_path):
    class Masks(GuardedGRPO):
        def compute_loss(self, model, inputs, *args, **kwargs):
            mask = inputs["completion_mask"].clone()
            mask[0] = 0
            return super().compute_loss(model, {**inputs, "completion_mask": mask}, *args, **kwargs)

    with pytest.raises(ForwardPassError, match="Masks changed the labels or the mask of a batch after"):
        grpo(tmp_path, [KL(1.0)], cls=Masks).train()


def test_a_device_is_waited_for_as_often_however_many_micro_batches_a_step_has(tmp_path, monkeypatch):
    """Each reading of a value waits for a GPU."""
    read = []
    for name in ("__bool__", "item", "tolist", "__float__", "__int__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, plain=plain: read.append(ours()) or plain(self))
    counts = []
    for parts in (1, 4):
        made = sft(tmp_path, [KL(1.0)], gradient_accumulation_steps=parts, max_steps=3, logging_steps=3)
        read.clear()
        made.train()
        counts.append(read.count("micro_batch.py") + read.count("step_plan.py") + read.count("kept_gradients.py"))
    # Of three steps the task rows, penalties and kept gradients; the sample is chosen once.
    assert counts[0] == counts[1] == 3 * 3 + 1


def ours():
    """The file of the function that reads a tensor's value."""
    return Path(sys._getframe(2).f_code.co_filename).name
