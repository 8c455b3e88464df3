"""YAML that is written is read back as it was, by YAML 1.2 and by YAML 1.1."""

import doctest

import pytest
import yaml

from staytrue.errors import RecipeError
from staytrue.utils import yaml12
from staytrue.utils.yaml12 import from_yaml, to_yaml


@pytest.mark.parametrize(
    "text", ["1e3", "1E-4", "0o17", "010", ".5e1", "yes", "null", "~", "1_000", "2026-11-29", "a: b"]
)
def test_text_that_looks_like_something_else_is_quoted(text):
    written = to_yaml({"data": text, text: 1})
    assert from_yaml(written, "x") == yaml.safe_load(written) == {"data": text, text: 1}


def test_the_examples_in_the_docstring_are_true():
    assert doctest.testmod(yaml12).failed == 0


@pytest.mark.parametrize("text", ["a: [1", "*x", "a:\n\tb: 1", "? [a]\n: 1", "a: \0", "a: !!python/name:os.getcwd"])
def test_what_is_no_yaml_is_said_with_its_place_in_the_file(text):
    with pytest.raises(
        RecipeError, match=r"^f is not YAML: .*(line \d, column \d|position \d).*\. Correct it"
    ) as refused:
        from_yaml(text, "f")
    assert "unicode string" not in str(refused.value)


@pytest.mark.parametrize("merged", ["{r: 4}", "*a", "[*a, {r: 4}]"])
def test_a_merge_key_is_refused_in_a_sentence(merged):
    with pytest.raises(
        RecipeError, match=r"^f: line 3 has the merge key <<, which YAML 1\.2 does not have; write its keys"
    ):
        from_yaml(f"x: &a {{r: 2}}\nlora:\n  <<: {merged}\n  alpha: 8\n", "f")
    for text in ("<<", "="):
        assert from_yaml(to_yaml({text: text}), "f") == {text: text}
    assert from_yaml("x: =", "f") == {"x": "="}


@pytest.mark.parametrize("value", [1e-4, 1e-5, 2.5e30, -0.5, float("inf"), 10, True, None, ["a", 1], "plain words"])
def test_other_values_are_written_as_before(value):
    written = to_yaml({"key": value})
    assert written == yaml.safe_dump({"key": value}, sort_keys=False)
    assert from_yaml(written, "x") == {"key": value}
