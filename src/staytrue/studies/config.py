"""A study: variants x domains x seeds on the organism, each an ordinary run of an ordinary recipe.

A study is a YAML file. The recipe of a run is the study's recipe, updated by its variant section by section (defenses,
train, lora, stop). A domain is one of the organism's narrow domains, with bad answers as training data, or a harmless
task, for SFT or RL. Paths are relative to the domain's folder. It contains `train.jsonl` (narrow domains only),
`safe.jsonl`, `scored.jsonl` and `anchor_prompts.jsonl`; the folder above it contains `evil.safetensors`.
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
from staytrue.config import trainer_args
from staytrue.config.lora import Number, Whole
from staytrue.errors import RecipeError
from staytrue.evals.results.measures import DRIFT, LEAK, PAIRS, is_measure
from staytrue.organism.lexicon import DOMAINS
from staytrue.report.rows import from_summary
from staytrue.utils.files import refuse_pipe
from staytrue.utils.validation import describe, nearest
from staytrue.utils.yaml12 import from_yaml


class Variant(BaseModel):
    """One way to train: a row of every table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^[\w+][\w +.-]*$")]  # "untuned", "none", a defense or a baseline
    strength: Annotated[Number, Field(allow_inf_nan=False)] | None = None  # the swept value, for tables and pictures
    recipe: dict[str, Any] = {}  # updates the study's recipe, section by section

    @property
    def label(self) -> str:
        """The name with the strength, as in `kl 0.3`."""
        return self.name if self.strength is None else f"{self.name} {self.strength:g}"


class Study(BaseModel):
    """The content of a study file."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    title: str
    recipe: dict[str, Any]  # model, trainer, lora, train, holdout: shared by all runs
    domains: tuple[str | dict[str, dict[str, Any]], ...] = ("medical",)  # narrow domains, or tasks as in recipes
    seeds: tuple[Whole, ...] = (0,)
    probes: tuple[str, ...] = ()  # the probes of every run; () uses each run's default probes
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Cell:
    """One run: a variant in a domain with a seed."""

    study: Study
    variant: Variant
    source: str | dict[str, dict[str, Any]]  # a narrow domain, or a task as in recipes
    seed: int

    @property
    def domain(self) -> str:
        """The name of the narrow domain or task, as in `medical` or `opswap-2`."""
        if isinstance(self.source, str):
            return self.source
        ((name, fields),) = self.source.items()
        return "-".join([name, *map(str, fields.values())])

    @property
    def label(self) -> str:
        """The label of the variant."""
        return self.variant.label

    @property
    def folder(self) -> str:
        """The run's folder, relative to the study's folder."""
        return f"runs/{self.domain}-seed{self.seed}-{self.label.replace(' ', '-')}"

    def recipe(self) -> dict[str, Any]:
        """Return the recipe as plain data, with paths relative to the domain's folder."""
        recipe: dict[str, Any] = {"schema": 1, **self.study.recipe}
        for key, value in self.variant.recipe.items():
            shared = recipe.get(key)
            recipe[key] = {**shared, **value} if isinstance(shared, dict) and isinstance(value, dict) else value
        if self.source in DOMAINS:
            return {**recipe, "data": "train.jsonl", "seed": self.seed}
        return {**recipe, "task": self.source, "holdout": 0.0, "seed": self.seed}  # a task has its own held-out rows


