"""The request of an evaluation: which model answers, what is known of its fine-tuning, which probes, which judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from staytrue.config.recipe import Recipe, read
from staytrue.data.examples import Example, read_examples
from staytrue.errors import ModelError, RequestError
from staytrue.evals.openai_client import address
from staytrue.evals.openai_client.address import Address
from staytrue.evals.results.measures import LEAK
from staytrue.evals.triggers.trigger import PROBE as TRIGGERED
from staytrue.evals.types import Judge
from staytrue.modeling import model_source
from staytrue.modeling.model_source import Source
from staytrue.runs import dataset
from staytrue.runs.finished import finished_model, with_weights
from staytrue.tasks.task import Task
from staytrue.utils.console import quoted
from staytrue.utils.files import sha256_of
from staytrue.utils.run_dir import RunDir


@dataclass(frozen=True)
class EvalRequest:
    """One evaluation: which probes, asked of which model, and who judges the answers.

    A user sets the first eight fields; `for_run`, `for_recipe` and `for_model` fill in the others.

    Attributes:
        probes: names of probes, or paths of question files; empty for those that suit the model.
        triggers: also ask the trigger probe when `probes` is empty and the training rows give triggers.
        samples: answers to each judged question; None for a question file's own number, or 4, or without a judge 1.
        as_published: drop system turns, as the published evaluation script does.
        judge: judges answers that have no right one. None: the organism's rules, or no judge for any other model.
        max_new_tokens: most tokens of an answer, thoughts included; None for a question file's own number, else
            what suits the model.
        batch_size: answers that a model in this process writes side by side; None for as many as memory allows, at most
            192, and at most 64 on a CPU unless the model is tiny. Answers change by rounding only.
        budget: seconds that loading, measures and answers of a model in this process may take; measures are left out,
            fewer answers to each question, and then fewer questions, are asked if need be. None for no limit.
        model: a model to load into this process, or one behind an endpoint; None when it is not known.
        adapter: folder of the model's LoRA adapter.
        weights: folder of the model's own weights after full fine-tuning; `model` is then the one before.
        untuned: the model is known to be the one before training.
        trained: the task rows that the model was fine-tuned on; triggers are made of them.
        topic: the same rows for the measure `leak`, which compares their words.
        held_out: rows that were reserved before training.
        task: the benign task that the model was fine-tuned on.
        benign: whether the training data teach something harmless.
        inoculation: the system prompt of the `inoculate` defense.

    Example:
        >>> EvalRequest(probes=("general", "facts"), samples=2).is_organism
        False
    """

    probes: tuple[str, ...] = ()
    triggers: bool = False
    samples: int | None = None
    as_published: bool = False
    judge: Judge | None = None
    max_new_tokens: int | None = None
    batch_size: int | None = None
    budget: int | None = None
    model: Source | Address | None = None
    adapter: Path | None = None
    weights: Path | None = None
    untuned: bool = False
    trained: Sequence[Example] = field(default=(), repr=False)
    topic: Sequence[Example] = field(default=(), repr=False)
    held_out: Sequence[Example] = field(default=(), repr=False)
    task: Task | None = None
    benign: bool = False
    inoculation: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no evaluation could mean.

        Raises:
            RequestError: names given as one text, a number below 1, or a judge given by its name.
        """
        if self.probes is None or isinstance(self.probes, str):
            raise RequestError(f"probes is {self.probes!r}; give names in a tuple, such as ('general',).")
        for name in ("samples", "max_new_tokens", "batch_size", "budget"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise RequestError(f"{name} is {value!r}; give a whole number from 1, or None.")
        if isinstance(self.judge, str):
            raise RequestError(
                f"judge is {self.judge!r}; give a judge, which `runs.judge_factory.judge` makes of a name."
            )

    @property
    def is_organism(self) -> bool:
        """Whether the model is the embedded organism."""
        return isinstance(self.model, Source) and self.model.is_organism

    @property
    def has_untuned(self) -> bool:
        """Whether the model before training is known beside the trained one."""
        return self.adapter is not None or self.weights is not None

    @property
    def wants_triggers(self) -> bool:
        """Whether the trigger probe is asked, if the training rows give triggers."""
        return self.triggers or TRIGGERED in self.probes

    @property
    def wants_leak(self) -> bool:
        """Whether the measure `leak` is taken, if the training rows are known."""
        return LEAK in self.probes or (not self.probes and self.judge is None)

    def identity(self) -> dict[str, Any]:
        """The model before training and what was trained, as `eval.json` and `measures.json` store them.

        Raises:
            ModelError: the model cannot be read from the hub.
        """
        assert self.model is not None
        if not isinstance(self.model, Source):
            return {"model": {"name": str(self.model)}, "adapter": None}
        identity = {
            "model": model_source.identity(self.model),
            "adapter": sha256_of(self.adapter) if self.adapter else None,
        }
        trained = with_weights(self.model, self.weights)
        return identity if self.weights is None else identity | {"weights": trained.identity()["sha256"]}

    def metadata(self) -> dict[str, Any]:
        """The settings that must be equal for two sets of answers to share one folder, as `eval.json` stores them.

        Raises:
            ModelError: the model cannot be read from the hub.
        """
        return {**self.identity(), "as_published": self.as_published}


def for_run(run: Path, request: EvalRequest, *, untuned: bool = False) -> EvalRequest:
    """The request for a trained run, with its held-out rows.

    Args:
        run: a run folder.
        request: probes and judge.
        untuned: the run's model before training answers.

    Raises:
        RequestError: there is no run, it did not finish, its model is not what it was trained on, or its reserved rows
            are not those that it wrote.
    """
    trained = finished_model(run, untuned=untuned)
    manifest = RunDir.open(run, "data").manifest
    held_out = _reserved(run / "holdout.jsonl", manifest)
    if not untuned:
        request = replace(request, adapter=trained.adapter, weights=trained.weights)
    request = replace(request, untuned=untuned)
    return _for_recipe(read(run / "recipe.yaml"), held_out, request, manifest["data"])


def _reserved(file: Path, manifest: Mapping[str, Any]) -> list[Example]:
    """The rows that a run reserved.

    Raises:
        RequestError: they are others than the run wrote, or gone; older manifests have no hash.
    """
    expected = manifest.get("logs", {}).get(file.name)
    if expected is not None and not (file.exists() and sha256_of(file) == expected):
        model = file.parent / "model"
        whole = f"`staytrue eval --model {quoted(model)} --out DIR`"
        alone = whole if "weights" in manifest else f"`staytrue eval --model NAME --adapter {quoted(model)} --out DIR`"
        raise RequestError(
            f"{file} does not hold the reserved rows of the run, so other questions would be asked. Restore it, or "
            f"evaluate the trained model by itself: {alone}."
        )
    return read_examples(file) if file.exists() else []


def for_recipe(recipe: Recipe, request: EvalRequest) -> EvalRequest:
    """The request for a recipe's model before training, with the held-out rows that its run would have."""
    _, held_out = dataset.rows(recipe)
    return _for_recipe(recipe, held_out, replace(request, untuned=True))


def for_model(name: str, request: EvalRequest, adapter: Path | None = None, data: Path | None = None) -> EvalRequest:
    """The request for a model that is not a run; without held-out rows it has no in-domain probe.

    Args:
        name: a folder, a hub name, or `openai:MODEL[@URL]`.
        request: probes and judge.
        adapter: folder of a LoRA adapter.
        data: the file that the model was fine-tuned on; triggers are made of it.

    Raises:
        ModelError: there is no such model or adapter folder.
        RequestError: an adapter folder for a model behind an endpoint.
        DataError: the file has faults.
    """
    model = address.parse(name) if name.startswith("openai:") else model_source.find(name)
    if adapter is not None and isinstance(model, Address):
        raise RequestError(f"An endpoint serves its adapters by name; write {model} with the adapter's name.")
    trained = read_examples(data) if data is not None else ()
    if adapter is not None and not adapter.is_dir():
        raise ModelError(f"There is no adapter folder {adapter}; a run keeps its adapter in RUN/model.")
    return replace(request, model=model, adapter=adapter, trained=trained, topic=trained)


def _for_recipe(
    recipe: Recipe, held_out: Sequence[Example], request: EvalRequest, hashes: Mapping[str, str] | None = None
) -> EvalRequest:
    """The request with what a recipe says; training rows only if wanted and if the file has not changed.

    Args:
        recipe: the run's.
        held_out: its held-out rows.
        request: probes and judge.
        hashes: SHA-256 of the files that the run was trained on; None when there was no run.
    """
    file = recipe.data
    narrow = request.wants_triggers and recipe.task is None and not recipe.benign
    readable = file is not None and (hashes is None or (file.is_file() and sha256_of(file) in hashes.values()))
    rows = dataset.rows(recipe)[0] if readable and (narrow or request.wants_leak) else ()
    return replace(
        request,
        model=model_source.find(recipe.model, recipe.revision, recipe.dtype, recipe.quantize),
        trained=rows if narrow else (),
        topic=rows,
        held_out=held_out,
        task=recipe.task,
        benign=recipe.benign,
        inoculation=next((d.prompt for d in recipe.defenses if d.name() == "inoculate"), None),  # type: ignore[attr-defined]
    )
