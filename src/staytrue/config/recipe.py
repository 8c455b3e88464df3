"""`Recipe` describes one run and is read from YAML and written to it. It loads no model and no data.

Numbers are YAML 1.2 (`1e-4` is a number) and keys may not repeat. There is no interpolation, no object creation and no
environment variable. Relative paths are relative to the recipe's folder, not to the working directory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from staytrue import registry
from staytrue.config import paths
from staytrue.config.edits import edit_key
from staytrue.config.foreign_keys import remedy
from staytrue.config.lora import Lora, Number, Truth, Whole
from staytrue.defense import Defense
from staytrue.errors import RecipeError
from staytrue.tasks.task import Task
from staytrue.utils.files import refuse_pipe
from staytrue.utils.validation import describe
from staytrue.utils.yaml12 import from_yaml, to_yaml


class Stop(BaseModel):
    """Early stopping on general questions, or on the validation loss: a baseline, not a defense.

    Attributes:
        every: optimizer steps between two checks of the questions; the last step is checked too.
        above: what ends training. Percent of misaligned answers, 0 to 100; with `pairs`, how much likelier they became
            in this training, in nats per token.
        pairs: instead of judged answers, compare the likelihoods of given ones: "shipped", or a JSONL file of pairs
            that no evaluation uses.
        patience: instead of the questions, watch the validation loss (`train.eval_strategy`): this many in a row that
            are no new lowest end training, with the weights of the lowest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    every: Annotated[Whole, Field(ge=1)] = 10
    above: Annotated[Number, Field(ge=0, le=100)] = 5.0
    pairs: Literal["shipped"] | Path | None = None
    patience: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_watch(self) -> Stop:
        fields = type(self).model_fields
        if self.patience is not None and any(
            getattr(self, n) != fields[n].default for n in ("every", "above", "pairs")
        ):
            raise ValueError("patience watches the validation loss, and every, above and pairs do not; keep one")
        if self.pairs is not None and "above" not in self.model_fields_set:
            raise ValueError("pairs needs above, in nats per token, such as 0.1; its default is a percentage")
        return self


_ALL_WEIGHTS = "none"  # of `lora:`
_MEANINGS = {"model": "organism, smollm2, the folder of a model, or its name on the hub"}
Dtype = Literal["float32", "bfloat16"]
Attention = Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"]
Quantize = Literal["4bit", "8bit"]


