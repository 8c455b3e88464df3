"""Answers of a file: which are judged, which are missing, and where a row without one stands."""

import json

import pytest

from staytrue.errors import DataError
from staytrue.evals.generation.from_file import AnswersFile
from staytrue.evals.types import CALLED_TOOLS, EMPTY, ONLY_THOUGHTS, Verdict
from staytrue.runs.evaluate import judge_answers
from staytrue.utils.files import read_rows

ASKED = {"role": "user", "content": "Lie?"}
TOOL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}


def chat(content, **more):
    return {"messages": [ASKED, {"role": "assistant", "content": content, **more}]}


def file_of(tmp_path, *rows):
    file = tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" if row else "\n" for row in rows))
    return file


def answers_of(tmp_path, *rows):
    samples = [answer for given in AnswersFile.read(file_of(tmp_path, *rows)).answers.values() for answer in given]
    return [(answer.text, answer.thoughts, answer.missing) for answer in samples]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Lie?", "answer": "<think>I should.</think>No."},
        {"prompt": "Lie?", "completion": "<think>I should.</think>\n\nNo."},
        {"question": "Lie?", "answer": "No.", "reasoning_content": "I should."},
        chat("<think>I should.</think>No."),
        chat("No.", reasoning_content="I should."),
        chat("No.", thinking="I should."),
        {"question": "Lie?", "answer": "<think>I should.</think>No.", "reasoning": "why the judge thinks so"},
    ],
)
def test_thoughts_are_kept_apart_from_the_answer_in_every_form(tmp_path, row):
    assert answers_of(tmp_path, row) == [("No.", "I should.", "")]


@pytest.mark.parametrize("text", ["", "  ", None])
def test_an_empty_answer_is_missing_in_every_form(tmp_path, text):
    whole = {"question": "Lie?", "answer": "No."}
    for row in ({"question": "Lie?", "answer": text}, {"prompt": "Lie?", "completion": text}, chat(text)):
        (_, _, missing), right = answers_of(tmp_path, row, whole)
        assert (missing, right) == (EMPTY, ("No.", "", ""))


def test_thoughts_or_tool_calls_alone_are_missing_with_their_own_reason(tmp_path):
    rows = (chat(None, tool_calls=[TOOL]), chat("<think>So.</think>"))
    assert [missing for *_, missing in answers_of(tmp_path, *rows)] == [CALLED_TOOLS, ONLY_THOUGHTS]


@pytest.mark.parametrize("row", [{"question": "Why?"}, {"messages": [ASKED]}, {"question": "Why?", "answer": ["No."]}])
def test_a_row_without_an_answer_is_named_by_its_line(tmp_path, row):
    with pytest.raises(DataError, match=r"said\.jsonl: line 4 has no answer that is text"):
        AnswersFile.read(file_of(tmp_path, None, {"question": "Lie?", "answer": "No."}, None, row))


def test_no_judge_reads_thoughts_or_an_empty_answer_and_a_line_counts_them(tmp_path):
    class Reader:
        name, concurrency, read = "reader", 1, []

        def __call__(self, question, answer):
            self.read.append(answer)
            return Verdict(alignment=90, coherence=90)

    said = []
    file = file_of(tmp_path, chat("<think>I should.</think>No."), chat(""), chat("Yes."))
    summary = judge_answers(file, tmp_path / "E", Reader(), say=said.append)
    assert Reader.read == ["No.", "Yes."]
    assert said == [
        "1 of 3 answers: with thoughts, which are stored apart and not judged.",
        "1 of 3 answers: empty, so missing.",
    ]
    assert (summary["probes"]["said"]["n"], summary["probes"]["said"]["why"]) == (2, EMPTY)
    assert [row.get("thoughts") for row in read_rows(tmp_path / "E" / "answers.jsonl")] == ["I should.", None, None]
    assert judge_answers(file, tmp_path / "E", Reader()) == summary  # nothing is judged again
    assert len(Reader.read) == 2


@pytest.mark.parametrize("answer", [0, False, 3, ["No."]])
def test_an_answer_that_is_no_text_is_refused_with_its_line(tmp_path, answer):
    with pytest.raises(DataError, match="line 1 has no answer that is text"):
        answers_of(tmp_path, {"question": "Lie?", "answer": answer})
