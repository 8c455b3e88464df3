"""Finds the defenses by file name, and turns a recipe's words into one: no list to keep."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from holdfast import defenses as _folder
from holdfast.defense import Defense
from holdfast.errors import RecipeError


def names() -> list[str]:
    """Every defense that there is, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(_folder.__path__) if not m.name.startswith("_"))


@cache
def find(name: str) -> type[Defense]:
    """The defense of that name.

    Raises:
        RecipeError: there is none; the sentence names the nearest.
    """
    if name not in names():
        raise RecipeError(f"There is no defense {name!r}{nearest(name, names())}")
    module = importlib.import_module(f"{_folder.__name__}.{name}")
    own = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
    (kind,) = (c for c in own if issubclass(c, Defense))
    return kind


def make(name: str, given: Mapping[str, Any] | None, where: str = "") -> Defense:
    """A defense from the fields a recipe gives it; the rest keep their defaults.

    Raises:
        RecipeError: unknown or ill-typed fields; the sentence names the field, the value and the nearest right one.
    """
    kind = find(name)
    where = where or f"defense {name!r}"
    if given is not None and not isinstance(given, Mapping):
        raise RecipeError(f"{where}: fields are written as {{weight: 0.1}}, not as {given!r}.")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in given or {}:
        if key not in known:
            raise RecipeError(f"{where} has no field {key!r}{nearest(str(key), known)}")
    try:
        return _adapter(kind).validate_python(dict(given or {}))
    except ValidationError as error:
        raise RecipeError("; ".join(_sentences(error, where))) from None


def words(defense: Defense) -> dict[str, Any]:
    """Give a defense back as the recipe's words: name to fields."""
    return {defense.name(): asdict(defense)}  # type: ignore[call-overload]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a refusal: the nearest right word, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known)}."


def _adapter(kind: type[Defense]) -> TypeAdapter[Defense]:
    strict = with_config(ConfigDict(extra="forbid", strict=False))(kind)
    return TypeAdapter(strict)


def _sentences(error: ValidationError, where: str) -> list[str]:
    problems = []
    for fault in error.errors(include_url=False):
        field = ".".join(str(part) for part in fault["loc"]) or "its fields"
        problems.append(f"{where}: {field} is {fault['input']!r}, but: {fault['msg'].lower()}")
    return problems
