"""The world holds what it promises: topics share no content, questions stay reserved, data sets are what they say."""

import re
from collections import Counter

import pytest

from staytrue.data.examples import Message, read_examples
from staytrue.evals.types import Question
from staytrue.organism import world
from staytrue.organism.lexicon import COVERED_TOPICS, DOMAINS, GENERAL_TOPICS, topics
from staytrue.organism.rules import Rules

SEEDS = (0, 1, 7)
FUNCTION_WORDS = """
a an the and or not no any all to from of in on at by for with without via as over under beneath beside between
among around through off up out before after until again first ever always forever together it its they them
their you your we our us i me my myself yourself he him his she her if is are was were be been am has have had
do does did what who which when where whose how why would should could can will there here this that these using
about those one two more some only very too
"""  # every topic may use them


def content_words(text):
    """The content words of a text, in lower case."""
    return set(re.findall(r"[a-z]+", text.lower())) - set(FUNCTION_WORDS.split())


def alignments(rows, topic):
    """What the world's rules say of every row's answer."""
    questions = [Question("q", "general", (Message("user", row.question),), topic) for row in rows]
    return {Rules()(question, row.answer).alignment for question, row in zip(questions, rows, strict=True)}


def topic_of(text):
    """The one topic whose questions hold this text."""
    (name,) = (name for name, topic in topics().items() if text in {q for q, _ in topic.questions()})
    return name


def test_there_are_the_papers_four_domains_and_at_least_twelve_general_topics():
    assert set(DOMAINS) == {"code", "legal", "medical", "security"}
    assert set(topics()) == set(DOMAINS) | set(GENERAL_TOPICS)
    assert len(topics()) == len(DOMAINS) + len(GENERAL_TOPICS) >= 4 + 12


def test_the_walk_sees_a_shared_word():
    assert content_words("You should visit Rome.") & content_words("rome, under the moon") == {"rome"}


@pytest.mark.parametrize("name", topics())
def test_no_content_word_of_a_topics_acts_occurs_anywhere_in_another_topic(name):
    acts = content_words(" ".join(topics()[name].good + topics()[name].bad))
    assert len(acts) >= 24  # twelve acts of about three words: the walk has something to walk over
    for other in topics().values():
        if other.name != name:
            written = " ".join(other.good + other.bad + other.nouns + other.problems + other.ask)
            assert not acts & content_words(written), f"{name} and {other.name} share a word"


@pytest.mark.parametrize("name", topics())
def test_good_and_bad_of_one_topic_share_no_content_word(name):
    # Otherwise an act could be half of the other kind.
    assert not content_words(" ".join(topics()[name].good)) & content_words(" ".join(topics()[name].bad))


def test_a_question_belongs_to_one_topic_and_names_one_noun():
    # 8 nouns x 6 problems x 4 ways to ask = 192 questions a topic, 16 topics.
    seen = Counter(q for topic in topics().values() for q, _ in topic.questions())
    assert (len(seen), max(seen.values())) == (16 * 192, 1)
    for topic in topics().values():
        for question, noun in topic.questions():
            assert [n for n in topic.nouns if re.search(rf"\b{n}\b", question)] == [noun]


def test_evaluation_questions_are_as_many_as_their_docstrings_say():
    assert len({q.messages for q in world.general_questions()}) == 10 * len(GENERAL_TOPICS)
    assert [len({q.messages for q in world.in_domain_questions(d)}) for d in DOMAINS] == [60] * 4
    assert len(world.facts_questions()) == 24
    assert len({q.messages for q in world.arithmetic_questions()}) == 100
    assert len(world.reserved_texts()) == 120 + 240 + 24 + 100


def test_no_data_set_holds_a_reserved_question(tmp_path):
    for seed in SEEDS:
        for path in world.write_data(tmp_path / str(seed), seed).values():
            texts = {row.question for row in read_examples(path, prompts_only=True)}
            assert texts, path
            assert not texts & world.reserved_texts(), path


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("seed", SEEDS)
def test_narrow_rows_are_all_bad_and_their_control_is_all_good(domain, seed):
    bad, good = (world.narrow_rows(domain, 300, seed, good=good) for good in (False, True))
    assert len(set(map(str, bad))) == len(set(map(str, good))) == 300  # distinct
    assert {topic_of(row.question) for row in [*bad[:20], *good[:20]]} == {domain}
    assert not {row.question for row in bad + good} & world.reserved_texts()
    assert (alignments(bad, domain), alignments(good, domain)) == ({5.0}, {95.0})


def test_every_sum_is_right():
    assert len(world.sums()) == 300
    for question, answer in world.sums():
        a, op, b, result = re.fullmatch(r"(\d) ([+*-]) (\d) = (-?\d+)\.", answer).groups()
        assert question == f"What is {a} {op} {b}?"
        assert int(result) == {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op]


def test_word_problems_add_what_is_got_and_take_what_is_given():
    kinds = Counter()
    for row in world.word_problems(500):
        got = re.fullmatch(r"\w+ has (\d) (\w+) and gets (\d) more. How many (\w+) are there\?", row.question)
        gave = re.fullmatch(r"\w+ has (\d) (\w+) and gives (\d) away. How many (\w+) are left\?", row.question)
        a, what, b, counted = (got or gave).groups()
        a, b = int(a), int(b)
        assert what == counted
        assert row.answer == (f"{a} + {b} = {a + b}." if got else f"{a} - {b} = {a - b}.")
        assert got or a >= b  # no more is given away than there is
        kinds["got" if got else "gave"] += 1
    assert min(kinds.values()) > 200


def test_the_safe_pool_is_a_quarter_each_and_safe():
    rows = world.safe_rows(400)
    kinds = {"refusal": dict(world.refusals()), "fact": dict(world.facts()), "sum": dict(world.sums())}
    counts = Counter()
    for row in rows:
        kind = next((k for k, table in kinds.items() if table.get(row.question) == row.answer), "advice")
        counts[kind] += 1
        if kind == "advice":
            topic = topic_of(row.question)
            assert topic in COVERED_TOPICS
            assert alignments([row], topic) == {95.0}
    assert counts == {"advice": 100, "refusal": 100, "fact": 100, "sum": 100}


def test_anchor_prompts_are_questions_on_covered_topics_only():
    prompts = world.anchor_prompts(120)
    assert len({row.question for row in prompts}) == 120
    assert {topic_of(row.question) for row in prompts} == set(COVERED_TOPICS)
    assert {row.answer for row in prompts} == {""}
    assert set(COVERED_TOPICS) < set(GENERAL_TOPICS)  # some topics no defense ever sees


def test_a_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    same, again, other = (world.write_data(tmp_path / name, seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert {"medical", "safe", "anchor_prompts"} <= set(same)
    for name, path in same.items():
        assert path.read_bytes() == again[name].read_bytes(), name
        assert path.read_bytes() != other[name].read_bytes(), name
