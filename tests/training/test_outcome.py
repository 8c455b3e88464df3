"""A training that changed nothing is reported: as an error where asked for, else as a warning."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from trl import SFTConfig

import tiny
from staytrue.defenses.kl import KL
from staytrue.errors import TrainingError
from staytrue.training import outcome as outcomes
from staytrue.training.outcome import Outcome
from staytrue.training.trainers import GuardedSFT


def step(outcome, model, number):
    outcome.on_step_end(None, SimpleNamespace(global_step=number), None, model=model)


def begun(model, first=0):
    outcome = Outcome(raises=True)
    outcome.on_train_begin(None, SimpleNamespace(global_step=first), None, model=model)
    return outcome


class Largest(TorchDispatchMode):
    """Keeps the size in bytes of the largest tensor that is made inside."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view:
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


def test_weights_are_summed_in_parts_that_take_little_memory(monkeypatch):
    weight = torch.nn.Linear(30, 50, bias=False).requires_grad_()
    monkeypatch.setattr(outcomes, "_AT_ONCE", 100)
    with Largest() as largest:
        [(_, sums)] = outcomes.sums_of_trained(weight)
    exact = weight.weight.detach().double()
    assert torch.allclose(sums, torch.stack([exact.sum(), exact.abs().sum()]), rtol=1e-12, atol=0)
    assert largest.nbytes == 100 * 8


def test_the_smallest_move_of_one_b_counts_and_of_every_a_does_not():
    model = tiny.lora(tiny.model())
    outcome = begun(model)
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            weight.data.mul_(0.9)
    step(outcome, model, 1)
    assert not outcome.moved
    with pytest.raises(TrainingError, match="No trained weight moved in 1 optimizer steps"):
        outcome.on_train_end(None, None, None)
    one = next(w for n, w in model.named_parameters() if "lora_B" in n)
    one.data[0, 0] = 1e-12
    step(outcome, model, 2)
    assert outcome.moved
    one.data[0, 0] = 0.0  # an early stop restores the first weights: the training was one all the same
    step(outcome, model, 3)
    outcome.on_train_end(None, None, None)


def test_of_embeddings_a_counts_and_b_does_not():
    model = get_peft_model(tiny.model(), LoraConfig(r=2, target_modules=["embed_tokens"]))
    a, b = (next(w for n, w in model.named_parameters() if f"lora_embedding_{part}" in n) for part in "AB")
    assert not a.any()
    outcome = begun(model)
    b.data.mul_(0.9)  # what weight decay does
    step(outcome, model, 1)
    assert not outcome.moved
    a.data[0, 0] = 1e-12
    step(outcome, model, 2)
    assert outcome.moved


def test_two_weights_that_swap_their_signs_have_moved():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, -1.0]])
    outcome = begun(model)
    model.weight.data = torch.tensor([[2.0, -2.0]])  # the same sum
    step(outcome, model, 1)
    assert outcome.fault() is None


def test_no_step_is_a_fault_unless_a_checkpoint_was_at_the_last_step():
    model = tiny.lora(tiny.model())
    assert "made no optimizer step" in begun(model).fault()
    assert begun(model, first=7).fault() is None


@pytest.mark.parametrize("defenses", [[], [KL(weight=0.1)]])
def test_a_script_is_warned(defenses, tmp_path):
    rows = [{"messages": [{"role": m.role, "content": m.content} for m in row.messages]} for row in tiny.rows(4)]

    def train(**settings):
        arguments = SFTConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
            bf16=False, save_strategy="no", disable_tqdm=True, **settings,
        )  # fmt: skip
        GuardedSFT(
            model=tiny.lora(tiny.model()), args=arguments, train_dataset=Dataset.from_list(rows),
            processing_class=tiny.tokenizer(), defenses=defenses,
        ).train()  # fmt: skip

    with pytest.warns(UserWarning, match="No trained weight moved in 2 optimizer steps"):
        train(learning_rate=0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No trained weight moved")
        train(learning_rate=1e-3)


def test_weights_that_are_not_finite_are_a_fault(tmp_path):
    model = tiny.lora(tiny.model())
    outcome = begun(model)
    one = next(w for n, w in model.named_parameters() if "lora_B" in n)
    one.data[0, 0] = float("nan")
    step(outcome, model, 1)
    with pytest.raises(
        TrainingError, match=r"diverged: 1 trained weights are not finite .*lora_B.* Lower the learning"
    ):
        outcome.on_train_end(None, None, None, model=model)
    outcome.raises = False
    with pytest.warns(UserWarning, match="diverged: 1 trained weights"):
        outcome.on_train_end(None, None, None, model=model)
    one.data[0, 0] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome.on_train_end(None, None, None, model=model)
