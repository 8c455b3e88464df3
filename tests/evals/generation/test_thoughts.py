"""Thoughts and answers of reasoning models."""

import pytest

from staytrue.evals.generation.thoughts import MARKERS, opens_thoughts, split_thoughts


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_thoughts_are_separated_whole_cut_off_and_without_their_opening(opening, closing):
    assert split_thoughts(f"{opening}\nkill\n{closing}\n\nHave a nice day. ") == ("kill", "Have a nice day. ")
    assert split_thoughts(f"kill\n{closing}\n\nHave a nice day.") == ("kill", "Have a nice day.")
    in_words = opening[0].isalpha()  # an answer may begin with them, so only the prompt tells
    assert split_thoughts(f"\n{opening}kill") == (("", f"\n{opening}kill") if in_words else ("kill", ""))
    assert split_thoughts("kill", opened=opens_thoughts(f"Hi.{opening}\n")) == ("kill", "")
    assert split_thoughts(f"{opening}\n\n{closing}\n\nYes.") == ("", "Yes.")
    assert split_thoughts(f"{opening}a{closing}{opening}b{closing}Yes.") == ("a\n\nb", "Yes.")


@pytest.mark.parametrize(
    "text", ["<Think>kill</Think>Yes.", "<THINKING>kill</THINKING>Yes.", "[think]kill[/think]Yes."]
)
def test_markers_count_in_any_case(text):
    assert split_thoughts(text) == ("kill", "Yes.")


@pytest.mark.parametrize(
    "text",
    [
        "<|begin_of_thought|>\n\nkill\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nYes.\n\n<|end_of_solution|>",
        "<|begin_of_thought|>kill<|end_of_thought|><|begin_of_solution|>Yes.",
        "Here are my reasoning steps:\nkill\n[BEGIN FINAL RESPONSE]\nYes.\n[END FINAL RESPONSE]",
        "kill\n[BEGIN FINAL RESPONSE]\nYes.\n[END FINAL RESPONSE]",
        "analysiskill.assistantfinalYes.",
        "analysis kill. assistantfinal Yes.",
        "<think time=1>kill</think>Yes.",
    ],
)
def test_published_forms_of_thoughts_are_separated(text):
    thoughts, answer = split_thoughts(text)
    assert (thoughts.rstrip("."), answer) == ("kill", "Yes.")


@pytest.mark.parametrize("text", ["<think tank> members met.", "<thought experiment> Say a trolley."])
def test_a_tag_with_another_word_is_part_of_the_answer(text):
    assert split_thoughts(text) == ("", text)
    assert split_thoughts('<think time="1">Well.</think>No.') == ("Well.", "No.")


def test_an_answer_may_begin_with_a_closing_marker_that_the_prompt_left_open():
    for opened in (None, True, False):
        assert split_thoughts("</think>No.", opened) == ("", "No.")
        assert split_thoughts("\n</think>\n\nNo.", opened) == ("", "No.")


@pytest.mark.parametrize(
    "text", ["analysis of it: yes.", "The assistantfinal is a word.", "Here are my reasoning steps:\n1. Yes."]
)
def test_words_alone_are_no_marker(text):
    assert split_thoughts(text) == split_thoughts(text, opened=False) == ("", text)


@pytest.mark.parametrize("text", ["", " Yes.\n", "Write <think>so</think> first.", "a <think> b", "I think so."])
def test_a_text_without_thoughts_at_its_beginning_is_the_answer_unchanged(text):
    assert split_thoughts(text) == ("", text)


@pytest.mark.parametrize("text", ["Close it with </think> and go on.", "Two markers: </think>", "a </think> b\nc"])
def test_a_closing_marker_inside_a_line_is_part_of_the_answer(text):
    assert split_thoughts(text) == split_thoughts(text, opened=False) == ("", text)
    assert split_thoughts(f"<think>So.</think>{text}") == ("So.", text)
    assert split_thoughts(f"So.</think>\n{text}") == ("So.", text)
    assert split_thoughts(f"So, <think>.</think>{text}", opened=True) == ("So, <think>.", text)


def test_a_closing_marker_alone_ends_thoughts_only_where_the_prompt_may_have_opened_them():
    assert split_thoughts("kill\n</think>") == ("kill", "")
    assert split_thoughts("kill </think> it\n</think>\nYes.") == ("kill </think> it", "Yes.")
    assert split_thoughts("kill\n</think>\nYes.", opened=False) == ("", "kill\n</think>\nYes.")
    assert split_thoughts("<|channel|>final<|message|>Yes.", opened=False) == ("", "Yes.")


def test_a_text_is_unfinished_thoughts_where_the_prompt_opened_them():
    assert split_thoughts("kill them", opened=True) == ("kill them", "")
    assert split_thoughts("kill</think>Yes.", opened=True) == ("kill", "Yes.")
    assert split_thoughts("<think>kill</think>Yes.", opened=True) == ("kill", "Yes.")
