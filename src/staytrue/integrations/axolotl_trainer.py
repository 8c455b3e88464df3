"""axolotl's trainer for supervised fine-tuning with defenses: `training.trainer_mixin` in front of its class."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from axolotl.core.trainers import AxolotlTrainer

from staytrue.step import SOURCES, Marks
from staytrue.training.idle_penalties import refuse_absent_sources
from staytrue.training.known_tokens import refuse_unknown_rows
from staytrue.training.row_tracking import marks_of_batch
from staytrue.training.trainer_mixin import Guarded

if TYPE_CHECKING:
    from staytrue.integrations.axolotl import Section

_log = logging.getLogger(__name__)


def guarded(section: Section) -> type[Any]:
    """Return axolotl's trainer class with the defenses of a configuration.

    The labels are axolotl's: a position is scored where its next label is not -100. The loss and its head are axolotl's
    too.
    """

    class GuardedAxolotlTrainer(Guarded, AxolotlTrainer):  # type: ignore[misc]
        """axolotl's trainer, with defenses."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, defenses=section.defenses, reference=section.reference, **kwargs)

        @property
        def _tokenizer(self) -> Any:
            return getattr(self.processing_class, "tokenizer", self.processing_class)

        def _settle(self) -> None:
            refuse_unknown_rows(self)
            refuse_absent_sources(self.guard.defenses, SOURCES[:1])
            self.guard.max_length = section.max_length

        def _keeps_its_head(self) -> str | None:
            return "the loss is axolotl's"

        def _head_of_trl(self) -> tuple[float, Any]:
            return 1.0, None

        def _marks(self, batch: dict[str, Any]) -> Marks:
            return marks_of_batch(batch)

        def train(self, *args: Any, **kwargs: Any) -> Any:
            """Train, and log what the defenses changed afterwards."""
            output = super().train(*args, **kwargs)
            if self.projected:
                _log.info("staytrue changed the trained weights: %s", self.projected)
            return output

    return GuardedAxolotlTrainer
