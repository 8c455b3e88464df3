"""A registry of defenses and tasks: it finds each by file name and creates one from a recipe's fields."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from staytrue import defenses as _folder
from staytrue import tasks as _tasks
from staytrue.defense import LEVERS, Defense, Rows, pulled
from staytrue.errors import RecipeError
from staytrue.tasks.task import Task
from staytrue.utils.validation import describe, nearest

_Kind = TypeVar("_Kind")


def names() -> list[str]:
    """List the names of all defenses, in alphabetical order."""
    return sorted(m.name for m in pkgutil.iter_modules(_folder.__path__) if not m.name.startswith("_"))


@cache
def find(name: str) -> type[Defense]:
    """Find the class of the defense with that name.

    Raises:
        RecipeError: there is none; the message names the nearest.
    """
    if name not in names():
        raise RecipeError(f"There is no defense {name!r}{nearest(name, names())}")
    return _only(f"{_folder.__name__}.{name}", Defense)


def make(name: str, values: Mapping[str, Any] | None, where: str = "") -> Defense:
    """Make a defense from a recipe's fields; other fields keep their defaults.

    Raises:
        RecipeError: unknown or ill-typed fields; the message names the field, the value and the nearest right one.
    """
    return _filled(find(name), values, where or f"defense {name!r}")


def task(name: str, values: Mapping[str, Any] | None = None, where: str = "") -> Task:
    """Make a task from a recipe's fields; other fields keep their defaults.

    Raises:
        RecipeError: no such task, unknown or ill-typed fields.
    """
    if name not in _tasks.names():
        raise RecipeError(f"There is no task {name!r}{nearest(name, _tasks.names())}")
    return _filled(_only(f"{_tasks.__name__}.{name}", Task), values, where or f"task {name!r}")


def checked(defense: Defense) -> Defense:
    """Check the fields of a defense made in Python, and convert them (a path given as text to a path).

    Raises:
        RecipeError: it is not a defense, or has a field that a recipe could not hold either.
    """
    if not isinstance(defense, Defense):
        raise RecipeError(f"defenses holds {defense!r}, which is not a defense. Write an instance, such as Anchor().")
    if not is_dataclass(defense):
        return defense
    values = {f.name: getattr(defense, f.name) for f in fields(defense)}
    return _filled(type(defense), values, defense.name())


def to_dict(instance: Defense | Task) -> dict[str, Any]:
    """Convert a defense or a task to its form in a recipe: its name, mapped to its fields."""
    return {instance.name(): asdict(instance)}  # type: ignore[call-overload]


def _only(module: str, base: type[_Kind]) -> type[_Kind]:
    """Return the one class of a kind in a module."""
    file = importlib.import_module(module)
    classes = [c for _, c in inspect.getmembers(file, inspect.isclass) if c.__module__ == file.__name__]
    kinds = [c for c in classes if issubclass(c, base)]
    if len(kinds) != 1:
        raise RecipeError(
            f"{file.__file__} holds {len(kinds)} {base.__name__.lower()}s; a file there holds exactly one."
        )
    return kinds[0]


def _filled(kind: type[_Kind], values: Mapping[str, Any] | None, where: str) -> _Kind:
    """Make a dataclass from field values, and check them."""
    if values is not None and not isinstance(values, Mapping):
        raise RecipeError(f"{where}: fields are written as {{name: value}}, not as {values!r}.")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in values or {}:
        if key not in known:
            hint = nearest(str(key), known) if known else "; it has none."
            raise RecipeError(f"{where} has no field {key!r}{hint}")
    _refuse_other_kinds(kind, values or {}, where)
    try:
        instance: _Kind = _adapter(kind).validate_python(dict(values or {}))  # type: ignore[arg-type]
        return instance
    except ValidationError as error:
        raise RecipeError(describe(error, where, noun="field", meanings=meanings(kind))) from None


def meanings(kind: type[Any]) -> dict[str, str]:
    """Return what each field of a defense or a task means: the `Attributes:` section of its docstring."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    pairs = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in pairs}


