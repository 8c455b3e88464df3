"""Edits of a recipe from the command line: `--set kl.weight=0.3`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from staytrue import registry
from staytrue.errors import RecipeError
from staytrue.utils.console import quoted
from staytrue.utils.validation import nearest
from staytrue.utils.yaml12 import from_yaml

_SECTIONS = ("columns", "lora", "stop", "train")  # keys of a recipe that hold keys


def edit_key(plain: dict[str, Any], edit: str, keys: Collection[str]) -> None:
    """Apply one `key=value`: `kl.weight` is a field of the defense `kl`, `kl.2.weight` of the second of that name.

    Args:
        plain: the recipe as in YAML, which is changed.
        edit: the text after `--set`.
        keys: that a recipe may have.

    Raises:
        RecipeError: the edit has no value, names a defense that the recipe does not list, enters a key that holds no
            keys, or changes the adapter of a recipe without one.
    """
    key, equals, text = edit.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {edit}: write it as key=value, for example --set kl.weight=0.3.")
    value = from_yaml(text, f"--set {edit}: the value")
    first, _, rest = key.partition(".")
    if not rest:
        plain[key] = value
    elif first == "lora" and plain.get("lora") == "none":
        raise RecipeError(
            f"--set {edit}: the recipe trains all weights (lora: none), so there is no adapter to change. Write --set "
            f"'lora={{{rest}: {text}}}' to train an adapter instead."
        )
    elif first in _SECTIONS:
        plain[first] = _with_key(plain.get(first), rest, value)
    elif first in keys:
        raise RecipeError(f"--set {edit}: {first} is set as a whole. {_whole(first, rest, text)}")
    else:
        listed = plain.get("defenses")
        _edit_defense(listed if isinstance(listed, list) else [], edit, first, rest, value)


def _whole(key: str, field: str, text: str) -> str:
    """How a key is set that is no section."""
    if key == "defenses":
        return "Name the defense, as in --set kl.weight=0.3."
    if key == "task":
        name, _, own = field.rpartition(".")
        return f"Write the task with its fields: --set 'task={{{name or 'NAME'}: {{{own}: {text}}}}}'."
    return f"Write --set {quoted(f'{key}={text}')}."


def _edit_defense(listed: list[Any], edit: str, name: str, field: str, value: Any) -> None:
    """Set one field of a listed defense; `2.weight` is the weight of the second of that name."""
    places = [i for i, entry in enumerate(listed) if entry == name or (isinstance(entry, dict) and name in entry)]
    if not places and name in registry.names():
        raise RecipeError(f"--set {edit}: the recipe lists no defense {name!r}; add it to `defenses:` first.")
    if not places:
        raise RecipeError(
            f"--set {edit}: there is no section and no defense {name!r}{nearest(name, [*_SECTIONS, *registry.names()])}"
        )
    number, _, rest = field.partition(".")
    if number.isdecimal():
        field = rest
    elif len(places) > 1:
        raise RecipeError(
            f"--set {edit}: the recipe lists {name!r} {len(places)} times. Write {name}.1.{field} for the first and "
            f"{name}.2.{field} for the second, or edit the file."
        )
    turn = int(number) if number.isdecimal() else 1
    if not 1 <= turn <= len(places):
        raise RecipeError(f"--set {edit}: there is no {name}.{turn}; the recipe lists {name!r} {len(places)} times.")
    entry = listed[places[turn - 1]]
    listed[places[turn - 1]] = {name: _with_key(None if entry == name else entry[name], field, value)}


def _with_key(section: Any, key: str, value: Any) -> Any:
    """A section with one key changed; anything but a mapping is returned as it is, and `parse` refuses it."""
    return {**(section or {}), key: value} if isinstance(section or {}, dict) else section
