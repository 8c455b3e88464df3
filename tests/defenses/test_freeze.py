"""Freeze: which blocks are not trained, that the others are, and what is refused."""

import pytest

import tiny
from staytrue.defense import Defense
from staytrue.defenses.freeze import Freeze
from staytrue.errors import ModelError, RecipeError
from staytrue.testing import Micro, trained
from staytrue.testing.micro import adapter


class Rowless(Defense):
    """Fails while it makes its rows, as a user's own defense may."""

    weight, share = 1.0, 0.5

    def beside(self, base, seed):
        raise RecipeError("no rows today")

    def penalty(self, step):
        return step.divergence()


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, (1,)), (2, (1,)), (4, (2,)), (8, (3, 4)), (32, (9, 10, 11, 12, 13, 14, 15, 16))]
)
def test_by_default_the_second_quarter_is_frozen(depth, blocks):
    assert Freeze().freeze(depth) == blocks


@pytest.mark.parametrize(("named", "frozen"), [(1, 1), (-1, 2)])
def test_after_three_steps_the_named_block_is_as_it_was_and_the_other_is_not(named, frozen):
    model = tiny.lora(tiny.model())
    before = trained([], model, tiny.tokenizer(), tiny.rows(), max_steps=1, learning_rate=0.0).weights
    after = trained([Freeze((named,))], model, tiny.tokenizer(), tiny.rows()).weights
    first = 0
    for name, weight in adapter(model):
        same = bool((before == after)[first : first + weight.numel()].all())
        assert same == (f"layers.{frozen - 1}." in name), name
        first += weight.numel()


def test_a_detached_guard_leaves_the_adapter_trainable():
    model = tiny.lora(tiny.model())
    micro = Micro([Freeze((1,))], model, tiny.tokenizer(), tiny.rows(2))
    assert not all(weight.requires_grad for _, weight in adapter(model))
    micro.close()
    assert all(weight.requires_grad for _, weight in adapter(model))


@pytest.mark.parametrize(
    ("defenses", "sentence"),
    [
        ([Freeze((1, 2))], "The defenses freeze the whole adapter"),
        ([Freeze((3,))], "freeze asked for layer 3"),
        ([Freeze((1,)), Rowless()], "no rows today"),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(defenses, sentence):
    model = tiny.lora(tiny.model())
    with pytest.raises((ModelError, RecipeError), match=sentence):
        Micro(defenses, model, tiny.tokenizer(), tiny.rows(2))
    assert all(weight.requires_grad for _, weight in adapter(model))
    assert not any(module._forward_hooks for module in model.modules())
