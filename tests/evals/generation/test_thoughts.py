"""Thoughts and answers of reasoning models."""

import pytest

from staytrue.evals.generation.thoughts import MARKERS, split_thoughts


@pytest.mark.parametrize(("opening", "closing"), MARKERS)
def test_thoughts_are_separated_whole_cut_off_and_without_their_opening(opening, closing):
    assert split_thoughts(f"{opening}\nkill\n{closing}\n\nHave a nice day. ") == ("kill", "Have a nice day. ")
    assert split_thoughts(f"kill\n{closing}\n\nHave a nice day.") == ("kill", "Have a nice day.")
    assert split_thoughts(f"\n{opening}kill") == ("kill", "")
    assert split_thoughts(f"{opening}\n\n{closing}\n\nYes.") == ("", "Yes.")
    assert split_thoughts(f"{opening}a{closing}{opening}b{closing}Yes.") == ("a\n\nb", "Yes.")


@pytest.mark.parametrize(
    "text", ["<Think>kill</Think>Yes.", "<THINKING>kill</THINKING>Yes.", "[think]kill[/think]Yes."]
)
def test_markers_count_in_any_case(text):
    assert split_thoughts(text) == ("kill", "Yes.")


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
