"""What 95 % intervals over few questions are worth, as one sentence."""

from __future__ import annotations

from collections.abc import Mapping

from staytrue.evals.stats.intervals import covers

_MANY = 100  # questions, from which an interval covers what it says
_SIMULATED = 8  # questions, below which nothing was simulated


def few(questions: Mapping[str, int]) -> str:
    """How often intervals over so many questions, by what they are of, held the truth; "" where there are enough."""
    told = [f"{name} {n}: {_covered(n)}" for name, n in questions.items() if 0 < n < _MANY]
    return f"Simulated coverage of 95 % intervals over so few questions: {', '.join(told)}." if told else ""


def _covered(questions: int) -> str:
    low, high = covers(questions)
    return f"{low}-{high} %" if questions >= _SIMULATED else "not simulated"
