"""`renew_card` writes a run's model card again after an evaluation; a fault of it does not end the evaluation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from staytrue.config.recipe import read
from staytrue.errors import StaytrueWarning
from staytrue.runs.model_card import write_card
from staytrue.utils.run_dir import RunDir
from staytrue.utils.validation import in_one_line


def renew_card(run: Path, evaluation: Path, summary: dict[str, Any], *, untuned: bool = False) -> None:
    """Write a run's model card again with its evaluation; where that fails, a warning gives the reason.

    Args:
        run: the run folder.
        evaluation: the folder of the evaluation; only RUN/eval is on the card.
        summary: of the evaluation.
        untuned: whether the model before training was evaluated, which is not on the card.
    """
    if untuned or evaluation != run / "eval":
        return
    try:
        write_card(RunDir.open(run, "model", "data", "rows", "versions"), read(run / "recipe.yaml"), summary)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # of a file edited by hand
        why = error.strerror if isinstance(error, OSError) and error.strerror else in_one_line(error)
        warnings.warn(
            f"The model card {run / 'model' / 'README.md'} lacks this evaluation, since it could not be written again: "
            f"{why.rstrip('.')}. Mend that, and give the same command again; all answers are stored.",
            StaytrueWarning,
            stacklevel=3,
        )
