"""`StepCost`: what a step of a batch costs, and all steps ahead, while answers end and others take their places.

`Pace` compares the time that the last steps took with what they should have cost.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_REMEMBERED = 0.98  # a step counts by this factor less with each later one, so that about the last fifty count


@dataclass(frozen=True)
class StepCost:
    """The cost of a step, which writes one token of each answer: in seconds, or in any unit where nothing was timed.

    Attributes:
        step: of a step, whatever the number of its answers.
        token: for each answer in it.
        attend: for each answer in it and each token of the longest one, with its prompt.
        read: of a token of a prompt, which is read among many.
    """

    step: float
    token: float
    attend: float
    read: float

    def of(self, answers: int, longest: float) -> float:
        """The cost of one step of so many answers."""
        return self.step + answers * (self.token + self.attend * longest)

    def ahead(
        self,
        running: Sequence[tuple[float, float]],
        waiting: Sequence[float],
        places: int,
        prompt: float,
        refilled: bool = True,
    ) -> float:
        """The cost of all steps until the last answer ends; waiting answers begin in their order.

        Args:
            running: of each answer in writing, the tokens that it has and those that it will still take.
            waiting: the tokens of each answer that has not begun.
            places: how many answers are written side by side.
            prompt: tokens of a prompt.
            refilled: whether an answer begins as soon as a place is free; if not, when all places are.
        """
        queue, cost, now = deque(waiting), 0.0, 0.0
        ends = [still for _, still in running]  # the step at which each answer ends
        begun = [
            (-written, still) for written, still in running
        ]  # when each began, and ends; the oldest is the longest
        heapq.heapify(ends)
        heapq.heapify(begun)
        while queue or ends:
            free = places - len(ends) if refilled or not ends else 0
            for _ in range(min(free, len(queue))):
                end = now + queue.popleft()
                heapq.heappush(ends, end)
                heapq.heappush(begun, (now, end))
            while len(begun) > 1 and begun[0][1] <= now:
                heapq.heappop(begun)
            end = heapq.heappop(ends)
            cost += (end - now) * self.of(len(ends) + 1, prompt + (now + end) / 2 - begun[0][0])
            now = end
        return cost


class Pace:
    """Compares the time that the last steps took, for their cost, with that of all steps so far.

    The cost of a step is a rough model: full batches take less time than it says, and few long answers more.
    """

    def __init__(self) -> None:
        """Start before any step."""
        self._all, self._last = [0.0, 0.0], [0.0, 0.0]  # cost, seconds

    def add(self, cost: float, seconds: float) -> None:
        """Count a step."""
        self._all = [self._all[0] + cost, self._all[1] + seconds]
        self._last = [_REMEMBERED * self._last[0] + cost, _REMEMBERED * self._last[1] + seconds]

    @property
    def change(self) -> float:
        """Seconds per cost of the last steps over those of all; 1 before any.

        Example:
            >>> pace = Pace()
            >>> for _ in range(1000):
            ...     pace.add(1.0, 1.0)
            >>> for _ in range(1000):
            ...     pace.add(1.0, 3.0)
            >>> round(pace.change, 3)  # 3 seconds of late, and 2 in the mean
            1.5
        """
        (cost, seconds), (last_cost, last_seconds) = self._all, self._last
        return last_seconds / last_cost * cost / seconds if seconds and last_cost else 1.0


# In tokens of an answer, where nothing was timed: a CPU computes while a GPU mostly reads the weights.
ON_A_CPU = StepCost(step=10.0, token=1.0, attend=0.0, read=0.5)
ON_A_GPU = StepCost(step=200.0, token=1.0, attend=0.0, read=0.0)
