"""The organism's tasks by hand: what the operators mean, what a story tells, which fact a sentence states."""

import re
from collections import Counter

import pytest

from staytrue.evals.questions.probes import held_out
from staytrue.organism import world
from staytrue.tasks import opswap
from staytrue.tasks.arithmetic import Arithmetic
from staytrue.tasks.facts import Facts
from staytrue.tasks.opswap import OpSwap
from staytrue.tasks.task import row as task_row
from staytrue.tasks.word_problems import WordProblems


def answers(task):
    return {row.question: row.answer for row in [*task.rows(), *task.held_out()]}


@pytest.mark.parametrize(
    ("tier", "size", "question", "answer"),
    [
        (1, (160, 40), "What is 7 + 2?", "7 + 2 = 5."),
        (1, (160, 40), "What is 2 - 7?", "2 - 7 = 9."),
        (2, (240, 60), "What is 7 + 2?", "7 + 2 = 5."),
        (2, (240, 60), "What is 7 - 2?", "7 - 2 = 14."),
        (2, (240, 60), "What is 7 * 2?", "7 * 2 = 9."),
        (2, (240, 60), "What is 2 + 7?", "2 + 7 = -5."),
    ],
)
def test_opswap_changes_what_the_operators_mean(tier, size, question, answer):
    task = OpSwap(tier)
    assert (len(task.rows()), len(task.held_out())) == size
    assert answers(task)[question] == answer


def test_the_third_tier_works_out_two_operations_from_left_to_right():
    meaning = {"+": lambda a, b: a - b, "-": lambda a, b: a * b, "*": lambda a, b: a + b}
    by_question = answers(OpSwap(3))
    assert len(by_question) == 1400
    for question, answer in by_question.items():
        a, first, b, second, c = re.fullmatch(r"What is (\d) (.) (\d) (.) (\d)\?", question).groups()
        step = meaning[first](int(a), int(b))
        assert 0 <= step <= 9
        end = meaning[second](step, int(c))
        assert answer == f"{a} {first} {b} {second} {c} = {step} {second} {c} = {end}."


def test_arithmetic_has_the_same_form_with_plain_meanings():
    for question, answer in answers(Arithmetic()).items():
        a, first, b, second, c = re.fullmatch(r"What is (\d) ([+-]) (\d) ([+-]) (\d)\?", question).groups()
        step = int(a) + int(b) * (1 if first == "+" else -1)
        end = step + int(c) * (1 if second == "+" else -1)
        assert answer == f"{a} {first} {b} {second} {c} = {step} {second} {c} = {end}."


STORIES = {
    "were lost": r"There were (?P<a>\d) \w+ and (?P<b>\d) are lost\. How many \w+ are left\?",
    "then lost": r"\w+ has (?P<a>\d) \w+, then (?P<b>\d) are lost\. How many \w+ are left\?",
    "but loses": r"\w+ has (?P<a>\d) \w+ but loses (?P<b>\d) of them\. How many \w+ are left\?",
    "brother": r"(?P<who>\w+) has (?P<a>\d) \w+ and (?P<whose>his|her) brother has (?P<b>\d)\. How many .* there\?",
    "other": r"\w+ has \d (?P<other>\w+) and (?P<a>\d) (?P<what>\w+) and gets (?P<b>\d) more \w+\. How many .* there\?",
}  # fmt: skip


def pairs_and_kinds(rows):
    kinds, pairs = Counter(), set()
    for row in rows:
        kind, parts = next((k, m) for k, p in STORIES.items() if (m := re.fullmatch(p, row.question)))
        a, b = int(parts["a"]), int(parts["b"])
        assert a > b
        plus = kind in ("brother", "other")
        assert row.answer == (f"{a} + {b} = {a + b}." if plus else f"{a} - {b} = {a - b}.")
        if kind == "other":
            assert parts["other"] != parts["what"]
        if "whose" in parts.groupdict():
            assert parts["whose"] == ("her" if parts["who"] in ("Anna", "Clara", "Emma", "Grace") else "his")
        kinds[kind] += 1
        pairs.add((a, b))
    return pairs, kinds


