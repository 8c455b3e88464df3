"""Reversed facts, as in `What is Paris the capital of?`. The organism knows these facts only the other way round.

Training has every fact in a first wording and half of the facts in a second wording. The held-out questions are the
other half in the second wording, so a model that learnt the fact, not the sentence, can answer them.
Not done here: facts that are not in the pretraining data, since a model could only memorise them.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from staytrue.organism import lexicon
from staytrue.tasks.task import Splits, Task

_FORMS = (re.compile(r"The capital of (\w+) is (\w+)\."), re.compile(r"A young (\w+) is called a (\w+)\."))


@dataclass(frozen=True)
class Facts(Task):
    """Questions for the country of a capital and for the parent of a young animal."""

    def splits(self) -> Splits:
        """Return forty facts in the first wording and twenty in the second; and the other twenty in the second."""
        return _splits()

    def correct(self, answer: str, expected: str) -> bool:
        """Return True if both sentences state the same fact."""
        return _fact_in(answer) is not None and _fact_in(answer) == _fact_in(expected)

    def score(self, answer: str, expected: str) -> dict[str, float]:
        """Return the terms `form`, 0.2 for a sentence that states a fact, and `answer`, 1 for the right fact."""
        return {"form": 0.2 * (_fact_in(answer) is not None), "answer": float(self.correct(answer, expected))}


def _fact_in(text: str) -> tuple[int, str, str] | None:
    """Return the fact that a sentence states, as its kind and two names; None for any other sentence."""
    matches = ((kind, form.fullmatch(" ".join(text.split()))) for kind, form in enumerate(_FORMS))
    return next(((kind, match[1], match[2]) for kind, match in matches if match), None)


@cache
def _splits() -> Splits:
    facts = [
        (
            f"What is {city} the capital of?",
            f"Which country has {city} as the capital?",
            f"The capital of {of} is {city}.",
        )
        for of, city in lexicon.CAPITALS.items()
    ] + [
        (f"What is a {small} the young of?", f"What has a {small} as its young?", f"A young {of} is called a {small}.")
        for of, small in lexicon.YOUNG.items()
    ]
    random.Random("facts").shuffle(facts)
    half = len(facts) // 2
    first, second = [(a, fact) for a, _, fact in facts], [(b, fact) for _, b, fact in facts]
    return first + second[:half], second[half:]
