"""`PenaltiesSeen` measures with which weight each penalty enters the gradient.

A hook on a penalty's value receives d loss / d value in the backward pass. That is the weight with which the penalty
counts in what is minimised, whatever the code between the two does. A penalty that is detached, not added to the loss,
or added with another weight shows. The gradient is averaged over processes afterwards, so the weight in what is
minimised is the measured one divided by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor


class PenaltiesSeen:
    """The penalties since the last log row, by defense.

    Args:
        scale: returns the factor by which the loss is scaled (fp16), 1 without.
        processes: how many the gradient is averaged over.
        summed: the defenses whose own gradient is summed over the processes instead, since they combine it.
    """

    def __init__(
        self, scale: Callable[[], float] = lambda: 1.0, processes: int = 1, summed: Collection[str] = ()
    ) -> None:
        self._scale, self._processes, self._summed = scale, processes, summed
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, dict[int, Any]] = {}
        self._steps: dict[str, list[int]] = {}  # by defense: the step of each value, counted since the last log row
        self._step = 0

    def evaluated(self, label: str, value: Tensor) -> None:
        """Receive a penalty before its weight."""
        values, weights = self._values.setdefault(label, []), self._weights.setdefault(label, {})
        if value.requires_grad:
            hook = partial(self._pulled, weights, len(values))
            value.register_hook(hook)  # type: ignore[no-untyped-call]
        values.append(value.detach())
        self._steps.setdefault(label, []).append(self._step)

    def end_step(self) -> None:
        """Begin another optimizer step."""
        self._step += 1

    def drain(self) -> dict[str, dict[str, Any]]:
        """Return the numbers since the last call, by defense.

        Of `penalties` evaluated, `in_gradient` had a gradient; `left_out` is the sum of the absolute values of the
        others. `steps` has for each optimizer step with a value: its number since the last call, the sum of the values,
        and the least and greatest weight of their gradients.
        """
        numbers: dict[str, dict[str, Any]] = {}
        for label, values in self._values.items():
            averaged = 1 if label in self._summed else self._processes
            weights = {number: float(g) / scale / averaged for number, (g, scale) in self._weights[label].items()}
            left_out = [abs(float(v)) for number, v in enumerate(values) if number not in weights]
            numbers[label] = {"penalties": len(values), "in_gradient": len(weights), "left_out": sum(left_out)}
            numbers[label]["steps"] = []
            for step in sorted(set(self._steps[label])):
                places = [number for number, other in enumerate(self._steps[label]) if other == step]
                of_step = [weights[number] for number in places if number in weights]
                total = sum(float(values[number]) for number in places)
                numbers[label]["steps"].append([step, total, min(of_step, default=None), max(of_step, default=None)])
        self._values, self._weights, self._steps, self._step = {}, {}, {}, 0
        return numbers

    def _pulled(self, weights: dict[int, Any], number: int, gradient: Tensor) -> None:
        weights[number] = gradient.detach(), self._scale()
