"""`MeasureClock`: the time that measures may take, and what is shown of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from staytrue.runs.measure_forecast import too_long
from staytrue.utils.console import Progress

_SURE, _HALF_DONE = 2.0, 0.5  # seconds after which a pace is trusted, and the share after which a measure is finished


class TooLongError(Exception):
    """A measure would not end in its time."""


@dataclass
class MeasureClock:
    """Counts the answers of a measure, and stops one that would not end in time, unless it is half done.

    Attributes:
        progress: shows how much is done.
        until: when the budget ends, by `time.monotonic`; None without a budget.
        share: of what is left of the budget when it is first looked at, the part for all measures together.
        reserved: seconds of the budget that are kept for the fewest answers.
    """

    progress: Progress | None = None
    until: float | None = None
    share: float = 1.0
    reserved: float = 0.0
    _deadline: float | None = field(default=None, init=False)  # of all measures
    _total: int = field(default=0, init=False)  # answers of the present measure
    _begun: float = field(default=0.0, init=False)
    _end: float | None = field(default=None, init=False)

    def left(self) -> float:
        """Seconds that measures have left; without end where there is no budget."""
        if self.until is None:
            return math.inf
        now = time.monotonic()
        if self._deadline is None:
            left = self.until - now
            self._deadline = now + min(self.share * left, left - self.reserved)
        return self._deadline - now

    def begin(self, answers: int) -> None:
        """Begin a measure of so many answers.

        Raises:
            TooLongError: no time is left.
        """
        left = self.left()
        self._total, self._begun, self._end = answers, time.monotonic(), self._deadline
        if left <= 0:
            raise TooLongError("no time is left for it.")
        if self.progress is not None:
            self.progress.begin(answers, "answer")

    def count(self, done: int, **metrics: float) -> None:
        """Count the answers that are done; `work` counts parts of unfinished ones too.

        Raises:
            TooLongError: at this pace the measure would not end in time, and less than half is done.
        """
        if self.progress is not None:
            self.progress.step(done, metrics)
        spent, share = time.monotonic() - self._begun, metrics.get("work", done) / max(1, self._total)
        if self._end is not None and 0 < share < _HALF_DONE and spent > _SURE:
            left = self._end - self._begun
            if spent / share > left:
                raise TooLongError(too_long(spent / share, left))

    def lift(self) -> None:
        """Limit no later measure."""
        self.until = self._deadline = None