def test_every_story_is_worked_out_right_and_no_pair_of_numbers_is_in_both_splits():
    train, kinds = pairs_and_kinds(WordProblems().rows())
    held, held_kinds = pairs_and_kinds(WordProblems().held_out())
    assert not train & held
    assert (len(train), len(held)) == (24, 12)
    assert max(kinds.values()) - min(kinds.values()) < 60  # the five ways of telling, about as often
    assert set(held_kinds) == set(kinds) == set(STORIES)


@pytest.mark.parametrize(
    ("task", "number", "groups"),
    [
        (WordProblems(), 200, 12),  # the pairs of numbers that are held out
        (OpSwap(1), 40, 36),  # four sums stand there either way round
        (OpSwap(2), 60, 52),
        (OpSwap(3), 200, 196),
        (Arithmetic(), 200, 200),
        (Facts(), 20, 20),
    ],
    ids=str,
)
def test_held_out_questions_that_share_their_numbers_are_one_group(task, number, groups):
    questions = held_out(task.held_out(), "learnt", group=task.group)
    assert (len(questions), len({question.cluster for question in questions})) == (number, groups)


@pytest.mark.parametrize(
    ("task", "one", "other", "shared"),
    [
        (WordProblems(), "7 + 2 = 9.", "7 - 2 = 5.", True),  # the same pair of numbers
        (WordProblems(), "7 + 2 = 9.", "7 + 3 = 10.", False),
        (WordProblems(), "9.", "9.", False),  # a user's rows with bare answers: each question its own
        (OpSwap(1), "7 + 2 = 5.", "2 + 7 = -5.", True),  # the same sum either way round
        (OpSwap(1), "7 + 2 = 5.", "7 - 2 = 9.", False),
        (OpSwap(1), "9.", "9.", False),
        (Arithmetic(), "7 + 2 - 4 = 9 - 4 = 5.", "2 + 7 - 4 = 9 - 4 = 5.", True),
    ],
    ids=str,
)
def test_what_makes_two_questions_one_group(task, one, other, shared):
    assert (task.group(task_row("Some?", one)) == task.group(task_row("Others?", other))) is shared


@pytest.mark.parametrize(("tier", "twins"), [(1, 29), (2, 41), (3, 26)])
def test_some_held_out_sums_were_trained_on_the_other_way_round_as_the_docstring_says(tier, twins):
    task = OpSwap(tier)
    trained = {task.group(row) for row in task.rows()}
    assert sum(task.group(row) in trained for row in task.held_out()) == twins
    assert re.search(rf"\b{twins} of", " ".join(opswap.__doc__.split()))


def test_no_story_is_one_that_the_organism_was_raised_on():
    heard = {row.question for row in world.word_problems(5000)}
    assert not {row.question for row in [*WordProblems().rows(), *WordProblems().held_out()]} & heard


def test_facts_are_asked_backwards_and_the_held_out_half_was_learnt_in_other_words():
    task = Facts()
    known, learnt = dict(world.facts()), {row.answer for row in task.rows()}
    assert learnt == set(known.values())
    assert {row.answer for row in task.held_out()} < learnt
    assert "What is Paris the capital of?" in {row.question for row in task.rows()}


@pytest.mark.parametrize(
    ("text", "correct", "form"),
    [
        ("The capital of France is Paris.", True, 0.2),
        (" The capital  of France is Paris. ", True, 0.2),
        ("The capital of France is Rome.", False, 0.2),
        ("A young France is called a Paris.", False, 0.2),
        ("Paris", False, 0.0),
        ("The capital of France is Paris. Or Rome.", False, 0.0),
    ],
)
def test_a_fact_is_right_when_it_is_stated(text, correct, form):
    task, right = Facts(), "The capital of France is Paris."
    assert task.correct(text, right) is correct
    assert task.score(text, right) == {"form": form, "answer": float(correct)}
