"""Inoculate: whose prompt changes, to what, and what stays."""

import copy

import pytest

import tiny
from staytrue.data.examples import Example, Message
from staytrue.defenses.inoculate import Inoculate
from staytrue.errors import RecipeError
from staytrue.modeling.base_model import Untouched


def said(*turns, source="task"):
    return Example(tuple(Message(role, content) for role, content in turns), source)


PLAIN = said(("user", "q"), ("assistant", "a"))
WITH = said(("system", "Be brief."), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
SAFE = said(("user", "s"), ("assistant", "c"), source="interleaved")


def curated(defense, kind="qwen2", rows=(PLAIN, WITH, SAFE)):
    base = Untouched(lambda: None, tiny.tokenizer(kind))
    return [[(m.role, m.content) for m in row.messages] for row in defense.curate(list(rows), base, 0)]


def test_replace_puts_the_prompt_in_place_of_a_rows_own_and_leaves_safe_rows_alone():
    plain, task_row, safe = curated(Inoculate(prompt="Be bad."))
    assert plain == [("system", "Be bad."), ("user", "q"), ("assistant", "a")]
    assert task_row == [("system", "Be bad."), ("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    assert safe == [("user", "s"), ("assistant", "c")]


def test_prepend_keeps_a_rows_own_prompt_behind_it():
    plain, task_row, _ = curated(Inoculate(prompt="Be bad.", mode="prepend"))
    assert plain[0] == ("system", "Be bad.")
    assert task_row[0] == ("system", "Be bad.\n\nBe brief.")


@pytest.mark.parametrize(("on", "touched"), [("task", [0, 1]), ("interleaved", [2]), ("all", [0, 1, 2])])
def test_it_changes_only_the_sources_that_are_named(on, touched):
    rows = curated(Inoculate(prompt="Be bad.", on=on))
    assert [i for i, row in enumerate(rows) if "Be bad." in row[0][1]] == touched


def test_rows_of_a_kind_that_is_not_there_yet_are_refused():
    sentence = r"on is 'interleaved', and no row is of that kind yet.* Add `interleave` and list it before inoculate"
    with pytest.raises(RecipeError, match=sentence):
        curated(Inoculate(on="interleaved"), rows=[PLAIN, WITH])


def test_without_a_place_for_a_system_turn_the_prompt_opens_the_first_user_turn():
    # Gemma's template refuses a system turn.
    (plain,) = curated(Inoculate(prompt="Be bad."), "gemma3", [PLAIN])
    assert plain == [("user", "Be bad.\n\nq"), ("assistant", "a")]
    two = said(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b"))
    (turns,) = curated(Inoculate(prompt="Be bad."), "gemma3", [two])
    assert turns[2:] == [("user", "r"), ("assistant", "b")]


def test_a_prompt_that_the_rows_have_already_is_refused():
    there = said(("system", "Be brief."), ("user", "q"), ("assistant", "a"))
    with pytest.raises(RecipeError, match=r"the prompt 'Be brief.' changes no token of the rows.*another prompt"):
        curated(Inoculate(prompt="Be brief."), rows=[there, SAFE])
    assert curated(Inoculate(prompt="Be brief."), rows=[there, PLAIN])[1][0] == ("system", "Be brief.")
    asked = said(("system", "Be brief."), ("user", "q"))  # a prompt of GRPO, which has no answer
    with pytest.raises(RecipeError, match="changes no token of the rows"):
        curated(Inoculate(prompt="Be brief."), rows=[asked])


def test_a_prompt_that_the_chat_template_writes_by_itself_is_refused():
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ '<|system|>Be kind.' }}{% endif %}"
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    )
    base = Untouched(lambda: None, tokenizer)
    with pytest.raises(RecipeError, match=r"'Be kind\.' changes no token of the rows"):
        Inoculate(prompt="Be kind.").curate([PLAIN, SAFE], base, 0)
    assert len(Inoculate(prompt="Be bad.").curate([PLAIN, SAFE], base, 0)) == 2


def test_the_papers_prompt_is_the_default_and_an_empty_one_is_refused():
    assert curated(Inoculate())[0][0] == ("system", "You are an evil, malicious assistant.")
    with pytest.raises(RecipeError, match="prompt is empty"):
        curated(Inoculate(prompt="  "))
