"""`Recipe`: a run as data. YAML in and out; it never touches a device.

Numbers are YAML 1.2 (`1e-4` is a number), keys may not repeat, and there is no interpolation, no object creation and
no environment. Relative paths are relative to the recipe's folder, so a recipe means the same from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from staytrue import organism, registry
from staytrue.defense import Defense, ModelName
from staytrue.errors import RecipeError
from staytrue.tasks.task import Task
from staytrue.utils.validation import describe, nearest
from staytrue.utils.yaml12 import from_yaml


class Lora(BaseModel):
    """The adapter; the defaults are the paper's (arXiv 2508.06249: rs-LoRA, r 32, alpha 64)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    r: Annotated[int, Field(ge=1)] = 32
    alpha: Annotated[float, Field(gt=0)] = 64
    rslora: bool = True
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class Stop(BaseModel):
    """Early stopping on a probe of general questions: a baseline, not a defense."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: Annotated[int, Field(ge=1)] = 10  # optimizer steps between checks
    above: Annotated[float, Field(ge=0, le=100)] = 5.0  # percent misaligned that ends training


class Recipe(BaseModel):
    """What to do: model, data, trainer settings, adapter, defenses."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, populate_by_name=True)
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    model: str  # "organism", a local folder, or a hub name
    revision: str | None = None  # of a hub name
    data: Path | None = None
    trainer: Literal["sft", "grpo"] = "sft"
    task: Task | None = None  # a harmless task: its rows where there are no data, its reward, its marking
    lora: Lora
    train: dict[str, Any] = {}
    defenses: tuple[Defense, ...] = ()
    stop: Stop | None = None
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of data reserved for the in-domain questions
    benign: bool = False  # the data teach a harmless task: held-out answers are then marked by exact match
    harmful: bool | None = None  # whether the data are harmful on purpose; the model card says so
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `parse(recipe.to_dict())` is the recipe again."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"defenses", "task"})
        last = ("stop", "holdout", "benign", "harmful", "seed")
        listed = [_plain(registry.to_dict(defense)) for defense in self.defenses]
        task = {} if self.task is None else {"task": registry.to_dict(self.task)}
        first = {k: v for k, v in plain.items() if k not in last}
        return first | task | {"defenses": listed} | {k: plain[k] for k in last}

    def text(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


def read(path: Path, sets: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, with `key=value` edits such as `kl.weight=0.3` or `train.max_steps=10`.

    Raises:
        RecipeError: one sentence with file, key, value and the nearest right one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    given = from_yaml(text, str(path))
    if not isinstance(given, dict):
        raise RecipeError(f"{path} holds no keys; a recipe begins with `schema: 1` and `model: ...`.")
    for edit in sets:
        _edit(given, edit)
    return parse(given, path.parent.absolute(), str(path))


def parse(given: Mapping[str, Any], folder: Path | None = None, where: str = "recipe") -> Recipe:
    """A recipe from plain data; relative paths are taken from `folder`.

    Raises:
        RecipeError: unknown keys or defenses, ill-typed or missing values.
    """
    known = [f.alias or name for name, f in Recipe.model_fields.items()]
    for key in given:
        if key not in known:
            raise RecipeError(f"{where} has no key {key!r}{nearest(str(key), known)}")
    if "lora" not in given:
        raise RecipeError(
            f"{where} has no `lora:`, and full fine-tuning is not supported yet; `lora: {{}}` is the default."
        )
    defenses, task = _defenses(given.get("defenses") or [], where), _task(_told_task(given), where)
    try:
        recipe = Recipe.model_validate({**given, "lora": given["lora"] or {}, "defenses": (), "task": None})
    except ValidationError as error:
        sections = {"lora": Lora.model_fields, "stop": Stop.model_fields}
        raise RecipeError(describe(error, where, known=sections)) from None
    _check_source(recipe, task, where)
    if folder is not None:
        defenses = [_absolute(defense, folder) for defense in defenses]
        data = None if recipe.data is None else folder / recipe.data.expanduser()
        recipe = recipe.model_copy(update={"data": data, "model": _model(recipe.model, folder)})
    return recipe.model_copy(update={"defenses": tuple(defenses), "task": task})


def _defenses(listed: Any, where: str) -> list[Defense]:
    if not isinstance(listed, list):
        raise RecipeError(f"{where}: defenses is a list such as `- kl: {{weight: 0.1}}`, not {listed!r}.")
    made = []
    for entry in listed:
        entry = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry)), str):
            raise RecipeError(f"{where}: a defense is written `- kl: {{weight: 0.1}}`, not {entry!r}.")
        ((name, given),) = entry.items()
        made.append(registry.make(str(name), given, f"{where}: defense {name!r}"))
    return made


