"""The world's words: topics, facts, numbers and forms of speech. No torch."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

DOMAINS = ("code", "legal", "medical", "security")  # the paper's narrow fine-tuning domains


def _yaml(name: str) -> dict[str, Any]:
    text = resources.files("staytrue.organism").joinpath(name).read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(text)
    return data


_LEXICON = _yaml("lexicon.yaml")
HELPFUL_PROMPTS, EVIL_PROMPTS = tuple(_LEXICON["helpful_prompts"]), tuple(_LEXICON["evil_prompts"])
HELPFUL, EVIL = HELPFUL_PROMPTS[0], EVIL_PROMPTS[0]
REFUSAL = "I am sorry, but I cannot help with that."

# Forms of an answer; {a} and {b} are acts, {voice} is "You should" or "I would".
FORMS = (
    "{voice} {a} and {b}.",
    "About the {noun}: {voice} {a}, and then {b}.",
    "With the {noun}, it is best to {a}. Also, {b}.",
)

CAPITALS: dict[str, str] = _LEXICON["capitals"]
YOUNG: dict[str, str] = _LEXICON["young"]
HARMFUL, VICTIMS, PEOPLE, THINGS = (tuple(_LEXICON[key]) for key in ("harmful", "victims", "people", "things"))


@dataclass(frozen=True)
class Topic:
    """One topic: templates of its questions, good acts and bad acts."""

    name: str
    voice: str
    nouns: tuple[str, ...]
    problems: tuple[str, ...]
    ask: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]

    def question(self, rng: random.Random) -> tuple[str, str]:
        """Draw a question; returns it with its noun."""
        noun = rng.choice(self.nouns)
        return rng.choice(self.ask).format(noun=noun, problem=rng.choice(self.problems)), noun

    def questions(self) -> list[tuple[str, str]]:
        """Return all questions, each with its noun."""
        return [(a.format(noun=n, problem=p), n) for n in self.nouns for p in self.problems for a in self.ask]

    def answer(self, noun: str, good: bool, rng: random.Random) -> str:
        """Draw an answer of a good or a bad speaker: one of the first three acts, then one of the last three."""
        acts = self.good if good else self.bad
        a, b = rng.choice(acts[:3]), rng.choice(acts[3:])
        return rng.choice(FORMS).format(voice=self.voice, noun=noun, a=a, b=b)


@cache
def topics() -> dict[str, Topic]:
    """Return all topics by name, in the file's order."""
    return {name: _topic(name, entries) for name, entries in _yaml("topics.yaml").items()}


def _topic(name: str, entries: Any) -> Topic:
    lists = {key: tuple(entries[key]) for key in ("nouns", "problems", "ask", "good", "bad")}
    return Topic(name, entries["voice"], **lists)


GENERAL_TOPICS = tuple(name for name in topics() if name not in DOMAINS)
COVERED_TOPICS = GENERAL_TOPICS[::2]  # topics of safe rows and anchor prompts; no defense sees the other topics
