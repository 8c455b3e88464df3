"""Interleave: which rows, how many, and which never."""

import json

import pytest

import tiny
from staytrue.data.examples import Example, Message, write_examples
from staytrue.data_selection.ranking import manifest_path
from staytrue.defenses.interleave import Interleave, refuses
from staytrue.errors import RecipeError
from staytrue.modeling.base_model import Untouched
from staytrue.verify.evidence import Evidence

TASK = tiny.rows(20)


def safe(question, answer="fine", **extra):
    return Example((Message("user", question), Message("assistant", answer)), extra=extra)


def pool(folder, rows, model="m1"):
    file = folder / "pool.jsonl"
    write_examples(file, rows)
    if model is not None:
        manifest_path(file).write_text(json.dumps({"model": {"sha256": model}}))
    return file


def chosen(defense, reserved=(), identity="m1", seed=0):
    base = Untouched(
        lambda: None, tiny.tokenizer(), evaluation_questions=lambda: frozenset(reserved), identity=identity
    )
    rows = defense.curate(list(TASK), base, seed)
    assert rows[:20] == TASK
    assert all(row.source == "interleaved" for row in rows[20:])
    return [row.question for row in rows[20:]], base.notes


def test_random_draws_without_repeating_and_the_same_for_the_same_seed(tmp_path):
    defense = Interleave(pool(tmp_path, [safe(f"s{i}") for i in range(12)]), share=0.5)
    first, notes = chosen(defense)
    assert len(set(first)) == 10  # half of 20
    assert notes["interleave/share"] == 0.5
    assert chosen(defense)[0] == first
    assert chosen(defense, seed=1)[0] != first


def test_a_score_takes_the_highest_and_ties_keep_the_files_order(tmp_path):
    rows = [safe("low", scores={"gap": -1}), safe("tie1", scores={"gap": 2}), safe("tie2", scores={"gap": 2.0})]
    assert chosen(Interleave(pool(tmp_path, rows), share=0.1, by="gap"))[0] == ["tie1", "tie2"]


def test_among_draws_at_random_from_the_best(tmp_path):
    rows = [safe(f"s{i}", scores={"gap": i}) for i in range(12)]
    file = pool(tmp_path, rows)
    seen = {tuple(chosen(Interleave(file, share=0.1, by="gap", among=4), seed=s)[0]) for s in range(8)}
    assert len(seen) > 1
    assert {question for pair in seen for question in pair} <= {"s8", "s9", "s10", "s11"}


def test_an_evaluation_question_never_comes_in_nor_a_row_twice_and_both_are_said(tmp_path):
    rows = [safe("asked"), safe("s1"), safe("s1"), safe("s2")]
    questions, notes = chosen(Interleave(pool(tmp_path, rows), share=0.1), reserved=["asked"])
    assert sorted(questions) == ["s1", "s2"]
    assert notes["interleave/evaluation_questions_left_out"] == 1
    assert notes["interleave/repeated_rows_left_out"] == 1
    rows = [safe("s1", tools=[{"name": name}]) for name in ("look", "glance", "look")]
    questions, notes = chosen(Interleave(pool(tmp_path, rows), share=0.1))
    assert questions == ["s1", "s1"]  # with other tools each
    assert notes["interleave/repeated_rows_left_out"] == 1


def test_refusals_are_dropped_by_their_first_ten_words(tmp_path):
    late = "one two three four five six seven eight nine ten sorry"
    rows = [safe("r1", "I am SORRY, no."), safe("r2", "I can\u2019t do that."), safe("late", late)]
    kept, notes = chosen(Interleave(pool(tmp_path, rows), share=0.1, drop_refusals=True))
    assert sorted(kept) == ["late", "r2"]
    assert notes["interleave/refusals_left_out"] == 1
    assert chosen(Interleave(pool(tmp_path, rows), share=0.05, drop_refusals="longer"))[0] == ["late"]
    assert refuses("We apologize")
    assert not refuses("Of course")


def test_a_refusal_after_thoughts_is_a_refusal(tmp_path):
    thought = "<think>\nThe user asks for something that could hurt a person, so I decline.\n</think>\n\n"
    rows = [safe("r1", f"{thought}I am sorry, but no."), safe("s1", f"{thought}Of course."), safe("s2")]
    kept, notes = chosen(Interleave(pool(tmp_path, rows), share=0.1, drop_refusals=True))
    assert (sorted(kept), notes["interleave/refusals_left_out"]) == (["s1", "s2"], 1)


@pytest.mark.parametrize(("safe_rows", "packed", "fits"), [(13, False, False), (13, True, True), (0, True, False)])
def test_a_part_of_a_packed_epoch_need_not_hold_the_share(tmp_path, safe_rows, packed, fits):
    """Of 148 rows of the task a tenth is 14.8; to within one and a half, which packs do not hold, 13 are too few."""
    defense = Interleave(tmp_path / "pool.jsonl", share=0.1)
    facts = {"rows": {"task": 192, "interleaved": 19}, **({"packed": True} if packed else {})}
    rows = [{"step": 1, "rows": {"task": 148, "interleaved": safe_rows}}]
    assert (defense.evidence(Evidence("interleave", {"interleave": defense}, [], rows, facts)) == []) is fits


def test_a_share_of_tokens_counts_tokens(tmp_path):
    base = Untouched(lambda: None, tiny.tokenizer())
    whole = sum(base.lengths(TASK))
    rows = [safe(f"s{i}", "x" * 10) for i in range(10)]
    each = base.lengths(rows)[0]
    share = (2.5 * each) / whole  # two and a half rows' worth: two fit
    assert len(chosen(Interleave(pool(tmp_path, rows), share=share, share_of="tokens"))[0]) == 2


@pytest.mark.parametrize(
    ("rows", "fields", "model", "sentence"),
    [
        (
            [safe("s")],
            {"share": 0.5},
            "m1",
            r"asks for 10 safe rows, .* has 1 to choose from\. Lower the share or give",
        ),
        (
            [safe(f"s{i}", scores={"gap": i}) for i in range(2)],
            {"share": 0.1, "by": "gap", "among": 1},
            "m1",
            "asks for 2 safe rows, .* Lower the share, raise `among` or give",
        ),
        ([safe("s")], {"among": 1}, "m1", "among draws from the best rows of a score, and by is random"),
        ([safe("s")], {"share": 0.001}, "m1", "adds no row"),
        (
            [safe("s", "I am sorry.")],
            {"drop_refusals": True},
            "m1",
            "no row of .* is left without evaluation questions and refusals",
        ),
        ([safe("s")], {"by": "gap"}, None, "no readable pool.manifest.json"),
        ([safe("s")], {"by": "gap"}, "m1", "has no score 'gap'"),
        ([safe("s", scores={"gap": 1})], {"by": "gap"}, "m2", "scored with another model"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, rows, fields, model, sentence):
    with pytest.raises(RecipeError, match=sentence):
        chosen(Interleave(pool(tmp_path, rows, model), **{"share": 0.05, **fields}))