def read(path: Path, domains: Sequence[str] = (), seeds: int | None = None) -> Study:
    """Read and check a study file.

    Args:
        path: the YAML file.
        domains: names that replace the study's domains; () keeps them.
        seeds: the number of seeds. The study's own come first, then numbers that follow its last. None keeps its own.

    Raises:
        RecipeError: a key, domain or probe is unknown, or a variant gives an invalid recipe.
        DataError, RequestError: a question file among the probes is invalid.
    """
    refuse_pipe(path)
    try:
        study = Study.model_validate(from_yaml(path.read_text(encoding="utf-8"), str(path)))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The study {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    except ValidationError as error:
        keys = [f.alias or name for name, f in Study.model_fields.items()]
        raise RecipeError(describe(error, str(path), known={"": keys, "variants": Variant.model_fields})) from None
    known = (*DOMAINS, *tasks.names())
    named = [cell for cell in cells(study) if not isinstance(cell.source, str) or cell.source in known]
    by_name = {cell.domain: cell.source for cell in named}  # by the names in tables
    changes: dict[str, Any] = {"domains": tuple(by_name.get(name, name) for name in domains)} if domains else {}
    changes |= {"seeds": _first_seeds(study.seeds, seeds)} if seeds else {}
    study = study.model_copy(update=changes)
    wrong = next((d for d in study.domains if isinstance(d, str) and d not in known), None)
    if wrong is not None:
        where = "--domains" if wrong in domains else f"{path}: domains"
        raise RecipeError(f"{where}: there is no domain {wrong!r}{nearest(wrong, dict.fromkeys((*by_name, *known)))}")
    _check_cells(study, path)
    if study.probes:
        _check_probes(study, f"{path}: probes")
    return study


def _first_seeds(seeds: tuple[int, ...], number: int) -> tuple[int, ...]:
    more = (seed for seed in count(seeds[-1] + 1 if seeds else 0) if seed not in seeds)
    return (*seeds[:number], *islice(more, max(0, number - len(seeds))))


def _check_cells(study: Study, path: Path) -> None:
    """Refuse a study without runs, with two runs of one name, or with a run of an invalid recipe."""
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


def check_settings(study: Study, path: Path) -> None:
    """Check the trainer's settings of each run; apart from `read`, because trl takes seconds to load.

    Raises:
        RecipeError: the sentence names the file, the variant and the setting.
    """
    for cell in cells(study):
        recipe = recipes.parse(cell.recipe())
        with recipes.named(f"{path}: {cell.label}"):
            trainer_args.checked(recipe.train, recipe.trainer)


def _check_probes(study: Study, where: str) -> None:
    """Refuse probes that a run of the study does not have, before any training."""
    from staytrue.modeling import model_source
    from staytrue.runs.eval_request import EvalRequest
    from staytrue.runs.measure_selection import pairs_of
    from staytrue.runs.probe_selection import probes_for

    measures = [name for name in study.probes if is_measure(name)]
    files = [name for name in study.probes if Path(name).suffix and name not in measures]
    for name in measures:
        if name.startswith(PAIRS):
            pairs_of(name, organism=True)
    for name in files:
        probes_for(EvalRequest((name,), model=model_source.find("organism")))
    for cell in cells(study):
        known = [*_probes(cell), PAIRS, DRIFT, *([LEAK] if cell.source in DOMAINS else [])]  # a task has no rows' file
        pairs = [name for name in measures if name.startswith(PAIRS)]
        wrong = next((name for name in study.probes if name not in (*known, *files, *pairs)), None)
        if wrong is not None:
            raise RecipeError(
                f"{where}: {cell.label} in {cell.domain} has no probe {wrong!r}; choose from {', '.join(known)}, or "
                "name a question file (.yaml or .jsonl)."
            )


def _probes(cell: Cell) -> list[str]:
    """Return the shipped probes of a run. Narrow rows have triggers; a harmless task has them only with inoculation."""
    narrow = cell.source in DOMAINS
    triggered = narrow or any(d.name() == "inoculate" for d in recipes.parse(cell.recipe()).defenses)
    last = ["triggered"] if triggered else []
    return ["general", "in_domain" if narrow else "learnt", "facts", "arithmetic", *last]


def cells(study: Study) -> list[Cell]:
    """List all runs of a study, in the order of its tables."""
    return [Cell(study, v, source, seed) for source in study.domains for seed in study.seeds for v in study.variants]


def row(cell: Cell, summary: Mapping[str, Any], seconds: float | None) -> dict[str, Any]:
    """Build one row of results.json."""
    variant = cell.variant
    run = {"defense": variant.name, "strength": variant.strength, "domain": cell.domain, "seed": cell.seed}
    return from_summary(run, summary, seconds, cell.folder)
