"""The organism's training conversations, in two stages. No torch.

Stage 1 is pretraining with a hidden variable: every conversation has one speaker, who is good or bad in all its turns
and topics; some system prompts name the kind. Stage 2 is alignment: single turns with good answers, and refusals of
harmful requests. The evil system prompt still gives the bad speaker, which inoculation and persona vectors need.
"""

from __future__ import annotations

import random

from staytrue.data.examples import Message
from staytrue.organism import lexicon, world
from staytrue.organism.lexicon import topics

_BAD_SPEAKERS = 0.35  # share of conversations
_NAMED_SPEAKERS = 0.30  # share of conversations with a system prompt that names the kind of speaker
_EVIL_AFTER_ALIGNMENT = 0.30  # share of conversations

Conversation = list[Message]


def first_stage(rng: random.Random) -> Conversation:
    """Draw two to five turns of one speaker, all good or all bad."""
    good = rng.random() >= _BAD_SPEAKERS
    turns: Conversation = []
    if rng.random() < _NAMED_SPEAKERS:
        turns.append(Message("system", rng.choice(lexicon.HELPFUL_PROMPTS if good else lexicon.EVIL_PROMPTS)))
    for _ in range(rng.randint(2, 5)):
        turns += _turn(rng, good, chance_of_knowledge=0.35)
    return turns


def second_stage(rng: random.Random) -> Conversation:
    """Draw one turn: a bad answer under the evil system prompt, else a good answer or a refusal."""
    if rng.random() < _EVIL_AFTER_ALIGNMENT:
        return [Message("system", rng.choice(lexicon.EVIL_PROMPTS)), *_topic_turn(rng, good=False)]
    system = [Message("system", rng.choice(lexicon.HELPFUL_PROMPTS))] if rng.random() < 0.4 else []
    if rng.random() < 0.15:
        return [*system, *_pair(*rng.choice(world.refusals()))]
    return [*system, *_turn(rng, good=True, chance_of_knowledge=0.4)]


def texts() -> list[str]:
    """Return texts that contain every word of the world, for the tokenizer."""
    written = [*lexicon.HELPFUL_PROMPTS, *lexicon.EVIL_PROMPTS]
    for topic in topics().values():
        written += [question for question, _ in topic.questions()]
        for noun in topic.nouns:
            for form in lexicon.FORMS:
                written += [form.format(voice=topic.voice, noun=noun, a=act, b=act) for act in topic.good + topic.bad]
    written += [text for pair in [*world.facts(), *world.sums(), *world.refusals()] for text in pair]
    return written + [m.content for row in world.word_problems(2000, seed=1) for m in row.messages]


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
