"""The reference is computed for the rows and layers that a penalty reads, in one forward."""

import math

import pytest
import torch

import tiny
from staytrue.data.examples import Example
from staytrue.defenses.kl import KL
from staytrue.defenses.ldifs import LDIFS
from staytrue.errors import ForwardPassError
from staytrue.testing import Micro, close
from staytrue.training.reference.scope import ReferenceScope

NATS = 0.1 * math.log(len(tiny.tokenizer()))  # a log-probability, times the weight of a KL


def rows(interleaved=2, task=6):
    every = tiny.rows(interleaved + task)
    return [Example(r.messages, "interleaved") for r in every[:interleaved]] + every[interleaved:]


def watched(defenses, examples=None, **arguments):
    """The penalty; the rows of every reference forward, and the layers that it ran."""
    micro = Micro(defenses, tiny.lora(tiny.model()), tiny.tokenizer(), examples or rows())
    micro.inputs.update(arguments)
    forwards, layers = [], []

    def count(module, args, kwargs):
        if not torch.is_grad_enabled():
            forwards.append(len(kwargs["input_ids"]))

    def ran(layer):
        return lambda *_: None if torch.is_grad_enabled() else layers.append(layer)

    parts = micro.guard.parts
    parts.backbone.register_forward_pre_hook(count, with_kwargs=True)
    for i, block in enumerate(parts.blocks, start=1):
        block.register_forward_pre_hook(ran(i))
    measured = micro.measure(nudge=1.0)
    return measured, forwards, layers


def test_only_the_interleaved_rows_are_made_again_when_only_they_are_held():
    _, forwards, _ = watched([KL(on="interleaved")])
    assert forwards == [2]


def test_two_defenses_on_the_same_rows_share_them_and_two_on_different_rows_take_all():
    assert watched([KL(on="interleaved"), LDIFS(on="interleaved")])[1] == [2]
    assert watched([KL(on="interleaved"), LDIFS(on="task")])[1] == [8]
    assert watched([KL(on="interleaved"), LDIFS()])[1] == [8]


def test_a_micro_batch_without_such_a_row_makes_no_reference_and_has_no_penalty():
    measured, forwards, _ = watched([KL(on="interleaved"), LDIFS(on="interleaved")], rows(0, 4))
    assert forwards == []
    assert measured.value == 0.0


@pytest.mark.parametrize("defense", [KL(on="interleaved"), LDIFS(on="interleaved")])
def test_some_rows_give_the_penalty_and_the_gradient_of_the_whole_batch(defense, monkeypatch):
    some, forwards, _ = watched([defense])
    monkeypatch.setattr(ReferenceScope, "of", classmethod(lambda cls, *_: cls()))
    whole, all_forwards, _ = watched([defense])
    assert (forwards, all_forwards) == ([2], [8])
    assert close(some.value, whole.value, scale=NATS, of_itself=1e-5)
    assert (some.gradient - whole.gradient).abs().max() <= 1e-5 * whole.gradient.abs().max()


@pytest.mark.parametrize("defense", [KL(on="interleaved"), LDIFS(on="interleaved")])
def test_an_unmoved_model_is_punished_by_rounding_at_most(defense):
    micro = Micro([defense], tiny.lora(tiny.model()), tiny.tokenizer(), rows())
    assert close(micro.measure().value, 0, scale=NATS)


def test_the_reference_goes_no_deeper_than_the_deepest_layer_that_is_read():
    _, _, layers = watched([LDIFS(blocks=(1,))])
    assert layers == [1]
    _, _, layers = watched([LDIFS(blocks=(1,)), KL()])
    assert layers == [1, 2]


def test_stopping_early_changes_no_number(monkeypatch):
    stopped, _, _ = watched([LDIFS(blocks=(1,))])
    monkeypatch.setattr(ReferenceScope, "of", classmethod(lambda cls, *_: cls()))
    whole, _, layers = watched([LDIFS(blocks=(1,))])
    assert layers == [1, 2]
    assert stopped.value == whole.value
    assert torch.equal(stopped.gradient, whole.gradient)


def test_asking_a_stopped_reference_for_its_end_says_what_to_do(monkeypatch):
    monkeypatch.setattr(LDIFS, "penalty", lambda self, step: step.reference.final.sum())
    with pytest.raises(ForwardPassError, match=r"stops at layer 1.*names layer -1"):
        watched([LDIFS(blocks=(1,))])


def test_a_call_with_an_argument_of_unknown_rows_is_made_again_whole():
    plain, some, _ = watched([KL(on="interleaved")])
    measured, whole, _ = watched([KL(on="interleaved")], cache_position=torch.arange(1))  # qwen2 looks at none
    assert (some, whole) == ([2], [8])
    assert close(measured.value, plain.value, scale=NATS, of_itself=1e-5)


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
def test_rows_that_no_defense_reads_are_not_numbers(kind):
    micro = Micro([KL(on="interleaved")], tiny.lora(tiny.model(kind)), tiny.tokenizer(kind), rows())
    with micro.guard.watch(micro.marks) as calls:
        micro.guard.parts.backbone(**micro.inputs, use_cache=False)
    reference = micro.guard._penalties.steps.scope.reference(micro.guard._hooks.replay, calls[0], micro.marks)
    assert reference.final[:2].isfinite().all()
    assert reference.final[2:].isnan().all()
    assert torch.allclose(reference.final[:2], calls[0].final[:2], atol=1e-5)
