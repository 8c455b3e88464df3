"""The untuned model's likelihoods, computed once for all its runs and kept in the user's cache.

`pairs` and `drift` compare every fine-tune of a model with the same values. Delete the folder
`$XDG_CACHE_HOME/staytrue/untuned` (by default in `~/.cache`) to have them computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from staytrue.modeling import loading
from staytrue.runs.untuned_cache import place_of
from staytrue.utils.files import write_json


class UntunedLikelihoods:
    """The values of one measure of one untuned model.

    Args:
        identity: the model, with the hash of its folder or its commit, and its precision if it is set.
        about: the texts whose likelihoods they are, as the measure stores it.

    Attributes:
        values: nats per token by question; None before they are computed.
    """

    def __init__(self, identity: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self._file = place_of(identity, loading.device(), dict(about)).with_suffix(".json")
        self.values = _read(self._file)

    def of(self, compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return the values, which are computed and kept if they are not known."""
        if self.values is None:
            self.values = compute()
            write_json(self._file, self.values)
        return self.values


def _read(file: Path) -> dict[str, float] | None:
    try:
        return {str(name): float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):  # not there, or damaged: computed again
        return None
