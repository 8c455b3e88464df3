"""Sentences about values that pydantic refuses."""

import doctest

import pytest
from pydantic import ValidationError

from staytrue import registry
from staytrue.config import recipe
from staytrue.config.recipe import Stop
from staytrue.errors import RecipeError
from staytrue.utils import validation

PLAIN = {"schema": 1, "model": "organism", "data": "rows.jsonl", "lora": {}}


def test_the_examples_in_the_docstring_are_true():
    assert doctest.testmod(validation).failed == 0


@pytest.mark.parametrize(
    ("name", "field", "meaning"),
    [
        ("anchor", "prompts", r'a file of {"prompt": ...}, {"question": ...} or {"messages": [...]} rows.'),
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
        ({"stop": {"every": 0}}, "recipe: stop.every is 0, but: input should be greater than or equal to 1"),
    ],
)
def test_a_section_names_its_own_nearest_key(section, sentence):
    with pytest.raises(RecipeError) as refused:
        recipe.parse(PLAIN | section)
    assert str(refused.value) == sentence


def test_every_fault_has_a_sentence():
    with pytest.raises(ValidationError) as refused:
        Stop.model_validate({"every": 0, "above": -1})
    assert validation.describe(refused.value, "s").count("; ") == 1
