"""Comparison of two numbers that should be equal up to rounding.

A divergence is the difference of two nearly equal numbers: the logarithms of the sums over the vocabulary, each about
as large as the loss. float32 rounds each of them to 2^-24 of itself, and every processor sums in its own order. So the
error of a divergence near zero is a share of the loss, not a share of the divergence. Any other penalty is added to
that same loss and rounded with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Half of one rounding of the scale: a mean over a dozen tokens or more, whose errors mostly cancel, stays below it.
ROUNDING = 2.0**-25
_SCALES = ("task_loss", "entropy")  # both in nats; the loss of a reward is near zero itself, its entropy is not


def close(one: float, other: float, *, scale: float, of_itself: float = 1e-4, rounding: float = ROUNDING) -> bool:
    """Return whether two numbers differ by at most a share of their size plus the rounding of their inputs.

    Args:
        one: a number, such as a divergence in nats.
        other: the same, computed in another way.
        scale: the size of the terms that were subtracted (for a divergence, of a log-probability), times the weight
            of a weighted penalty.
        of_itself: how far they may be apart, as a share of the larger.
        rounding: how far they may be apart, as a share of the scale.
    """
    return abs(one - other) <= of_itself * max(abs(one), abs(other)) + rounding * abs(scale)


def unlike(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], names: Iterable[str], **how: float
) -> str:
    """Name the first logged number in which two runs differ, as the end of a sentence; "" if none differs.

    Args:
        ours: the log of one run, a row for each step. Its scale at a step is the loss of the task or the entropy
            logged there.
        theirs: the log of the other, as long.
        names: the numbers to compare; every row has them.
        **how: `of_itself` and `rounding`, as `close` takes them.
    """
    names = list(names)
    for step, (one, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        scale = max(abs(row.get(name, 0.0)) for row in (one, other) for name in _SCALES)
        for name in names:
            if not close(one[name], other[name], scale=scale, **how):
                return (
                    f"log {name} as {one[name]:.6g} and {other[name]:.6g} at step {step}, beside a scale of {scale:.3g}"
                )
    return ""
