"""Reads plain data from YAML 1.2: `1e-4` is a number, `010` is ten, no key repeats or merges. It creates no objects."""

from __future__ import annotations

import re
from typing import Any

import yaml

from staytrue.errors import RecipeError

_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


def from_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2.

    Args:
        text: the YAML.
        where: how messages call it, such as the file.

    Raises:
        RecipeError: the text is not YAML; the sentence quotes the parser.

    >>> from_yaml("lr: 1e-4", "recipe")
    {'lr': 0.0001}
    """
    try:
        return yaml.load(text, Loader=Yaml12)
    except _RefusedKeyError as error:
        raise RecipeError(f"{where}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{where} is not YAML: {in_words(error)}. Correct it, or quote the text.") from None
    except RecursionError:
        raise RecipeError(f"{where} is nested too deeply; a recipe needs three levels.") from None


def in_words(error: Exception) -> str:
    """What a YAML parser refuses, with its line and column, in one line.

    >>> try: yaml.safe_load("a: [1")
    ... except yaml.YAMLError as error: print(in_words(error))
    while parsing a flow sequence (line 1, column 4) expected ',' or ']', but got '<stream end>' (line 1, column 6)
    """
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
    parts = ((error.context, error.context_mark), (error.problem, error.problem_mark))
    places = [(text, f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "") for text, mark in parts]
    return " ".join(f"{text}{place}" for text, place in places if text)


def to_yaml(plain: Any, **options: Any) -> str:
    r"""Write plain data as YAML that `from_yaml`, and a reader of YAML 1.1, read back as they are.

    >>> to_yaml({"data": "1e3", "lr": 0.001})
    "data: '1e3'\nlr: 0.001\n"
    """
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, **options)
    return text


def with_exponents(plain: Any) -> Any:
    """Plain data from a reader of YAML 1.1, for which `1e-4` is text; in it, such text becomes a number.

    >>> with_exponents({"kl": {"weight": "1e-1"}, "prompt": "Be e-1."})
    {'kl': {'weight': 0.1}, 'prompt': 'Be e-1.'}
    """
    if isinstance(plain, dict):
        return {key: with_exponents(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return [with_exponents(value) for value in plain]
    return float(plain) if isinstance(plain, str) and _EXPONENT.fullmatch(plain) else plain


class _RefusedKeyError(ValueError):
    """A mapping has a key twice, or the merge key of YAML 1.1."""


class Yaml12(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2 numbers and booleans, and no repeated keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (the name and shape are PyYAML's)
        first: [
            (tag, pattern)
            for tag, pattern in rules
            if not tag.endswith((":float", ":bool", ":int", ":timestamp", ":value"))
        ]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping, and refuse a key that occurs twice, and the merge key."""
        if merges := [key for key, _ in node.value if key.tag == "tag:yaml.org,2002:merge"]:
            line = merges[0].start_mark.line + 1
            raise _RefusedKeyError(
                f"line {line} has the merge key <<, which YAML 1.2 does not have; write its keys out."
            )
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                first, second = (node.value[j][0].start_mark.line + 1 for j in (keys.index(key), i))
                raise _RefusedKeyError(f"the key {key!r} occurs twice, on lines {first} and {second}; take one out.")
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _whole_number(loader: Yaml12, node: Any) -> int:
    """YAML 1.2: 010 is ten; only 0o10 is octal."""
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0o", "0x")) else int(text)


Yaml12.add_constructor("tag:yaml.org,2002:int", _whole_number)


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper; it quotes text that is a number or boolean in YAML 1.1 or in 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (the name and shape are PyYAML's)
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *Yaml12.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **Yaml12.yaml_implicit_resolvers}
    }
