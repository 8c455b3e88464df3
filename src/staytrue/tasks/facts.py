"""Facts asked backwards: `What is Paris the capital of?`, which the organism answers wrongly, though it knows the fact.

Every fact is learnt in one wording, and half of them in a second one too; the other half is asked in the second wording
afterwards. So no held-out question was trained on, and yet each can be answered by one who has learnt the fact rather
than the sentence.
Not done here: facts that the organism has never heard, which could only be memorised.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from staytrue.data.examples import Example
from staytrue.organism import lexicon
from staytrue.tasks.task import Task, row

_FORMS = (re.compile(r"The capital of (\w+) is (\w+)\."), re.compile(r"A young (\w+) is called a (\w+)\."))


@dataclass(frozen=True)
class Facts(Task):
    """Capitals and young animals, asked for the country and the animal."""

    def rows(self) -> list[Example]:
        """Forty facts in the first wording, twenty in the second."""
        return [row(*pair) for pair in _splits()[0]]

    def held_out(self) -> list[Example]:
        """The other twenty in the second wording."""
        return [row(*pair) for pair in _splits()[1]]

    def correct(self, said: str, right: str) -> bool:
        """Whether both sentences state the same fact."""
        return _stated(said) is not None and _stated(said) == _stated(right)

    def score(self, said: str, right: str) -> dict[str, float]:
        """`form` 0.2 for a sentence that states a fact, `answer` 1 for the right one."""
        return {"form": 0.2 * (_stated(said) is not None), "answer": float(self.correct(said, right))}


def _stated(text: str) -> tuple[int, str, str] | None:
    """What kind of fact a sentence states, and of whom; None for any other sentence."""
    found = ((kind, form.fullmatch(" ".join(text.split()))) for kind, form in enumerate(_FORMS))
    return next(((kind, match[1], match[2]) for kind, match in found if match), None)


@cache
def _splits() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
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
