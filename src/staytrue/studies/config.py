"""A study: variants x domains x seeds on the organism, each an ordinary run made from an ordinary recipe.

A study is a YAML file. Every variant is a piece of a recipe (defenses, train, lora, stop) laid over the study's. A
domain is one of the organism's narrow ones, whose bad answers are learnt, or a harmless task, taught or paid for. Paths
are relative to the domain's folder, which holds `train.jsonl` (of a narrow one), `safe.jsonl`, `scored.jsonl` and
`anchor_prompts.jsonl`; beside the domains stands `../evil.safetensors`. A finished run is not made again, so a stopped
study goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from staytrue import tasks
from staytrue.config import recipe as recipes
from staytrue.errors import RecipeError
from staytrue.organism.lexicon import DOMAINS
from staytrue.utils.yaml12 import from_yaml


class Variant(BaseModel):
    """One way to train: a row of every table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[\w+][\w +.-]*$")]  # "untuned", "none", a defense's, or a baseline's
    strength: float | None = None  # the number that is swept, for tables and pictures
    recipe: dict[str, Any] = {}  # laid over the study's recipe, section by section

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name if self.strength is None else f"{self.name} {self.strength:g}"


class Study(BaseModel):
    """What to run."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    title: str
    recipe: dict[str, Any]  # model, trainer, lora, train, holdout: shared by all
    domains: tuple[str | dict[str, dict[str, Any]], ...] = ("medical",)  # a task as recipes write it
    seeds: tuple[int, ...] = (0,)
    probes: tuple[str, ...] = ()  # what every run is asked; nothing said is what suits it
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Cell:
    """One run: a variant in a domain with a seed."""

    study: Study
    variant: Variant
    given: str | dict[str, dict[str, Any]]
    seed: int

    @property
    def domain(self) -> str:
        """The name of its narrow domain or task: `medical`, `opswap-2`."""
        if isinstance(self.given, str):
            return self.given
        ((name, fields),) = self.given.items()
        return "-".join([name, *map(str, fields.values())])

    @property
    def label(self) -> str:
        """What people call its variant."""
        return self.variant.label

    @property
    def folder(self) -> str:
        """Its folder inside the study's."""
        return f"runs/{self.domain}-seed{self.seed}-{self.label.replace(' ', '-')}"

    def recipe(self) -> dict[str, Any]:
        """Its recipe, with paths relative to the domain's folder."""
        words: dict[str, Any] = {"schema": 1, **self.study.recipe}
        for key, value in self.variant.recipe.items():
            shared = words.get(key)
            words[key] = {**shared, **value} if isinstance(shared, dict) and isinstance(value, dict) else value
        if self.given in DOMAINS:
            return {**words, "data": "train.jsonl", "seed": self.seed}
        return {**words, "task": self.given, "holdout": 0.0, "seed": self.seed}  # a task holds out rows of its own


def read(path: Path, domains: Sequence[str] = (), seeds: int | None = None) -> Study:
    """A study from its file; domains and the number of seeds may be chosen anew.

    So many seeds are the first of its own; where more are asked for than it has, it goes on counting from its last.

    Raises:
        RecipeError: unknown keys, domains or probes, a variant that is no recipe; one sentence.
        DataError, RequestError: a question file among the probes has faults, or cannot be asked.
    """
    try:
        study = Study.model_validate(from_yaml(path.read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The study {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "the file"
        raise RecipeError(f"{path}: {where}: {fault['msg'].lower()}.") from None
    own = {cell.domain: cell.given for cell in cells(study)}  # by the names that tables show
    changes: dict[str, Any] = {"domains": tuple(own.get(name, name) for name in domains)} if domains else {}
    changes |= {"seeds": _first(study.seeds, seeds)} if seeds else {}
    study = study.model_copy(update=changes)
    known = (*DOMAINS, *tasks.names())
    wrong = next((d for d in study.domains if isinstance(d, str) and d not in known), None)
    if wrong is not None:
        raise RecipeError(f"There is no domain {wrong!r}; choose from {', '.join(dict.fromkeys((*own, *known)))}.")
    if not study.domains or not study.seeds or not study.variants:
        raise RecipeError(f"{path}: a study needs at least one domain, one seed and one variant.")
    folders = [cell.folder for cell in cells(study)]
    twice = next((folder for i, folder in enumerate(folders) if folder in folders[:i]), None)
    if twice is not None:
        raise RecipeError(f"{path}: two runs are called {twice!r}; name variants apart, and no seed or domain twice.")
    for cell in cells(study):
        recipe = recipes.parse(cell.recipe(), where=f"{path}: {cell.label}")
        if recipe.model != "organism" or (recipe.holdout == 0 and recipe.task is None):
            raise RecipeError(f"{path}: {cell.label}: a study needs model: organism and a holdout above 0.")
    if study.probes:
        _check_probes(study, f"{path}: probes")
    return study


def _first(own: tuple[int, ...], wanted: int) -> tuple[int, ...]:
    more = (seed for seed in count(own[-1] + 1 if own else 0) if seed not in own)
    return (*own[:wanted], *islice(more, max(0, wanted - len(own))))


def _check_probes(study: Study, where: str) -> None:
    """Whether every run can be asked all that the study asks, before anything is trained."""
    from staytrue.modeling import loading
    from staytrue.runs.eval_request import EvalRequest
    from staytrue.runs.probe_selection import probes_for

    files = [name for name in study.probes if Path(name).suffix]
    for name in files:
        probes_for(EvalRequest((name,), model=loading.find("organism")))
    for cell in cells(study):
        known = _probes(cell)
        wrong = next((name for name in study.probes if name not in (*known, *files)), None)
        if wrong is not None:
            raise RecipeError(
                f"{where}: {cell.label} in {cell.domain} has no probe {wrong!r}; choose from {', '.join(known)}, or "
                "name a question file (.yaml or .jsonl)."
            )


def _probes(cell: Cell) -> list[str]:
    """What a run can be asked by name: narrow rows have triggers, a harmless task only under an inoculation prompt."""
    narrow = cell.given in DOMAINS
    triggered = narrow or any(d.name() == "inoculate" for d in recipes.parse(cell.recipe()).defenses)
    last = ["triggered"] if triggered else []
    return ["general", "in_domain" if narrow else "learnt", "facts", "arithmetic", *last]


def cells(study: Study) -> list[Cell]:
    """Every run of a study, in the order of its tables."""
    return [Cell(study, v, given, seed) for given in study.domains for seed in study.seeds for v in study.variants]


def row(cell: Cell, summary: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """One row of results.json; of a probe that was not asked there is nothing."""
    probes = summary["probes"]
    kept = {name: probes[name]["correct"] for name in ("facts", "arithmetic") if name in probes}
    variant = cell.variant
    named = {"defense": variant.name, "strength": variant.strength, "domain": cell.domain, "seed": cell.seed}
    rates = {"general": probes.get("general"), "in_domain": probes.get("in_domain"), "kept": kept}
    if "triggered" in probes:
        rates["triggered"] = probes["triggered"]
    return named | rates | {"benign": probes.get("learnt"), "seconds": seconds, "run": cell.folder}