class Recipe(BaseModel):
    """One run: model, data, adapter, trainer settings and defenses.

    Attributes:
        model: "organism" (the embedded model), a local folder, or a hub name.
        revision: commit or branch of a hub name.
        dtype: precision of the weights, "float32" or "bfloat16"; None is bfloat16 with a GPU, else float32. The adapter
            is trained in float32 in any case, and with `lora: none` the weights are, unless bfloat16 is set here.
        attention: the implementation of attention in training; None is transformers' choice.
        device: the kind of device that training must run on, "cpu", "cuda" or "mps"; None is a GPU where there is one.
        quantize: "4bit" or "8bit" loads the weights under the adapter quantised, by bitsandbytes; None does not.
        data: chat JSONL file, another file or saved data set, or a hub name (docs/formats.md, "Chat rows"); None takes
            the rows of `task`.
        split: of a data set with several; None is "train".
        columns: names of the data's own columns for messages, prompt, completion and system.
        trainer: "sft" or "grpo".
        task: a benign task, with its rows, its reward and its marking.
        lora: the adapter; "none" in YAML, None here, trains all weights (full fine-tuning).
        reference: the model that penalties compare with: "base" (`model` without an adapter), "start" (with the adapter
            that training goes on from), or a model's or adapter's folder; None is the model before training.
        train: settings of trl's `SFTConfig` or `GRPOConfig`. docs/formats.md lists the usual ones and their defaults
            (`staytrue.config.trainer_args`); `staytrue.config.refused_settings` lists those that a recipe may not set.
        defenses: in the order of the recipe.
        stop: early stopping, None for none.
        holdout: share of the distinct questions of `data` that is reserved for the in-domain probe, 0 to 1.
        benign: the data teach a benign task, so held-out answers are marked by exact match.
        harmful: whether the data are harmful on purpose, for the model card; None is not stated.
        seed: of everything that draws.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, populate_by_name=True)
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    model: str
    revision: str | None = None
    dtype: Dtype | None = None
    attention: Attention | None = None
    device: Literal["cpu", "cuda", "mps"] | None = None
    quantize: Quantize | None = None
    data: Path | None = None
    split: str | None = None
    columns: dict[Literal["messages", "prompt", "completion", "system"], str] = {}
    trainer: Literal["sft", "grpo"] = "sft"
    task: Task | None = None
    lora: Lora | None
    reference: str | None = None
    train: dict[str, Any] = {}
    defenses: tuple[Defense, ...] = ()
    stop: Stop | None = None
    holdout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    benign: Truth = False
    harmful: Truth | None = None
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0

    @field_validator("lora", mode="before")
    @classmethod
    def _all_weights(cls, value: Any) -> Any:
        return None if value == _ALL_WEIGHTS else value

    @field_validator("lora")
    @classmethod
    def _trainable(cls, value: Lora | None, info: ValidationInfo) -> Lora | None:
        if value is None and info.data.get("quantize") is not None:
            raise ValueError("none trains all weights, and quantised ones cannot be trained; take quantize out")
        return value

    @field_validator("columns")
    @classmethod
    def _one_part_each(cls, value: dict[str, str]) -> dict[str, str]:
        if len(set(value.values())) < len(value):
            raise ValueError("two parts name one column; name a column once")
        return value

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data: `parse(recipe.to_dict()) == recipe`."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"defenses", "task"})
        last = ("stop", "holdout", "benign", "harmful", "seed")
        listed = [_plain(registry.to_dict(defense)) for defense in self.defenses]
        task = {} if self.task is None else {"task": registry.to_dict(self.task)}
        first = {k: v for k, v in plain.items() if k not in last}
        if self.lora is None or self.lora.adapter is not None:  # an adapter has its own rank and scale
            first["lora"] = _ALL_WEIGHTS if self.lora is None else {"adapter": str(self.lora.adapter)}
        return first | task | {"defenses": listed} | {k: plain[k] for k in last}

    def text(self) -> str:
        """The recipe as YAML."""
        return to_yaml(self.to_dict(), allow_unicode=True)


def read(path: Path | str, sets: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file and apply edits.

    Args:
        path: the file.
        sets: `key=value` edits, such as `kl.weight=0.3` or `train.max_steps=10`.

    Raises:
        RecipeError: the sentence names the file, the key, the value and the nearest known key.
        RequestError: it is a pipe or a device.
    """
    path = Path(path)
    refuse_pipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    plain = from_yaml(text, str(path))
    if not isinstance(plain, dict):
        raise RecipeError(f"{path} holds no keys; a recipe begins with `schema: 1` and `model: ...`.")
    for edit in sets:
        edit_key(plain, edit, _keys())
    return parse(plain, path.parent.absolute(), str(path))


@contextmanager
def named(where: object) -> Iterator[None]:
    """Name a recipe's file in front of errors of its content that are found where the file is not known."""
    try:
        yield
    except RecipeError as error:
        if str(error).startswith(str(where)):
            raise
        raise RecipeError(f"{where}: {error}") from error.__cause__


def values_hash(recipe: Recipe) -> str:
    """SHA-256 of a recipe's values, which comments and the order of keys do not change."""
    return hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()


def parse(plain: Mapping[str, Any], folder: Path | str | None = None, where: str = "recipe") -> Recipe:
    """Check plain data and turn them into a recipe.

    Args:
        plain: keys and values as in YAML.
        folder: relative paths are relative to it and become absolute; None leaves them as they are.
        where: how messages call the data.

    Raises:
        RecipeError: unknown keys or defenses, ill-typed or missing values.
    """
    _refuse_unknown_keys(plain, where)
    defenses, task = read_defenses(plain.get("defenses") or [], where), _task(plain, where)
    try:
        recipe = Recipe.model_validate({**plain, "lora": plain["lora"] or {}, "defenses": (), "task": None})
    except ValidationError as error:
        raise RecipeError(describe(error, where, known={"stop": Stop.model_fields}, meanings=_MEANINGS)) from None
    _check_source(recipe, task, where)
    recipe = recipe.model_copy(update={"defenses": tuple(defenses), "task": task})
    if folder is None:
        return recipe
    with named(where):
        return cast(Recipe, paths.absolute(recipe, Path(folder).absolute()))


