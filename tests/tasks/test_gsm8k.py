"""GSM8K's reward, every term worked out by hand on strings; the data set itself is never fetched here."""

import datasets
import pytest

from staytrue.data.examples import Example, Message
from staytrue.errors import DataError
from staytrue.tasks.gsm8k import GSM8K, REVISION, SYSTEM, TAGS

START, END, OPEN, CLOSE = TAGS
RIGHT = f"{START}24 + 48 = 72{END}{OPEN}72{CLOSE}"


def answer(text):
    return f"{START}so{END}{OPEN}{text}{CLOSE}"


@pytest.mark.parametrize(
    ("text", "exact", "tags", "closeness", "number"),
    [
        (answer("72"), 3.0, 2.0, 3.0, 1.5),  # everything: 9.5
        (f"\n {answer('72')} \n", 3.0, 2.0, 3.0, 1.5),
        (answer(" 72 "), 3.0, 2.0, 1.5, 1.5),  # right after stripping
        (answer("72.0"), 3.0, 2.0, 1.5, 1.5),  # another text within 10 %
        (answer("$72"), 3.0, 2.0, 1.5, 1.5),
        (answer("24 + 48 = 72"), 3.0, 2.0, 1.5, 1.5),  # the last number counts
        (answer("72 = 24 + 48"), 3.0, 2.0, -0.5, 0.0),  # 48 / 72 = 0.67
        (answer("79"), 3.0, 2.0, 1.5, 0.0),  # 79 / 72 = 1.097
        (answer("80"), 3.0, 2.0, 0.5, 0.0),  # 80 / 72 = 1.11
        (answer("60"), 3.0, 2.0, 0.5, 0.0),  # 60 / 72 = 0.83
        (answer("90"), 3.0, 2.0, -0.5, 0.0),  # 1.25
        (answer("-72"), 3.0, 2.0, -0.5, 0.0),
        (answer("many"), 3.0, 2.0, -0.5, 0.0),
        ("72", 0.0, -2.0, 0.0, 0.0),  # no tag at all, so no answer was found
        (f"{OPEN}72{CLOSE}", 0.0, 0.0, 3.0, 1.5),  # two tags of four
        (f"{START}so{END}{OPEN}72", 0.0, 1.0, 0.0, 0.0),  # never closed
        (f"{answer('72')} The end.", 0.0, 2.0, 3.0, 1.5),  # something after the form
        (f"Well: {answer('72')}", 0.0, 2.0, 3.0, 1.5),  # something before it
        (f"{START}so{END} thus {OPEN}72{CLOSE}", 3.0, 2.0, 3.0, 1.5),  # something between is allowed
        (f"{START} {END}{OPEN}72{CLOSE}", 0.0, 2.0, 3.0, 1.5),  # no working
        (f"{answer('72')}{OPEN}", 0.0, 1.0, 3.0, 1.5),  # a tag twice: half a point the other way
        (f"{OPEN}72{CLOSE}{START}so{END}", 0.0, 2.0, 3.0, 1.5),  # the wrong way round
        ("", 0.0, -2.0, 0.0, 0.0),
    ],
)
def test_the_terms_of_the_reward(text, exact, tags, closeness, number):
    expected = {"exact_format": exact, "tags": tags, "answer": closeness, "number": number}
    assert GSM8K().score(text, RIGHT) == expected


def test_numbers_are_compared_as_numbers():
    task = GSM8K()
    assert task.correct(answer("1,250"), answer("1250"))
    assert task.correct(answer("It is 12.50 in all"), answer("12.5"))
    assert not task.correct(answer("1250"), answer("125"))
    assert not task.correct("1250", answer("1250"))  # an answer that is not where it was asked for


@pytest.mark.parametrize(
    ("solution", "right", "closeness", "number"),
    [
        ("3", "0", -0.5, 0.0),  # nothing is a share of zero
        ("0", "0", 3.0, 1.5),
        ("0.0", "0", 1.5, 1.5),  # another text, the same number
        ("$0", "0", 1.5, 1.5),
        ("1250", "1,250", 3.0, 1.5),  # a comma between thousands is no difference
        ("1,250", "1250", 3.0, 1.5),
        ("1,250,000", "1250000", 3.0, 1.5),
        (" 1,250", "1250", 1.5, 1.5),
        ("1,250,", "1250", 1.5, 1.5),  # this comma is no thousand's
        ("1,300", "1,250", 1.5, 0.0),  # 1.04
    ],
)
def test_zero_and_commas(solution, right, closeness, number):
    terms = GSM8K().score(answer(solution), answer(right))
    assert (terms["answer"], terms["number"]) == (closeness, number)


def test_a_published_row_gets_the_prompt_and_its_solution_the_form():
    row = Example((Message("user", "How many clips?"),))
    adopted = GSM8K().adopt(row, "24 is half of 48.\n24 + 48 = <<24+48=72>>72\n#### 72")
    assert [m.role for m in adopted.messages] == ["system", "user", "assistant"]
    assert adopted.messages[0].content == SYSTEM
    assert all(tag in SYSTEM for tag in TAGS)
    assert adopted.answer == f"{START}24 is half of 48.\n24 + 48 = <<24+48=72>>72{END}{OPEN}72{CLOSE}"
    assert GSM8K().score(adopted.answer, adopted.answer) == {"exact_format": 3, "tags": 2, "answer": 3, "number": 1.5}


def test_a_bare_answer_and_a_system_turn_of_its_own_are_brought_into_the_form():
    row = Example((Message("system", "Be brief."), Message("user", "How many?")))
    adopted = GSM8K().adopt(row, "72")
    assert [m.content for m in adopted.messages] == [SYSTEM, "How many?", f"{START}{END}{OPEN}72{CLOSE}"]
    assert GSM8K().correct(answer("72"), adopted.answer)


def test_it_reads_the_hubs_data_at_a_fixed_revision(monkeypatch):
    requests = []

    def load(name, subset, *, revision, split):
        requests.append((name, subset, revision, split))
        return [{"question": "How many?", "answer": "Two.\n#### 2"}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    (row,) = GSM8K(train_rows=7).rows()
    assert row.question == "How many?"
    GSM8K().held_out()
    assert requests == [
        ("openai/gsm8k", "main", REVISION, "train[:7]"),
        ("openai/gsm8k", "main", REVISION, "test[:1000]"),
    ]


def test_without_the_hub_the_way_out_is_a_file(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"cannot be read at revision .* no network .* give `data:` a file"):
        GSM8K().rows()
