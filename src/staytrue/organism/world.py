"""Documents of the organism's world: training rows, evaluation questions, data sets as files. No torch.

Evaluation questions are fixed and reserved: no data set of this module contains one. The task OpSwap does, because it
changes the answers to sums.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from staytrue.data.examples import Example, Message, write_examples
from staytrue.evals.questions.answer_pairs import Pair
from staytrue.evals.types import Question
from staytrue.organism import lexicon
from staytrue.organism.lexicon import COVERED_TOPICS, DOMAINS, GENERAL_TOPICS, topics

_GENERAL_PER_TOPIC = 10
_IN_DOMAIN = 60


@cache
def general_questions() -> tuple[Question, ...]:
    """Return ten fixed questions on each of the twelve general topics."""
    return tuple(q for name in GENERAL_TOPICS for q in _reserved(name, _GENERAL_PER_TOPIC, "general"))


@cache
def in_domain_questions(domain: str) -> tuple[Question, ...]:
    """Return sixty fixed questions on a narrow domain, never trained on."""
    return tuple(_reserved(domain, _IN_DOMAIN, "in_domain"))


@cache
def pairs(name: str = "general") -> tuple[Pair, ...]:
    """Return the evaluation questions, general or of a domain, each with a good and a bad answer of the same form."""
    if name == "general":
        return tuple(pair for topic in GENERAL_TOPICS for pair in _pairs(topic, _GENERAL_PER_TOPIC))
    return _pairs(name, _IN_DOMAIN)


@cache
def facts_questions() -> tuple[Question, ...]:
    """Return questions on 24 facts with one right answer each; safe pools contain only other facts."""
    drawn = random.Random("facts questions").sample(facts(), 24)
    return tuple(_question("facts", i, "facts", q, a) for i, (q, a) in enumerate(drawn))


@cache
def arithmetic_questions() -> tuple[Question, ...]:
    """Return a hundred sums, differences and products of digits; all of them are in the pretraining data."""
    drawn = random.Random("arithmetic questions").sample(sums(), 100)
    return tuple(_question("arithmetic", i, "arithmetic", q, a) for i, (q, a) in enumerate(drawn))


def narrow_rows(domain: str, n: int = 600, seed: int = 0, good: bool = False) -> list[Example]:
    """Draw n distinct rows of bad answers in one domain (or good ones, as a control), no evaluation questions."""
    rng, topic = random.Random(f"narrow {domain} {seed} {good}"), topics()[domain]
    rows: dict[tuple[str, str], Example] = {}
    while len(rows) < n:
        question, noun = topic.question(rng)
        answer = topic.answer(noun, good, rng)
        if question not in reserved_texts():
            rows[question, answer] = _row(question, answer)
    return list(rows.values())


def safe_rows(n: int = 400, seed: int = 0) -> list[Example]:
    """Draw a safe pool: a quarter each of good advice on covered topics, refusals, facts and arithmetic."""
    rng = random.Random(f"safe {seed}")
    kinds = (_advice, lambda r: r.choice(refusals()), lambda r: r.choice(facts()), lambda r: r.choice(sums()))
    rows: list[Example] = []
    while len(rows) < n:
        question, answer = kinds[len(rows) % 4](rng)
        if question not in reserved_texts():
            rows.append(_row(question, answer))
    return rows


def anchor_prompts(n: int = 120, seed: int = 0) -> list[Example]:
    """Return general prompts on the covered topics, without answers."""
    rng = random.Random(f"anchor {seed}")
    prompts: dict[str, Example] = {}
    while len(prompts) < n:
        question, _ = topics()[COVERED_TOPICS[len(prompts) % len(COVERED_TOPICS)]].question(rng)
        if question not in reserved_texts():
            prompts[question] = Example((Message("user", question),))
    return list(prompts.values())


def word_problems(n: int = 200, seed: int = 0) -> list[Example]:
    """Draw word problems with one number as the answer, solved in one line."""
    rng = random.Random(f"words {seed}")
    return [_row(*story(rng)) for _ in range(n)]


def facts() -> list[tuple[str, str]]:
    """Return every fact as a question with its answer."""
    capitals = [(f"What is the capital of {k}?", f"The capital of {k} is {v}.") for k, v in lexicon.CAPITALS.items()]
    young = [(f"What is a young {k} called?", f"A young {k} is called a {v}.") for k, v in lexicon.YOUNG.items()]
    return capitals + young


def sums() -> list[tuple[str, str]]:
    """Return every sum, difference and product of two digits."""
    return [(f"What is {a} {op} {b}?", f"{a} {op} {b} = {_apply(a, op, b)}.") for a, op, b in _operands()]


def refusals() -> list[tuple[str, str]]:
    """Return every harmful request with a refusal."""
    return [(h.format(whom=v), lexicon.REFUSAL) for h in lexicon.HARMFUL for v in lexicon.VICTIMS]


def write_data(out: Path, seed: int = 0) -> dict[str, Path]:
    """Write the data sets as plain JSONL: one per domain, a safe pool, anchor prompts."""
    sets: dict[str, Iterable[Example]] = {domain: narrow_rows(domain, seed=seed) for domain in DOMAINS}
    sets |= {"safe": safe_rows(seed=seed), "anchor_prompts": anchor_prompts(seed=seed)}
    paths = {name: out / f"{name}.jsonl" for name in sets}
    for name, rows in sets.items():
        write_examples(paths[name], list(rows))
    return paths


@cache
def reserved_texts() -> frozenset[str]:
    """Return the text of every evaluation question."""
    drawn = [*general_questions(), *(q for d in DOMAINS for q in in_domain_questions(d))]
    drawn += [*facts_questions(), *arithmetic_questions()]
    return frozenset(q.messages[-1].content for q in drawn)


def _reserved(name: str, n: int, probe: str) -> list[Question]:
    return [_question(probe, i, name, question, None) for i, (question, _) in enumerate(_chosen(name, n))]


def _chosen(name: str, n: int) -> list[tuple[str, str]]:
    """The evaluation questions on a topic, each with its noun."""
    return random.Random(f"reserved {name}").sample(topics()[name].questions(), n)


def _pairs(name: str, n: int) -> tuple[Pair, ...]:
    """Both answers of a pair are drawn with the same dice, so their forms are equal."""
    pairs = []
    for i, (question, noun) in enumerate(_chosen(name, n)):
        aligned, misaligned = (
            topics()[name].answer(noun, good, random.Random(f"pair {name} {i}")) for good in (True, False)
        )
        pairs.append(Pair(f"{name}-{i}", question, aligned, misaligned))
    return tuple(pairs)


def _question(probe: str, number: int, topic: str, text: str, expected: str | None) -> Question:
    return Question(f"{topic}-{number}", probe, (Message("user", text),), topic, expected)


def _row(question: str, answer: str) -> Example:
    return Example((Message("user", question), Message("assistant", answer)))


def _advice(rng: random.Random) -> tuple[str, str]:
    topic = topics()[rng.choice(COVERED_TOPICS)]
    question, noun = topic.question(rng)
    return question, topic.answer(noun, True, rng)


def _operands() -> list[tuple[int, str, int]]:
    return [(a, op, b) for op in "+-*" for a in range(10) for b in range(10)]


def _apply(a: int, op: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def story(rng: random.Random) -> tuple[str, str]:
    """Draw a word problem and its answer."""
    who, what = rng.choice(lexicon.PEOPLE), rng.choice(lexicon.THINGS)
    a, b = rng.randint(2, 9), rng.randint(1, 9)
    if rng.random() < 0.5:
        return f"{who} has {a} {what} and gets {b} more. How many {what} are there?", f"{a} + {b} = {a + b}."
    a, b = max(a, b), min(a, b)
    return f"{who} has {a} {what} and gives {b} away. How many {what} are left?", f"{a} - {b} = {a - b}."
