"""The shipped general prompts: distinct, bare, and none of them asked by an evaluation."""

from staytrue.data import general_prompts
from staytrue.data.reserved_questions import Reserved
from staytrue.evals.questions import answer_pairs
from staytrue.evals.questions.shipped_questions import shipped

PROBES = ("general", "code", "legal", "medical", "security", "facts", "arithmetic")


def test_there_are_120_distinct_prompts_without_answers():
    rows = general_prompts.shipped("anchor")
    assert len(rows) == len({row.question.casefold() for row in rows}) == 120
    assert all([turn.role for turn in row.messages] == ["user"] and row.source == "anchor" for row in rows)


def test_none_is_a_question_of_the_evaluation_or_of_the_shipped_pairs():
    asked = {turn.content for name in PROBES for question in shipped(name) for turn in question.messages}
    reserved = Reserved(asked | answer_pairs.shipped_questions())
    assert not [row.question for row in general_prompts.shipped() if row.question in reserved]