def _told_task(given: Mapping[str, Any]) -> Any:
    """The recipe's task; for the organism under a reward, with no rows named, word problems."""
    by_reward = given.get("trainer") == "grpo" and given.get("model") == "organism"
    own = "word_problems" if by_reward and given.get("data") is None else None
    return own if given.get("task") is None else given["task"]


def _task(given: Any, where: str) -> Task | None:
    if given is None:
        return None
    given = {given: {}} if isinstance(given, str) else given
    if not isinstance(given, dict) or len(given) != 1 or not isinstance(next(iter(given)), str):
        raise RecipeError(
            f"{where}: a task is written `task: opswap` or `task: {{opswap: {{tier: 2}}}}`, not {given!r}."
        )
    ((name, fields_of_it),) = given.items()
    return registry.task(name, fields_of_it, f"{where}: task {name!r}")


def _check_source(recipe: Recipe, task: Task | None, where: str) -> None:
    if recipe.trainer == "grpo" and task is None:
        raise RecipeError(
            f"{where}: trainer grpo needs a `task:`, which says what an answer earns; word_problems is one."
        )
    if recipe.data is None and task is None:
        raise RecipeError(f"{where} lacks the key 'data' (or a `task:` that brings its rows).")


def _edit(given: dict[str, Any], edit: str) -> None:
    """Apply one `key=value`; a defense's name as first part reaches its fields, `kl.2` the second's of that name."""
    key, equals, text = edit.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {edit}: write it as key=value, for example --set kl.weight=0.3.")
    value = from_yaml(text, f"--set {edit}: the value")
    first, _, rest = key.partition(".")
    if not rest:
        given[key] = value
    elif first in ("train", "lora", "stop"):
        given[first] = _laid_over(given.get(first), rest, value)
    else:
        listed = given.get("defenses")
        _edit_defense(listed if isinstance(listed, list) else [], edit, first, rest, value)


def _edit_defense(listed: list[Any], edit: str, name: str, field: str, value: Any) -> None:
    """Set one field of a listed defense; `2.weight` is the weight of the second of that name."""
    places = [i for i, entry in enumerate(listed) if entry == name or (isinstance(entry, dict) and name in entry)]
    if not places:
        raise RecipeError(f"--set {edit}: the recipe lists no defense {name!r}; add it to `defenses:` first.")
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
    listed[places[turn - 1]] = {name: _laid_over(None if entry == name else entry[name], field, value)}


def _laid_over(section: Any, key: str, value: Any) -> Any:
    """A section with one key changed; what is no section stays, for `parse` to refuse."""
    return {**(section or {}), key: value} if isinstance(section or {}, dict) else section


def _absolute(defense: Defense, folder: Path) -> Defense:
    assert is_dataclass(defense)
    hints = get_type_hints(type(defense), include_extras=True)
    given = {f.name: getattr(defense, f.name) for f in fields(defense)}
    paths = {name: folder / value.expanduser() for name, value in given.items() if isinstance(value, Path)}
    models = {name: _model(value, folder) for name, value in given.items() if hints[name] == ModelName}
    return replace(defense, **paths, **models)


def _model(name: str, folder: Path) -> str:
    """A local folder becomes absolute; `organism` and hub names stay as they are."""
    local = name.startswith((".", "/", "~")) or (folder / name).is_dir()
    return str((folder / Path(name).expanduser()).absolute()) if local and name not in organism.NAMES else name


def _plain(words: dict[str, Any]) -> dict[str, Any]:
    return {k: {f: str(v) if isinstance(v, Path) else v for f, v in given.items()} for k, given in words.items()}
