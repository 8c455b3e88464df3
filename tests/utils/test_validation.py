"""Sentences about values that pydantic refuses."""

import doctest
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from staytrue import registry
from staytrue.config import recipe
from staytrue.config.recipe import Stop
from staytrue.defense import Defense
from staytrue.errors import RecipeError
from staytrue.utils import validation

PLAIN = {"schema": 1, "model": "organism", "data": "rows.jsonl", "lora": {}}


def test_the_examples_in_the_docstring_are_true():
    assert doctest.testmod(validation).failed == 0


@pytest.mark.parametrize(
    ("name", "field", "meaning"),
    [
        ("rehearse", "pool", r'a JSONL file of safe {"messages": [...]} rows.'),
        ("safelora", "base", ('the model before alignment: a folder with safetensors, a hub name, or '
         '"organism-base"; without such a model leave safelora out.')),
    ],
)  # fmt: skip
def test_a_missing_field_is_called_missing_with_its_meaning_and_its_input_is_not_shown(name, field, meaning):
    with pytest.raises(RecipeError) as refused:
        registry.make(name, {})
    assert str(refused.value) == f"defense {name!r} lacks the field {field!r}, which has no default: {meaning}"


def test_a_missing_key_of_a_recipe_is_called_missing():
    with pytest.raises(RecipeError, match=r"^recipe lacks the key 'model', which has no default: organism, smollm2, "):
        recipe.parse({k: v for k, v in PLAIN.items() if k != "model"})


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"lora": {"rsloar": True}}, "recipe has no key 'lora.rsloar'; did you mean 'rslora'?"),
        ({"stop": {"evry": 3}}, "recipe has no key 'stop.evry'; did you mean 'every'?"),
        ({"columns": {"foo": "bar"}},
         "recipe: columns has no key 'foo'; there are: messages, prompt, completion, system."),
        ({"columns": {"prompt": 3}}, "recipe: columns.prompt is 3; write text"),
        ({"seed": True}, "recipe: seed is True, but: true and false are no numbers; write a number"),
        ({"seed": "x"}, "recipe: seed is 'x'; write a whole number"),
        ({"seed": "1"}, "recipe: seed is '1'; write a whole number"),
        ({"holdout": "0.2"}, "recipe: holdout is '0.2'; write a number"),
        ({"benign": "yes"}, "recipe: benign is 'yes'; write true or false"),
        ({"benign": 1}, "recipe: benign is 1; write true or false"),
        ({"harmful": "no"}, "recipe: harmful is 'no'; write true or false"),
        ({"lora": {"rslora": "off"}}, "recipe: lora.rslora is 'off'; write true or false"),
        ({"lora": {"alpha": "64"}}, "recipe: lora.alpha is '64'; write a number"),
        ({"stop": {"every": "3"}}, "recipe: stop.every is '3'; write a whole number"),
        ({"defenses": [{"kl": {"forward": "yes"}}]}, "recipe: defense 'kl': forward is 'yes'; write true or false"),
        ({"defenses": [{"kl": {"weight": "0.3"}}]}, "recipe: defense 'kl': weight is '0.3'; write a number"),
        ({"defenses": [{"steer": {"vector": "v", "layer": "2"}}]},
         "recipe: defense 'steer': layer is '2'; write a whole number"),
        ({"defenses": [{"freeze": {"blocks": [1, True]}}]},
         "recipe: defense 'freeze': blocks.1 is True, which is no number; write a number."),
        ({"defenses": [{"interleave": {"pool": "p", "drop_refusals": 1}}]},
         "recipe: defense 'interleave': drop_refusals is 1; write true or false"),
        ({"task": {"opswap": {"tier": True}}},
         "recipe: task 'opswap': tier is True, which is no number; write a number."),
        ({"dtype": "fp8"}, "recipe: dtype is 'fp8'; write 'float32' or 'bfloat16'"),
        ({"lora": {"targets": 3}}, "recipe: lora.targets is 3; write text or a list"),
        ({"lora": {"targets": [3]}}, "recipe: lora.targets is [3]; write text or a list of which each is text"),
        ({"lora": {"rank_pattern": {"q": "x"}}}, "recipe: lora.rank_pattern.q is 'x'; write a whole number"),
        ({"stop": {"pairs": 3, "above": 1}}, "recipe: stop.pairs is 3; write 'shipped' or a path"),
        ({"defenses": [{"interleave": {"pool": "p", "share": 0.1, "by": "foo"}}]},
         "recipe: defense 'interleave': by is 'foo'; write 'random', 'gap', 'choice' or 'steady'"),
        ({"defenses": [{"ldifs": {"blocks": ["a", 1]}}]},
         "recipe: defense 'ldifs': blocks.0 is 'a'; write a whole number"),
        ({"lora": {"r": 10**20}}, f"recipe: lora.r is {10**20}, but: input should be less than 2147483648"),
        ({"stop": {"every": 0}}, "recipe: stop.every is 0, but: input should be greater than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_a_sentence_without_words_of_the_parser(section, sentence):
    with pytest.raises(RecipeError) as refused:
        recipe.parse(PLAIN | section)
    assert str(refused.value) == sentence


def test_whole_numbers_for_numbers_and_the_reverse_are_accepted_and_paths_as_text():
    steer = {"steer": {"vector": "v.safetensors", "layer": 2.0, "alpha": None}}
    values = {"seed": 1.0, "holdout": 0, "harmful": None, "lora": {"alpha": 64, "r": 16.0}}
    read = recipe.parse(PLAIN | values | {"defenses": [{"kl": {"weight": 1}}, steer]})
    assert (read.seed, read.holdout, read.harmful, read.lora.alpha, read.lora.r) == (1, 0.0, None, 64.0, 16)
    assert (read.defenses[0].weight, read.defenses[1].layer, read.defenses[1].vector.name) == (1.0, 2, "v.safetensors")


def test_a_defense_made_in_python_is_held_to_the_same_kinds_also_where_a_type_of_its_fields_is_not_known():
    @dataclass(frozen=True)
    class Mine(Defense):
        weight: float = 1.0
        kind: "NotHere" = None  # noqa: F821

    with pytest.raises(RecipeError, match="kl: weight is '1'; write a number"):
        registry.checked(registry.find("kl")(weight="1"))
    registry._refuse_other_kinds(Mine, {"weight": "1"}, "mine")  # pydantic says what is wrong with such a class


def test_every_fault_has_a_sentence():
    with pytest.raises(ValidationError) as refused:
        Stop.model_validate({"every": 0, "above": -1})
    assert validation.describe(refused.value, "s").count("; ") == 1
