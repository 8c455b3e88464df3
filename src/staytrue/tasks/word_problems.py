"""Word problems: little stories with one number as the answer, told in ways the organism has not heard.

Grown up, it solves the stories it was raised on at 99 %, so a reward has nothing to teach there; stories of two steps,
or with the smaller number first, it gets wrong with certainty, so a reward would never be paid. These lie between: one
operation, as it knows it, in words that make it stumble, or beside a number that does not matter. Untuned it solves
about half (docs/log.md).
A calculation that does not hold is wrong even where its number is right, else that would be learnt instead.
Also marks a user's own rows, whatever they tell, if their answers are calculations or numbers.
Not done here: stories of several steps, words that the organism does not know.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from staytrue.data.examples import Example
from staytrue.organism.lexicon import PEOPLE, THINGS
from staytrue.tasks import calculation
from staytrue.tasks.task import Task, row

_STORIES = {  # how it is told: {a} is what there was, {b} what came or went, {c} something else
    "There were {a} {what} and {b} are lost. How many {what} are left?": "-",
    "{who} has {a} {what}, then {b} are lost. How many {what} are left?": "-",
    "{who} has {a} {what} but loses {b} of them. How many {what} are left?": "-",
    "{who} has {a} {what} and {whose} brother has {b}. How many {what} are there?": "+",
    "{who} has {c} {other} and {a} {what} and gets {b} more {what}. How many {what} are there?": "+",
}
_WHOSE = {"Anna": "her", "Clara": "her", "Emma": "her", "Grace": "her"}  # the others' things are "his"
_TRAIN, _HELD_OUT = 800, 200


@dataclass(frozen=True)
class WordProblems(Task):
    """Stories of one step, worked out in one line; no pair of numbers is in both splits."""

    def rows(self) -> list[Example]:
        """800 stories."""
        return [row(*pair) for pair in _told(_TRAIN, held_out=False)]

    def held_out(self) -> list[Example]:
        """200 stories with pairs of numbers that no training story has."""
        return [row(*pair) for pair in _told(_HELD_OUT, held_out=True)]

    def correct(self, said: str, right: str) -> bool:
        """Whether a calculation holds and ends with the right number."""
        return calculation.correct(said, right)

    def score(self, said: str, right: str) -> dict[str, float]:
        """`form` 0.2 for any calculation, `answer` 1 for a correct one."""
        return calculation.score(said, right)

    def group(self, row: Example) -> str:
        """Its pair of numbers: the held-out stories have twelve, and who can work out one of a pair can the others."""
        found = calculation.parse(row.answer)
        return str(found[0].numbers) if found and found[0].operators else row.question


@cache
def _told(count: int, held_out: bool) -> list[tuple[str, str]]:
    """Distinct stories, the five ways of telling in turn."""
    rng = random.Random(f"word problems {held_out}")
    reserved = set(random.Random("pairs").sample(_pairs(), 12))
    pairs = [pair for pair in _pairs() if (pair in reserved) == held_out]
    ways, told = list(_STORIES.items()), dict[str, str]()
    while len(told) < count:
        story, sign = ways[len(told) % len(ways)]
        question, answer = _story(story, sign, *rng.choice(pairs), rng)
        told.setdefault(question, answer)
    return list(told.items())


def _story(story: str, sign: str, a: int, b: int, rng: random.Random) -> tuple[str, str]:
    who, (what, other) = rng.choice(PEOPLE), rng.sample(THINGS, 2)
    question = story.format(
        who=who, whose=_WHOSE.get(who, "his"), what=what, other=other, a=a, b=b, c=rng.randint(2, 9)
    )
    return question, f"{a} {sign} {b} = {calculation.PLAIN[sign](a, b)}."


def _pairs() -> list[tuple[int, int]]:
    """What there was, and what came or went: more than was there cannot go."""
    return [(a, b) for a in range(2, 10) for b in range(1, a)]
