"""The model of a finished run, for commands that use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from staytrue.config.recipe import read
from staytrue.errors import RequestError
from staytrue.modeling import model_source
from staytrue.modeling.model_folder import check_model_folder
from staytrue.utils.console import quoted
from staytrue.utils.run_dir import RunDir

_OF_ALL_STEPS = ("TrainingError: No trained weight moved", "TrainingError: Training diverged")  # see training.outcome


@dataclass(frozen=True)
class FinishedModel:
    """The model of a finished run: an adapter on the untuned model, or whole weights of its own.

    Attributes:
        untuned: the model before training.
        adapter: the folder of the adapter; None where all weights were trained.
        weights: the folder of the whole trained model; None where an adapter was trained.
    """

    untuned: model_source.Source
    adapter: Path | None = None
    weights: Path | None = None

    @property
    def place(self) -> Path:
        """The folder of what was trained."""
        place = self.adapter or self.weights
        assert place is not None
        return place


def with_weights(source: model_source.Source, weights: Path | None) -> model_source.Source:
    """Return the source of a model under the same name, with its weights from another folder; None changes nothing."""
    return source if weights is None else replace(source, place=str(weights), revision=None)


def finished_model(run: Path, *, untuned: bool = False) -> FinishedModel:
    """Return the model of a finished run.

    Args:
        run: its folder.
        untuned: only the model before training is needed.

    Raises:
        RequestError: there is no run, it did not finish, what it trained is gone, or its model is not what it was
            trained on.
        ModelError: the model is not on this machine.
    """
    manifest = RunDir.open(run, "model").manifest
    if manifest["state"] != "done":
        raise RequestError(
            f"{run} is {manifest['state']}, not done, so it has no trained model yet. {way_to_finish(run, manifest)}"
        )
    recipe = read(run / "recipe.yaml")
    source = model_source.find(recipe.model, recipe.revision, recipe.dtype, recipe.quantize)
    before, now = manifest["model"].get("sha256"), source.identity().get("sha256")
    if before != now:
        raise RequestError(
            f"The weights of {source.name} have changed since {run} was trained (SHA-256 {now}, then {before}), and "
            "what it trained does not belong to them. Restore the model, or train again."
        )
    trained = "adapter_model.safetensors" if recipe.lora is not None else ""
    if not untuned and not (run / "model" / trained).exists():
        raise RequestError(
            f"{run / 'model' / trained} is missing, which the run trained. Restore it, or train again with another "
            "--out."
        )
    if recipe.lora is not None:
        return FinishedModel(source, adapter=run / "model")
    if not untuned:
        check_model_folder(run / "model")
    return FinishedModel(source, weights=run / "model")


def fails_again(manifest: Mapping[str, Any]) -> bool:
    """Whether a failed run would fail in the same way if it were resumed, since it would make the same steps."""
    return manifest["state"] == "failed" and str(manifest.get("reason")).startswith(_OF_ALL_STEPS)


def way_to_finish(run: Path, manifest: Mapping[str, Any]) -> str:
    """The way to a finished run, in a sentence, for a run that is not done."""
    if fails_again(manifest):
        return "Resumed, it would fail in the same way: train again with other settings and another --out."
    return f"Finish it with `staytrue train --resume {quoted(run)}`."


def stopped_early(stop: Mapping[str, int]) -> str:
    """Say at which step training stopped and whose weights it has, or that nothing was trained."""
    at, kept = stop["at_step"], stop["weights_of_step"]
    if kept == 0:
        return (
            f"Nothing was trained: the first check of `stop`, after step {at}, failed, so the weights are those before "
            "training."
        )
    return f"Training stopped early, after step {at}; the weights are those of step {kept}."
