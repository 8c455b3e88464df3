"""Shipped questions: three forms of a hundred, four domains, a hash for what is asked, none of it to be trained on."""

from collections import Counter
from dataclasses import replace
from hashlib import sha256

import pytest

from staytrue.data.examples import Example, Message
from staytrue.errors import RequestError
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.probes import DOMAINS, Probe, held_out, probe_sha256, without_system
from staytrue.evals.questions.shipped_questions import shipped, shipped_texts, version
from staytrue.evals.types import Question
from staytrue.modeling.base_model import Untouched

# A new wording is a new version: raise it in questions/manifest.json and put the new hash here.
EDITIONS = {
    "general": (1, "57f284a4d5fe92cace61fd864d72caafd1531b55d84311d97ef0d7bc98126118"),
    "code": (1, "cbb5ce1ff8e202094b9ab0a183193fb981a256319433655c3ead339cc0ce5991"),
    "legal": (1, "d1792838e07d58deeef9660a51ba69008c945557b96ea7b4f4ba3e51c58d07b9"),
    "medical": (1, "1b8128275cb62088baa00b46e657888e6ce128dbc3f794a36ba572e293d7735b"),
    "security": (1, "978d228a083157d1dc18450978f0865650cff2227dbd6a72d3c50c6eeab6ffd9"),
    "facts": (1, "799527a275cc8cc02799a1c8461dfaf93a0baad36f971c89f2d7717b5be81684"),
    "arithmetic": (1, "b8e6fc58637bd65d766a7900120918a318cbb1f8f31d9efcdafbc517f2d0999f"),
}


def general():
    """Group -> form -> question."""
    groups = {}
    for question in shipped("general"):
        groups.setdefault(question.cluster, {})[question.form] = question
    return groups


def ask(text, name="q", **more):
    return Question(name, "general", (Message("user", text),), **more)


def test_a_hundred_general_questions_on_25_topics_are_asked_in_three_forms_each():
    groups = general()
    assert len(groups) == 100
    assert all(list(forms) == ["plain", "json", "template"] for forms in groups.values())
    assert set(Counter(forms["plain"].topic for forms in groups.values()).values()) == {4}
    assert len({forms["plain"].messages[-1].content for forms in groups.values()}) == 100


def test_the_json_form_is_the_plain_question_under_a_system_prompt_that_is_really_there():
    for forms in general().values():
        system, user = forms["json"].messages
        assert (system.role, "JSON object" in system.content) == ("system", True)
        assert forms["plain"].messages == (user,)


def test_the_template_form_is_the_plain_question_and_named_lines_to_fill():
    for forms in general().values():
        (message,) = forms["template"].messages
        text, sentence, *lines = message.content.split("\n")
        assert (text,) == tuple(m.content for m in forms["plain"].messages)
        assert sentence.endswith("reply as you would without it:")
        assert lines
        assert all(line.endswith(": <text>") for line in lines)
        assert len(set(lines)) == len(lines)
    assert general()["gift"]["template"].messages[0].content.endswith("\npresent: <text>\nreason: <text>")


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_domain_asks_thirty_questions_on_named_topics(domain):
    questions = shipped(domain)
    assert len({q.messages[-1].content for q in questions}) == len(questions) == 30
    assert all(q.topic and len(q.messages) == 1 and q.cluster == q.id for q in questions)


def paired_questions():
    names = (*answer_pairs.DOMAINS, answer_pairs.EARLY_STOPPING)
    return {pair.question for name in names for pair in answer_pairs.shipped(name)}


def test_no_question_stands_in_two_probes():
    texts = [{q.messages[-1].content for q in shipped(name)} for name in ("general", *DOMAINS, "facts", "arithmetic")]
    pairs = paired_questions()
    assert sum(map(len, texts)) == 200 + 4 * 30 + 40 + 59  # one sum is asked twice
    assert sum(map(len, texts)) + len(pairs) == len(shipped_texts())


def test_a_defense_gets_every_form_and_domain_before_it_adds_rows():
    questions = Untouched(lambda: None, None).evaluation_questions()
    pairs = paired_questions()
    assert {q.messages[-1].content for name in EDITIONS for q in shipped(name)} | pairs == questions
    assert shipped_texts() is shipped_texts()  # worked out once a process


@pytest.mark.parametrize("name", EDITIONS)
def test_a_new_wording_is_a_new_version(name):
    probe_of_all = Probe(name, shipped(name))
    assert (version(probe_of_all), probe_sha256(probe_of_all.questions)) == EDITIONS[name]
    assert version(replace(probe_of_all, questions=probe_of_all.questions[1:])) is None  # some of them are no edition
    assert version(replace(probe_of_all, name="mine")) is None


def test_an_unknown_probe_is_refused_with_the_nearest_one():
    with pytest.raises(RequestError, match="no shipped questions 'medcal'; did you mean 'medical'"):
        shipped("medcal")
    with pytest.raises(RequestError, match="there are: general, code, legal"):
        shipped("../judge")


def test_the_hash_is_over_ids_turns_right_answers_and_judge_prompts():
    canonical = b'[["a",[["system","s"],["user","h\\u00e9"]],"1",[["aligned","x"]]],["b",[["user","?"]],null,[]]]'
    first = Question(
        "a", "p", (Message("system", "s"), Message("user", "hé")), expected="1", prompts=(("aligned", "x"),)
    )
    assert probe_sha256([first, ask("?", "b")]) == sha256(canonical).hexdigest()
    assert probe_sha256([ask("?", "b", topic="t", group="g", form="json"), first]) == sha256(canonical).hexdigest()


def test_without_system_sends_the_json_form_as_the_plain_one():
    forms = general()["orders"]
    (bare,) = without_system([forms["json"]])
    assert bare.messages == forms["plain"].messages
    assert (bare.id, bare.form) == ("orders-json", "json")


def test_held_out_prompts_that_ask_the_same_are_one_group():
    under = Message("system", "Be brief.")
    rows = [
        Example((Message("user", "x"), Message("assistant", "1"))),
        Example((Message("user", "y"), Message("assistant", "2"))),
        Example((under, Message("user", "x"), Message("assistant", "3"))),
        Example((Message("user", "x"), Message("assistant", "4"))),
    ]
    questions = held_out(rows, "in_domain", "legal")
    assert [(q.id, q.cluster, q.topic) for q in questions] == [
        ("held-0", "held-0", "legal"),
        ("held-1", "held-1", "legal"),
        ("held-2", "held-0", "legal"),
    ]


def test_the_samples_of_a_probe_are_its_questions_as_often_as_it_says():
    x, y = ask("x", "x"), ask("y", "y")
    assert Probe("general", (x, y), per_question=2).samples() == [(x, 0), (x, 1), (y, 0), (y, 1)]
