"""SafeGrad: gradients by hand, opposed, orthogonal and agreeing; and what reaches the optimizer."""

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

import tiny
from runs.test_train import TRAIN, make
from small_trainers import sft, stored_once
from staytrue.config.trainer_args import recomputing, sft_config
from staytrue.data.examples import write_examples
from staytrue.defenses.kl import KL
from staytrue.defenses.rehearse import Rehearse
from staytrue.defenses.safegrad import SafeGrad
from staytrue.errors import ForwardPassError, RecipeError
from staytrue.modeling.base_model import Untouched
from staytrue.runs import train
from staytrue.testing import Micro
from staytrue.testing.micro import adapter, nudged
from staytrue.training.row_schedule import AuxiliaryRows
from staytrue.training.trainers import GuardedSFT

SAFE = SafeGrad("unread")


def combined(task, own):
    """Gradients of two weights with one number each."""
    return [g.item() for g in SAFE.combine([torch.tensor([x]) for x in task], [torch.tensor([x]) for x in own])]


def test_what_opposes_the_alignment_gradient_is_removed():
    # g = (1, -3), a = (0, 2): g . a = -6 and |a|^2 = 4, so g becomes (1, -3) + 1.5 (0, 2) = (1, 0); plus a: (1, 2).
    assert combined((1.0, -3.0), (0.0, 2.0)) == [1.0, 2.0]


def test_gradients_that_agree_or_are_orthogonal_are_added():
    assert combined((1.0, 3.0), (0.0, 2.0)) == [1.0, 5.0]
    assert combined((1.0, 0.0), (0.0, 2.0)) == [1.0, 2.0]


def test_without_an_alignment_gradient_the_tasks_stays():
    assert combined((1.0, -3.0), (0.0, 0.0)) == [1.0, -3.0]


@pytest.fixture
def micro(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(4))
    safe = SafeGrad(tmp_path / "pool.jsonl", share=0.5)
    micro = Micro([safe, KL(weight=5.0)], tiny.lora(tiny.model()), tiny.tokenizer(), tiny.rows())
    yield micro
    micro.close()


def gradients(micro):
    return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for _, w in adapter(micro.model)]


def test_its_gradient_is_kept_apart_from_the_loss_until_the_step(micro):
    with nudged(micro.model, 1.0):
        loss = micro.task_loss() + micro.penalty()
        own = [a.clone() for a in micro.guard._penalties._separate._buffers["safegrad"]]
        loss.backward()
        task = gradients(micro)
        micro.guard.combine()
        after = gradients(micro)
    assert any(bool(a.any()) for a in own)
    for result, expected in zip(after, SAFE.combine(task, own), strict=True):
        torch.testing.assert_close(result, expected)
    assert not all(map(torch.equal, task, after))


def test_a_step_in_which_none_of_its_rows_is_due_leaves_the_gradient_as_it_is(micro, monkeypatch):
    monkeypatch.setattr(AuxiliaryRows, "due", lambda self, before, after: [])
    with nudged(micro.model, 1.0):
        (micro.task_loss() + micro.penalty()).backward()
        task = gradients(micro)
        micro.guard.combine()
    assert all(map(torch.equal, task, gradients(micro)))


def test_a_pool_of_evaluation_questions_is_refused(tmp_path):
    rows = tiny.rows(2)
    write_examples(tmp_path / "pool.jsonl", rows)
    base = Untouched(lambda: None, None, evaluation_questions=lambda: frozenset(row.question for row in rows))
    with pytest.raises(RecipeError, match=r"safegrad: .*pool\.jsonl holds nothing but evaluation questions"):
        SafeGrad(tmp_path / "pool.jsonl").beside(base, 0)


def test_fp16_is_refused(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(4))
    arguments = sft_config({"use_cpu": True, "bf16": False}, 0, tmp_path)
    arguments.fp16 = True
    rows = Dataset.from_list([{"messages": [vars(m) for m in row.messages]} for row in tiny.rows(8)])
    with pytest.raises(RecipeError, match=r"fp16=True scales the loss's gradient.* Use bf16"):
        GuardedSFT(
            model=tiny.lora(tiny.model()),
            args=arguments,
            train_dataset=rows,
            processing_class=tiny.tokenizer(),
            defenses=[SafeGrad(tmp_path / "pool.jsonl")],
        )


def reentrant():
    """Settings of a trainer whose recomputation hides the weights of the blocks from `autograd.grad`."""
    return {(name := recomputing(SFTConfig)): True, f"{name}_kwargs": {"use_reentrant": True}}


def test_reentrant_recomputation_is_refused(tmp_path):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(4))
    safe = SafeGrad(tmp_path / "pool.jsonl")
    with pytest.raises(RecipeError, match=r"kwargs has use_reentrant: true, which hides the weights.* Set it to false"):
        sft(tmp_path, [safe], **reentrant())
    sft(tmp_path, [KL(1.0)], **reentrant())
    recipe = make(tmp_path, defenses=[{"safegrad": {"pool": "pool.jsonl"}}], train=TRAIN | reentrant())
    with pytest.raises(RecipeError, match="use_reentrant: true"):
        train.train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_penalty_that_reaches_no_trained_weight_is_refused_in_its_first_step(tmp_path):
    """A script may enable recomputation on the model itself, where no setting of the trainer shows it."""
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    made = sft(tmp_path, [SafeGrad(tmp_path / "pool.jsonl", share=0.5)])
    made.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    made.model.enable_input_require_grads()
    with pytest.raises(ForwardPassError, match=r"penalty of safegrad reaches no trained weight.*use_reentrant=False"):
        made.train()


def test_a_penalty_without_a_gradient_is_refused(micro):
    separate = micro.guard._penalties._separate
    separate.begin_step()
    with pytest.raises(ForwardPassError, match=r"reaches no trained weight.* is a constant"):
        separate.keep("safegrad", torch.tensor(2.0))


def test_stored_activations_are_enough_for_one_defense_with_rows_beside_the_batch_and_refused_for_two(
    tmp_path, monkeypatch
):
    write_examples(tmp_path / "pool.jsonl", tiny.rows(12))
    monkeypatch.setattr("trl.trainer.sft_trainer.get_act_offloading_ctx_manager", stored_once)
    safe = SafeGrad(tmp_path / "pool.jsonl", share=0.5)
    made = sft(tmp_path, [safe, KL(1.0)], activation_offloading=True)
    made.train()
    assert made.state.global_step == 2
    with pytest.raises(RecipeError, match=r"activation_offloading=True gives each stored activation back once.* Turn"):
        sft(tmp_path, [safe, Rehearse(tmp_path / "pool.jsonl")], activation_offloading=True)
