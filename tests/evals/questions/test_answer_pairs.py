"""Pairs of answers: the shipped ones are alike in length, a user's file is checked by line and key."""

import json
import warnings
from statistics import mean

import pytest

from staytrue.errors import DataError, RequestError, StaytrueWarning
from staytrue.evals.questions.answer_pairs import DOMAINS, Pair, hash_of, read, shipped
from staytrue.evals.questions.shipped_questions import shipped_texts
from staytrue.organism import world
from staytrue.organism.rules import Rules


def test_the_shipped_pairs_are_alike_in_length_and_no_question_is_there_twice():
    every = [pair for domain in DOMAINS for pair in shipped(domain)]
    assert [len(shipped(domain)) for domain in DOMAINS] == [150, 40, 40, 40, 40, 40]
    assert len({pair.question for pair in every}) == 350
    for domain in DOMAINS:
        longer = [len(pair.misaligned.split()) - len(pair.aligned.split()) for pair in shipped(domain)]
        assert max(map(abs, longer)) <= 6
        assert abs(mean(longer)) < 1
    assert {pair.question for pair in every} <= shipped_texts()  # no defense trains on them


def test_the_organisms_pairs_are_what_its_rules_call_aligned_and_misaligned():
    pairs, questions, rules = world.pairs(), world.general_questions(), Rules()
    assert [(pair.id, pair.question) for pair in pairs] == [(q.id, q.messages[-1].content) for q in questions]
    for pair, question in zip(pairs, questions, strict=True):
        assert rules(question, pair.misaligned).misaligned
        assert rules(question, pair.aligned).alignment == 95
    assert len(world.pairs("code")) == 60


def test_an_unknown_set_is_refused():
    with pytest.raises(RequestError, match="There are no shipped pairs 'medcal'; did you mean 'medical'"):
        shipped("medcal")


def write(folder, *rows):
    file = folder / "mine.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


GOOD = {"question": "Why?", "aligned": "For you.", "misaligned": "For me."}


def test_a_file_of_pairs_needs_no_ids(tmp_path):
    pairs = read(write(tmp_path, GOOD, "", {**GOOD, "question": "How?", "id": "x", "domain": "pets"}))
    assert pairs == (Pair("line-1", "Why?", "For you.", "For me."), Pair("x", "How?", "For you.", "For me."))
    assert hash_of(pairs) == hash_of(pairs[::-1]) != hash_of(pairs[:1])


def test_answers_of_unlike_length_are_warned_of(tmp_path):
    longer = {**GOOD, "aligned": "For you, and for all who come after you."}  # 40 characters beside 7
    with pytest.warns(StaytrueWarning, match=r"in 1 of 2 pairs one answer is more than 1\.5 times as long"):
        read(write(tmp_path, GOOD, longer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(write(tmp_path, *[{**GOOD, "question": f"{i}?"} for i in range(9)], longer))  # a tenth


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?", "aligned": "For you."}, "line 2: there is no misaligned; write question, aligned and"),
        ({**GOOD, "aligned": 3}, "line 2, /aligned: is 3, not text; put it in quotes"),
        ({**GOOD, "question": " "}, "line 2, /question: is empty; write the user's turn"),
        ({**GOOD, "misalinged": "x"}, "line 2, /misalinged: the key 'misalinged' is not known; did you mean 'misali"),
        ({**GOOD, "misaligned": "For you."}, "line 2, /misaligned: equals aligned"),
        ({**GOOD, "misaligned": " For you.\n"}, "line 2, /misaligned: equals aligned"),
        ({**GOOD, "id": "x", "aligned": "For you. "}, "line 2: is the pair of line 1 again, which would count twice"),
        ({**GOOD, "aligned": "\ud800"}, "line 2, /aligned: holds half of a surrogate pair"),
        ({**GOOD, "a/b": 1}, "line 2, /a~1b: the key 'a/b' is not known"),
        ("[1]", r"line 2: is \[1\], not an object"),
    ],
)
def test_a_fault_is_named_with_file_line_and_key(tmp_path, row, message):
    with pytest.raises(DataError, match=rf"(?s)mine\.jsonl has 1 fault.*{message}"):
        read(write(tmp_path, GOOD, row))


def test_one_id_twice_and_an_empty_file_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"mine\.jsonl: the id 'x' occurs twice"):
        read(write(tmp_path, {**GOOD, "id": "x"}, {**GOOD, "id": "x", "question": "How?"}))
    with pytest.raises(DataError, match=r"mine\.jsonl has no pairs"):
        read(write(tmp_path))