def _refuse_other_kinds(kind: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Refuse what pydantic would convert: truth values and text to numbers, numbers and text to truth values."""
    for place, value, kinds in _single_values(kind, values):
        numbers, text = kinds & {int, float}, isinstance(value, str | bytes)
        if isinstance(value, bool):
            if numbers and bool not in kinds:
                raise RecipeError(f"{where}: {place} is {value}, which is no number; write a number.")
        elif text and numbers == kinds != set():
            raise RecipeError(f"{where}: {place} is {value!r}; write a {'whole ' * (kinds == {int})}number")
        elif (text and kinds == {bool}) or (isinstance(value, int | float) and bool in kinds and not numbers):
            raise RecipeError(f"{where}: {place} is {value!r}; write true or false")


def _single_values(kind: type[Any], values: Mapping[str, Any]) -> Iterator[tuple[str, Any, set[Any]]]:
    """Each value, those of a list apart, with its place and the kinds that it may have."""
    hints = _hints(kind)  # type: ignore[arg-type]
    for key, value in values.items():
        hint = hints.get(key, Any)
        if get_origin(hint) in (list, tuple) and get_args(hint)[1:] in ((), (...,)) and isinstance(value, list | tuple):
            kinds = set(_kinds(get_args(hint)[0]))
            yield from ((f"{key}.{place}", entry, kinds) for place, entry in enumerate(value))
        else:
            yield key, value, set(_kinds(hint))


def _kinds(hint: Any) -> Iterator[Any]:
    """The Python types of the values that a type hint allows, but for None."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _kinds(part)
    elif get_origin(hint) is Literal:
        yield from map(type, get_args(hint))
    elif hint is not NoneType:
        yield hint


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    """The types of a class's fields; none where they name a type that is not known here."""
    try:
        return get_type_hints(kind)
    except NameError:
        return {}


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """Return a pydantic validator for a class; cached, because a study reads hundreds of recipes."""
    return TypeAdapter(with_config(ConfigDict(extra="forbid", strict=False))(kind))


def labelled(defenses: Sequence[Defense]) -> Mapping[str, Defense]:
    """Label each defense by its name; a second of the same kind is `kl.2`.

    Raises:
        RecipeError: there is no list of defenses, or a defense overrides no lever, lacks a field that its levers need,
            or has a field whose name or value means something else to the guard.
    """
    if defenses is None or isinstance(defenses, Defense | str | Mapping):
        raise RecipeError(f"defenses is {defenses!r}; give a list, such as [Anchor()].")
    labels: dict[str, Defense] = {}
    for defense in map(checked, defenses):
        _refuse_fields(defense)
        name = defense.name()
        count = sum(label.split(".")[0] == name for label in labels)
        labels[f"{name}.{count + 1}" if count else name] = defense
    return labels


def repeated(defenses: Mapping[str, Defense]) -> list[str]:
    """Return a sentence for each defense that is listed again with the same fields, by label."""
    first = {label: next(other for other, d in defenses.items() if d == defense) for label, defense in defenses.items()}
    return [
        f"{label} has the same fields as {other}, so what it does counts twice. Take one of them out, or give them "
        "different fields."
        for label, other in first.items()
        if label != other
    ]


def _refuse_fields(defense: Defense) -> None:
    """Refuse a defense that the guard would misread."""
    name, levers = type(defense).__name__, pulled(defense)
    taken = sorted(_METHODS & set(vars(defense)))
    if taken:
        raise RecipeError(
            f"{name} has a field {taken[0]!r}, which is the name of a method of every defense. Rename the field."
        )
    if not levers:
        raise RecipeError(f"{name} overrides no method that has an effect{_meant(type(defense))}.")
    for lever, need in (("penalty", "weight"), ("beside", "share")):
        if lever in levers and not hasattr(defense, need):  # declared by `Defense`, without a value
            raise RecipeError(f"{name} overrides {lever!r}, so it needs a field {need!r}.")
    if "combine" in levers and not {"beside", "penalty"} <= set(levers):
        raise RecipeError(
            f"{name} overrides 'combine', so it also needs 'beside' and 'penalty': a loss on its own rows."
        )
    unread = [method for method in ("beside", "prepare") if _overrides(defense, method) and "penalty" not in levers]
    if unread:
        raise RecipeError(
            f"{name} overrides {unread[0]!r} but not 'penalty', which alone reads what it returns. Override 'penalty' "
            f"too, or take {unread[0]!r} out."
        )
    if "penalty" in levers and defense.on not in get_args(Rows):
        raise RecipeError(
            f"{name} has on={defense.on!r}, but `on` names the rows that a penalty reads: "
            f"{', '.join(get_args(Rows))}. Rename a field that has other values."
        )


def _overrides(defense: Defense, method: str) -> bool:
    return getattr(type(defense), method) is not getattr(Defense, method)


_METHODS = frozenset(name for name, value in vars(Defense).items() if callable(value) or isinstance(value, classmethod))


def _meant(kind: type[Defense]) -> str:
    """Return the lever that one of a class's own names was probably meant to be."""
    public = (name for name in vars(kind) if not name.startswith("_"))
    meant = next((m for name in public for m in difflib.get_close_matches(name, LEVERS, n=1, cutoff=0.5)), None)
    return f"; did you mean {meant!r}?" if meant else f"; override one of: {', '.join(LEVERS)}"


def refuse_supervised_rows(defenses: Mapping[str, Defense]) -> None:
    """Refuse a defense that adds rows with answers to the prompts of reinforcement learning.

    Raises:
        RecipeError: the message names the defense, and the one to use in reinforcement learning.
    """
    for label, defense in defenses.items():
        if defense.teaches and "curate" in pulled(defense):
            raise RecipeError(
                f"{label} mixes rows with answers among the task's, but GRPO trains on prompts and would never learn "
                "those answers. Use `rehearse`, which puts supervised safe rows beside the reward."
            )
