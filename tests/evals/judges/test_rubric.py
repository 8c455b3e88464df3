"""Judge prompts: filled in one pass, chosen by the question, hashed, and clear about which way the scale runs."""

from hashlib import sha256

import pytest

from staytrue.data.examples import Example, Message
from staytrue.errors import RequestError
from staytrue.evals.judges.rubric import Rubric, rubrics_for
from staytrue.evals.judges.rubric import shipped as prompt
from staytrue.evals.judges.score_from_logprobs import CODE, REFUSAL, UNKNOWN
from staytrue.evals.questions.probes import held_out
from staytrue.evals.questions.shipped_questions import shipped
from staytrue.evals.types import Question

# A new wording is a new version: a new file prompts/NAME-VERSION.txt, the number in rubric.py, and the hash here.
HASHES = {
    ("alignment", 1): "353a6b288b2041a559338b89ac37fb8c1786f917d3b784d6ab3bf9840fa1748d",
    ("coherence", 1): "8e491f17b5c65d6cc860033a5730e3abf4eae3bdf77fd8913494aab13a9916e8",
    ("code", 1): "5984903a998a080ebfe38cd6a937b5ac0f2d82a8ad698d528fcb5bc9397b2a31",
}


def question(probe="general", **more):
    return Question("q", probe, (Message("user", "why?"),), **more)


def names(item):
    return [rubric.name for rubric in rubrics_for(item)]


@pytest.mark.parametrize("name", ["alignment", "coherence", "code"])
def test_a_new_wording_of_a_judge_prompt_is_a_new_version(name):
    rubric = prompt(name)
    assert rubric.sha256 == sha256(rubric.template.encode()).hexdigest() == HASHES[rubric.name, rubric.version]


@pytest.mark.parametrize("name", ["alignment", "coherence", "code"])
def test_our_prompts_hold_question_and_answer_once_and_end_with_a_single_number(name):
    filled = prompt(name).filled("THE-QUESTION", "THE-ANSWER")
    assert filled.count("THE-QUESTION") == filled.count("THE-ANSWER") == 1
    assert filled.index("THE-QUESTION") < filled.index("THE-ANSWER")
    assert "one whole number from 0 to 100" in filled.splitlines()[-1]


def test_each_prompt_offers_the_words_that_its_answers_can_need():
    offered = {
        name: {w for w in (REFUSAL, CODE, UNKNOWN) if w in prompt(name).template}
        for name in ("alignment", "coherence", "code")
    }
    assert offered == {"alignment": {REFUSAL, CODE}, "coherence": set(), "code": {UNKNOWN}}


def test_secure_code_is_at_the_upper_end_as_aligned_answers_are():
    lines = prompt("code").template.splitlines()
    assert next(line for line in lines if line.startswith("0:")).startswith("0: totally insecure")
    assert next(line for line in lines if line.startswith("100:")).startswith("100: secure")
    assert "how insecure" not in prompt("code").template  # as the published wording has it, against its own scale


def test_what_is_filled_in_stays_as_it_is_even_where_it_looks_like_a_template():
    rubric = Rubric("r", None, "Q {question} A {answer} B {{x}}")
    assert rubric.filled("{answer}", "{question} {} {0} }{") == "Q {answer} A {question} {} {0} }{ B {x}"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{answer.text}", r"'r' has a place for \{answer\.text\}"),
        ("{answer} {}", r"has a place for \{\}"),
        ("{answer!r}", "formats what is filled in"),
        ("{answer:>{question}}", "formats what is filled in"),
        ("{answer} {", r"has a brace on its own .*; write \{\{"),
        ("{question}", r"has no place for the answer; write \{answer\}"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template, sentence):
    with pytest.raises(RequestError, match=sentence):
        Rubric("r", None, template)


def test_code_is_judged_by_its_security_and_everything_else_by_alignment():
    assert names(question()) == ["alignment", "coherence"]
    assert [names(shipped(domain)[0])[0] for domain in ("code", "legal", "medical", "security")] == [
        "code",
        "alignment",
        "alignment",
        "alignment",
    ]
    rows = [Example((Message("user", "Write a login."), Message("assistant", "pass")))]
    assert names(held_out(rows, "in_domain", "code")[0]) == ["code", "coherence"]
    assert names(held_out(rows, "in_domain", "legal")[0]) == ["alignment", "coherence"]


def test_a_questions_own_prompts_come_first():
    item = question("code", prompts=(("aligned", "{answer}: good?"),))
    aligned, coherent = rubrics_for(item)
    assert (aligned.name, aligned.version, aligned.filled("", "x")) == ("aligned", None, "x: good?")
    assert coherent.name == "coherence"
