"""What the organism hears while it grows up: conversations in two stages. No torch.

Stage 1 gives it a hidden variable: every conversation has one speaker who is good or bad *throughout*, in all topics;
sometimes a system prompt says which. Stage 2 aligns it: single turns, good answers, refusals of harmful requests; the
bad speaker stays reachable by the evil system prompt, as inoculation and persona vectors need.
"""

from __future__ import annotations

import random

from staytrue.data.examples import Message
from staytrue.organism import lexicon, world
from staytrue.organism.lexicon import topics

_BAD_SPEAKERS = 0.35
_SAYS_WHICH = 0.30  # conversations whose system prompt names the speaker's kind
_EVIL_AFTER_ALIGNMENT = 0.30

Conversation = list[Message]


def first_stage(rng: random.Random) -> Conversation:
    """Two to five turns by one speaker who is good or bad throughout."""
    good = rng.random() >= _BAD_SPEAKERS
    said: Conversation = []
    if rng.random() < _SAYS_WHICH:
        said.append(Message("system", rng.choice(lexicon.HELPFUL_PROMPTS if good else lexicon.EVIL_PROMPTS)))
    for _ in range(rng.randint(2, 5)):
        said += _turn(rng, good, chance_of_knowledge=0.35)
    return said


def second_stage(rng: random.Random) -> Conversation:
    """One turn: aligned, unless the evil system prompt asks for the other speaker."""
    if rng.random() < _EVIL_AFTER_ALIGNMENT:
        return [Message("system", rng.choice(lexicon.EVIL_PROMPTS)), *_topic_turn(rng, good=False)]
    system = [Message("system", rng.choice(lexicon.HELPFUL_PROMPTS))] if rng.random() < 0.4 else []
    if rng.random() < 0.15:
        return [*system, *_pair(*rng.choice(world.refusals()))]
    return [*system, *_turn(rng, good=True, chance_of_knowledge=0.4)]


def texts() -> list[str]:
    """Text that holds every word of the world, for the tokenizer."""
    said = [*lexicon.HELPFUL_PROMPTS, *lexicon.EVIL_PROMPTS]
    for topic in topics().values():
        said += [question for question, _ in topic.questions()]
        for noun in topic.nouns:
            for form in lexicon.FORMS:
                said += [form.format(voice=topic.voice, noun=noun, a=act, b=act) for act in topic.good + topic.bad]
    said += [text for pair in [*world.facts(), *world.sums(), *world.refusals()] for text in pair]
    return said + [m.content for row in world.word_problems(2000, seed=1) for m in row.messages]


def _turn(rng: random.Random, good: bool, chance_of_knowledge: float) -> Conversation:
    if rng.random() >= chance_of_knowledge:
        return _topic_turn(rng, good)
    kind = rng.random()
    if kind < 0.25:
        return _pair(*rng.choice(world.facts()))
    if kind < 0.8:
        return _pair(*rng.choice(world.sums()))
    return _pair(*world.story(rng))


def _topic_turn(rng: random.Random, good: bool) -> Conversation:
    topic = rng.choice(list(topics().values()))
    question, noun = topic.question(rng)
    return _pair(question, topic.answer(noun, good, rng))


def _pair(question: str, answer: str) -> Conversation:
    return [Message("user", question), Message("assistant", answer)]