def _keys() -> list[str]:
    """The keys that a recipe may have."""
    return [field.alias or name for name, field in Recipe.model_fields.items()]


def _refuse_unknown_keys(plain: Mapping[str, Any], where: str) -> None:
    """Refuse unknown keys, with the key that is meant, and a recipe without `lora:`."""
    known = _keys()
    for key in plain:
        if key not in known:
            raise RecipeError(f"{where} has no key {key!r}{remedy('', str(key), known)}")
    if "lora" not in plain:
        raise RecipeError(f"{where} has no `lora:`; write `lora: {{}}` for the default adapter, or `lora: none`.")
    lora = plain["lora"]
    if lora is not None and lora != _ALL_WEIGHTS and not isinstance(lora, Mapping):
        raise RecipeError(
            f"{where}: lora is {lora!r}; write `lora: {{}}` for the default adapter, `lora: {{r: 16}}` for another, or "
            "`lora: none` to train all weights."
        )
    for key in plain["lora"] if isinstance(plain["lora"], Mapping) else ():
        if key not in Lora.model_fields:
            raise RecipeError(f"{where} has no key 'lora.{key}'{remedy('lora', str(key), Lora.model_fields)}")


def read_defenses(listed: Any, where: str) -> list[Defense]:
    """Read a list of defenses as a recipe has it.

    Args:
        listed: entries such as `{"kl": {"weight": 0.1}}`.
        where: how messages call the list.

    Raises:
        RecipeError: unknown defenses, ill-typed or missing fields.
    """
    if not isinstance(listed, list):
        raise RecipeError(f"{where}: defenses is a list such as `- anchor: {{}}`, not {listed!r}.")
    entries = [_named(entry, f"{where}: a defense is written `- kl: {{weight: 0.3}}`") for entry in listed]
    with named(where):
        return [registry.make(name, fields, f"{where}: defense {name!r}") for name, fields in entries]


def _task(plain: Mapping[str, Any], where: str) -> Task | None:
    """The recipe's task; the default for GRPO on the organism without `data` is word_problems."""
    entry = plain.get("task")
    if entry is None:
        if plain.get("trainer") != "grpo" or plain.get("model") != "organism" or plain.get("data") is not None:
            return None
        entry = "word_problems"
    name, fields = _named(entry, f"{where}: a task is written `task: opswap` or `task: {{opswap: {{tier: 2}}}}`")
    with named(where):
        return registry.task(name, fields, f"{where}: task {name!r}")


def _named(entry: Any, message: str) -> tuple[str, Any]:
    """The name and the fields of an entry: a name alone, or a mapping of one name to its fields."""
    entry = {entry: {}} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or len(entry) != 1 or not isinstance(next(iter(entry)), str):
        raise RecipeError(f"{message}, not {entry!r}.")
    return next(iter(entry.items()))


def _check_source(recipe: Recipe, task: Task | None, where: str) -> None:
    if recipe.trainer == "grpo" and task is None:
        suits = (
            "word_problems is one for the organism" if recipe.model == "organism" else "gsm8k is one for real models"
        )
        raise RecipeError(f"{where}: trainer grpo needs a `task:`, which computes the reward; {suits}.")
    if recipe.data is None and task is None:
        raise RecipeError(f"{where} lacks the key 'data' (or a `task:`, which has rows of its own).")


def _plain(named: dict[str, Any]) -> dict[str, Any]:
    return {k: {f: str(v) if isinstance(v, Path) else v for f, v in values.items()} for k, values in named.items()}
