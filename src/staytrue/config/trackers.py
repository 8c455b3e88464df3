"""`refuse_trackers` checks `train.report_to`: every tracker is named, known and installed."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from staytrue.errors import RecipeError

_OF_THEIR_NAME = (  # trackers whose package has the name that `report_to` takes
    *("tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "clearml", "swanlab", "dvclive", "codecarbon"),
    *("neptune", "dagshub"),
)
_SHOWN = "none, tensorboard, wandb or trackio"


def refuse_trackers(value: Any) -> None:
    """Refuse a `train.report_to` that names no tracker, an unknown one, or one that is not installed.

    Args:
        value: the name of a tracker, a list of names, or "none".

    Raises:
        RecipeError: the value, and what to write or install.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in value if isinstance(value, list) else [value]:
        if name in ("none", None):
            continue
        if name == "all":
            raise RecipeError(
                "train.report_to is 'all', which would send the run's numbers to every tracker that is installed here. "
                f"Name the trackers: {_SHOWN}, or a list of them."
            )
        if "," in str(name):
            raise RecipeError(f"train.report_to: {name!r} is one text; write a list, such as [tensorboard, wandb].")
        if name not in INTEGRATION_TO_CALLBACK:
            near = get_close_matches(str(name), [*INTEGRATION_TO_CALLBACK], 1)
            hint = f"did you mean {near[0]!r}?" if near else f"write {_SHOWN}, or another that transformers knows."
            raise RecipeError(f"train.report_to: {name!r} is no tracker; {hint}")
        if name in _OF_THEIR_NAME and find_spec(name) is None:
            raise RecipeError(
                f"train.report_to: {name} is not installed. Install it with `pip install {name}`, or take report_to "
                "out; metrics.jsonl in the run's folder has the same numbers."
            )
