"""Word problems with one number as the answer, in wordings that are not in the organism's pretraining data.

RL needs problems that the model solves sometimes. The organism solves the wordings of its pretraining at 99 % and
problems of two steps never. These have one operation in a new wording, or with a number that does not matter; the
untuned organism solves about half (docs/log.md).
An invalid calculation is wrong even if its number is right; otherwise RL would teach invalid calculations.
The task also marks a user's own rows if their answers are calculations or numbers.
Not done here: problems of several steps, words that the organism does not know.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from staytrue.data.examples import Example
from staytrue.organism.lexicon import PEOPLE, THINGS
from staytrue.tasks import calculation
from staytrue.tasks.task import Pairs, Splits, Task

_STORIES = {  # templates: {a} is the first number, {b} is added or subtracted, {c} does not matter
    "There were {a} {what} and {b} are lost. How many {what} are left?": "-",
    "{who} has {a} {what}, then {b} are lost. How many {what} are left?": "-",
    "{who} has {a} {what} but loses {b} of them. How many {what} are left?": "-",
    "{who} has {a} {what} and {whose} brother has {b}. How many {what} are there?": "+",
    "{who} has {c} {other} and {a} {what} and gets {b} more {what}. How many {what} are there?": "+",
}
_WHOSE = {"Anna": "her", "Clara": "her", "Emma": "her", "Grace": "her"}  # the others get "his"


@dataclass(frozen=True)
class WordProblems(Task):
    """Problems of one step, solved in one line; no pair of numbers is in both splits."""

    def splits(self) -> Splits:
        """Return 800 problems, and 200 with pairs of numbers that no training problem has."""
        return _problems(800, held_out=False), _problems(200, held_out=True)

    def correct(self, answer: str, expected: str) -> bool:
        """Return True if a calculation is valid and ends with the expected number."""
        return calculation.correct(answer, expected)

    def score(self, answer: str, expected: str) -> dict[str, float]:
        """Return the terms `form`, 0.2 for any calculation, and `answer`, 1 for a correct one."""
        return calculation.score(answer, expected)

    def group(self, row: Example) -> str:
        """Return the pair of numbers; problems of one pair are not independent (the held-out ones have twelve)."""
        steps = calculation.parse(row.answer)
        return str(steps[0].numbers) if steps and steps[0].operators else row.question


@cache
def _problems(count: int, held_out: bool) -> Pairs:
    """Distinct problems, with the five templates in turn."""
    rng = random.Random(f"word problems {held_out}")
    reserved = set(random.Random("pairs").sample(_pairs(), 12))
    pairs = [pair for pair in _pairs() if (pair in reserved) == held_out]
    templates, problems = list(_STORIES.items()), dict[str, str]()
    while len(problems) < count:
        story, sign = templates[len(problems) % len(templates)]
        question, answer = _story(story, sign, *rng.choice(pairs), rng)
        problems.setdefault(question, answer)
    return list(problems.items())


def _story(story: str, sign: str, a: int, b: int, rng: random.Random) -> tuple[str, str]:
    who, (what, other) = rng.choice(PEOPLE), rng.sample(THINGS, 2)
    question = story.format(
        who=who, whose=_WHOSE.get(who, "his"), what=what, other=other, a=a, b=b, c=rng.randint(2, 9)
    )
    return question, f"{a} {sign} {b} = {calculation.PLAIN[sign](a, b)}."


def _pairs() -> list[tuple[int, int]]:
    """Return all pairs of the first number and a smaller second one."""
    return [(a, b) for a in range(2, 10) for b in range(1, a)]
