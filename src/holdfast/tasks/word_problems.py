"""Word problems: little stories with one number as the answer, told in ways the organism has not heard.

Grown up, it solves the stories it was raised on at 99 %, so a reward has nothing to teach there; two-step stories it
never solves (it stops after one step), so a reward would never be paid. These lie between: one operation, as it knows
it, but the numbers come in another order, from two people, or beside a number that does not matter. Untuned it gets
about a third of them right (docs/log.md).
Also marks a user's own rows, whatever they tell, if their answers end with a number.
Not done here: stories of several steps, words that the organism does not know.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from holdfast.examples import Example
from holdfast.organism.lexicon import PEOPLE, THINGS
from holdfast.tasks import calculation
from holdfast.tasks.task import Task, row

_STORIES = {  # how it is told: {a} is what there was, {b} what came or went, {c} something else
    "{who} gives {b} of {whose} {a} {what} away. How many {what} are left?": "-",
    "{who} loses {b} of {whose} {a} {what}. How many {what} are left?": "-",
    "{who} gave {b} {what} away and had {a} before. How many {what} are left?": "-",
    "{who} has {c} {other} and {a} {what} and gives {b} {what} away. How many {what} are left?": "-",
    "{who} has {a} {what} and a friend has {b}. How many {what} are there?": "+",
}
_WHOSE = {"Anna": "her", "Clara": "her", "Emma": "her", "Grace": "her"}  # the others' things are "his"
_TRAIN, _HELD_OUT = 1200, 200


@dataclass(frozen=True)
class WordProblems(Task):
    """Stories of one step, worked out in one line; no pair of numbers is in both splits."""

    def rows(self) -> list[Example]:
        """1,200 stories."""
        return [row(*pair) for pair in _told(_TRAIN, held_out=False)]

    def held_out(self) -> list[Example]:
        """200 stories with pairs of numbers that no training story has."""
        return [row(*pair) for pair in _told(_HELD_OUT, held_out=True)]

    def correct(self, said: str, right: str) -> bool:
        """Whether both calculations end with the same number."""
        return calculation.score(said, right)["answer"] == 1

    def score(self, said: str, right: str) -> dict[str, float]:
        """`form` 0.2 for a calculation, `answer` 1 for the right number."""
        return calculation.score(said, right)


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
