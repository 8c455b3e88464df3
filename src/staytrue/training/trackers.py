"""Experiment trackers (TensorBoard, wandb, trackio, ...) receive the defenses' numbers under names of their own.

transformers' callbacks put `train/` before what a trainer logs, so `train/kl` could be anything. Here a tracker has
`train/penalty/kl` (as the defense measures it) and `train/weighted_penalty/kl` (its part of the loss), beside
`train/task_loss`; the loss is the task's loss plus the weighted penalties. `metrics.jsonl` keeps its shorter names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

PENALTY, WEIGHTED = "penalty/", "weighted_penalty/"


class Trackers:
    """The trackers among a trainer's callbacks.

    Args:
        callbacks: of the trainer.
        labels: of the defenses.

    Attributes:
        weighted: each defense's mean weighted penalty in the loss since the last log line.
    """

    def __init__(self, callbacks: Sequence[Any], labels: Collection[str]) -> None:
        self.weighted: dict[str, float] = {}
        self._labels = labels
        self._trackers: list[Any] = [
            part for part in callbacks if isinstance(part, tuple(INTEGRATION_TO_CALLBACK.values()))
        ]
        for tracker in self._trackers:
            tracker.on_log = self._with_names(tracker.on_log)

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def _with_names(self, send: Any) -> Any:
        def on_log(args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> Any:
            return send(args, state, control, logs=named(logs or {}, self._labels, self.weighted), **kwargs)

        return on_log


def named(logs: Mapping[str, Any], labels: Collection[str], weighted: Mapping[str, float]) -> dict[str, Any]:
    """What a trainer logs, with the defenses' numbers under a tracker's names.

    Args:
        logs: as the trainer logs them.
        labels: of the defenses.
        weighted: each defense's part of the loss; only added where `logs` has the loss.

    >>> named({"loss": 0.5, "kl": 0.2, "task_loss": 0.4}, ["kl"], {"kl": 0.1})
    {'loss': 0.5, 'penalty/kl': 0.2, 'task_loss': 0.4, 'weighted_penalty/kl': 0.1}
    """
    own = {PENALTY + name if name.split("/")[0] in labels else name: value for name, value in logs.items()}
    return own | ({WEIGHTED + label: value for label, value in weighted.items()} if "loss" in logs else {})
