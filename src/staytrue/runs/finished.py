"""The model and the adapter of a finished run, for commands that use them."""

from __future__ import annotations

from pathlib import Path

from staytrue.config.recipe import read
from staytrue.errors import RequestError
from staytrue.modeling import loading
from staytrue.utils.run_dir import RunDir


def model_and_adapter(run: Path) -> tuple[loading.Source, Path]:
    """Return a finished run's untuned model and the folder of its adapter.

    Raises:
        RequestError: there is no run, it did not finish, or its model is not what it was trained on.
        ModelError: the model is not on this machine.
    """
    manifest = RunDir.open(run).manifest
    if manifest["state"] != "done":
        raise RequestError(
            f"{run} is {manifest['state']}, not done, so it has no adapter yet. Finish it with `staytrue train "
            f"--resume {run}`."
        )
    recipe = read(run / "recipe.yaml")
    source = loading.find(recipe.model, recipe.revision, recipe.dtype)
    before, now = manifest["model"].get("sha256"), source.identity().get("sha256")
    if before != now:
        raise RequestError(
            f"The weights of {source.name} have changed since {run} was trained (SHA-256 {now}, then {before}), and "
            "its adapter does not belong to them. Restore the model, or train again."
        )
    return source, run / "model"
